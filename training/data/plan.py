"""The plan of a run: the samples of each forward pass."""

import bisect
import math

from ..config import OptimizationConfig
from .dataset import Dataset, Sample


class Plan:
    """The samples of each forward pass of a run, as a function of the arguments.

    Args:
        seed: of the order of the samples.
    """

    def __init__(self, dataset: Dataset, optimization: OptimizationConfig, seed: int):
        self.dataset = dataset
        self.optimization = optimization
        self.seed = seed
        self._epochs: list[list[list[Sample]]] = []
        self._starts = [0]
        for _ in range(optimization.epochs):
            self._add_epoch()
        self.steps = (
            math.ceil(self._starts[-1] / optimization.gradient_accumulation)
            if optimization.epochs
            else optimization.steps
        )

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, in which a step begins."""
        return self._position(step * self.optimization.gradient_accumulation)[0]

    def samples_at(self, step: int, micro: int) -> list[Sample]:
        """The samples of forward pass `micro` of a step."""
        epoch, index = self._position(step * self.optimization.gradient_accumulation + micro)
        return self._epochs[epoch][index]

    def largest(self) -> tuple[int, int]:
        """The (step, forward pass) with the most pixels in the first epoch."""
        self._position(0)
        passes = min(self._starts[1], self.steps * self.optimization.gradient_accumulation)
        steps = [divmod(number, self.optimization.gradient_accumulation) for number in range(passes)]

        def pixels(step: tuple[int, int]) -> int:
            return sum(sample.fit.width * sample.fit.height for sample in self.samples_at(*step))

        return max(steps, key=pixels)

    def _position(self, passes: int) -> tuple[int, int]:
        """(epoch, batch within it) after so many forward passes; epochs may differ in their number of batches."""
        while self._starts[-1] <= passes:
            self._add_epoch()
        epoch = bisect.bisect_right(self._starts, passes) - 1
        return epoch, passes - self._starts[epoch]

    def _add_epoch(self) -> None:
        epoch = len(self._epochs)
        self._epochs.append(self.dataset.epoch_batches(epoch, self.optimization.batch_size, self.seed))
        self._starts.append(self._starts[-1] + len(self._epochs[-1]))

    def all_samples(self) -> set[Sample]:
        """The distinct samples of the run."""
        return {
            sample
            for step in range(self.steps)
            for micro in range(self.optimization.gradient_accumulation)
            for sample in self.samples_at(step, micro)
        }
