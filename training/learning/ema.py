"""The exponential moving average of the trained parameters."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class EMA:
    """Averages of parameters, in float32.

    After each step average = d average + (1 - d) parameter, with d = min(decay, (1 + n) / (10 + n)) at update number n
    from 0, so that the untrained start soon loses its weight (the warm-up of TensorFlow's ExponentialMovingAverage;
    averaging: Polyak and Juditsky, 1992).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float):
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().float().clone() for parameter in self.parameters]
        self.updates = {device: torch.zeros((), device=device) for device in {p.device for p in self.parameters}}
        """number of updates so far, on each device, so that a captured update counts too"""

    @torch.no_grad()
    def update(self, failed: torch.Tensor | float = 0.0) -> None:
        """Adds the parameters after one more step to the average, unless the step failed (1)."""
        decays = {device: ((1 + n) / (10 + n)).clamp(max=self.decay) for device, n in self.updates.items()}
        counts = {
            device: 1.0 - (failed.to(device) if isinstance(failed, torch.Tensor) else failed) for device in decays
        }
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.float(), (1.0 - decays[parameter.device]) * counts[parameter.device])
        for device, count in self.updates.items():
            count += counts[device]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the parameters hold their averages; afterwards their former values, bit for bit."""
        with put_back(self.parameters):
            _copy(self.averages, self.parameters)
            yield


@contextmanager
def put_back(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Restores the parameters' values when the context ends.

    The copies lie on the CPU, so that it works with a full GPU too.
    """
    parameters = list(parameters)
    values = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    try:
        yield
    finally:
        _copy(values, parameters)


@torch.no_grad()
def _copy(values: list[torch.Tensor], parameters: list[torch.nn.Parameter]) -> None:
    for value, parameter in zip(values, parameters, strict=True):
        parameter.copy_(value)
