"""The pace of a run's steps, to notice memory that overflows: nothing raises then, all is only slower."""

from collections import deque
from collections.abc import Callable
from statistics import median
from time import monotonic

WINDOW = 10
"""steps that are looked at together: outcomes of a GPU's steps come in bursts"""
FAR = 10.0
"""times the fastest pace so far that steps must take to be told; pictures of other sizes do not reach it"""


class Pace:
    """Times the steps of a run by when their outcomes are known, without waiting for the GPU."""

    def __init__(self, clock: Callable[[], float] = monotonic):
        self._clock = clock
        self._last = clock()
        self._is_told = False
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.fastest = float("inf")
        """seconds a step, on average over the fastest WINDOW steps in a row"""

    def rest(self) -> None:
        """The time since the last step does not count: validation, samples or the user took it."""
        self._last = self._clock()

    def stepped(self) -> str:
        """To be called when a step is done. Once a note, if steps take far longer than earlier ones; else empty."""
        before, self._last = self._last, self._clock()
        self._recent.append(self._last - before)
        if len(self._recent) < WINDOW or self._is_told:
            return ""
        self.fastest = min(self.fastest, sum(self._recent) / WINDOW)
        usual = median(self._recent)  # one step that had to wait is not told
        self._is_told = usual > FAR * self.fastest
        return slow_words(usual, self.fastest) if self._is_told else ""


def slow_words(now: float, before: float) -> str:
    """Says that steps take far longer than they did, why that may be, and what to do.

    Args:
        now, before: seconds a step.
    """
    return (
        f"A step takes {now:.2g} s, where it took {before:.2g} s: probably the GPU's memory has overflowed into the "
        "computer's RAM, or another program uses the GPU. Close other programs; or stop, and queue again with "
        "gradient_checkpointing, a lower batch_size or a lower resolution. Under Windows set 'CUDA - Sysmem Fallback "
        "Policy' to 'Prefer No Sysmem Fallback' in NVIDIA's control panel: then the run sees that memory is full."
    )
