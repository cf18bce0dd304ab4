"""The exponential moving average of what is trained."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class EMA:
    """Averages of parameters, kept beside them in float32.

    After each step average = d average + (1 - d) parameter, with d = min(decay, (1 + n) / (10 + n)) at the n-th
    update from 0, so that the untrained start is soon forgotten (the warm-up of TensorFlow's
    ExponentialMovingAverage; Polyak and Juditsky, 1992, for averaging).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float):
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().float().clone() for parameter in self.parameters]
        self.updates = {device: torch.zeros((), device=device) for device in {p.device for p in self.parameters}}
        """so far; on each device, so that an update captured in a CUDA graph goes on counting"""

    @torch.no_grad()
    def update(self, failed: torch.Tensor | float = 0.0) -> None:
        """Takes the parameters of one more step into the average, unless it failed (1): then they stood still."""
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
        """The parameters hold their averages, and afterwards what they held before, bit for bit."""
        with put_back(self.parameters):
            _copy(self.averages, self.parameters)
            yield


@contextmanager
def put_back(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """What happens to the parameters' values inside is undone on the way out.

    They wait on the CPU: what was learned must be saved on a full GPU too.
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
