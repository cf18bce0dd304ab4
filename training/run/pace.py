"""The pace of a run's steps, to notice memory that overflows: nothing raises then, all is only slower."""

from collections import deque
from collections.abc import Callable
from statistics import median_low
from time import monotonic

WINDOW = 10
"""steps that are looked at together: outcomes of a GPU's steps come in bursts"""
LEAST = 1.0
"""seconds of a step that may be told: a short one is mostly Python, and not the GPU's"""
FAR = 10.0
"""times the expected pace that steps must take to be told; pictures of other sizes do not reach it"""


class Pace:
    """Times the steps of a run by when their outcomes are known, without waiting for the GPU.

    Args:
        is_watched: whether slow steps are told: on a device whose memory may overflow.
        clock: gives seconds.
    """

    def __init__(self, is_watched: bool, clock: Callable[[], float] = monotonic):
        self._clock = clock
        self._is_watched = is_watched
        self._last = clock()
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.expected = float("inf")
        """seconds a step: of the pass that was tried out, or on average over the fastest WINDOW steps in a row"""

    def rest(self) -> None:
        """The time since the last step does not count: validation, samples or the user took it."""
        self._last = self._clock()

    def stepped(self) -> str:
        """To be called when a step is done. Once a note, if steps take far longer than expected; else empty."""
        before, self._last = self._last, self._clock()
        self._recent.append(self._last - before)
        if len(self._recent) < WINDOW or not self._is_watched:
            return ""
        self.expected = min(self.expected, sum(self._recent) / WINDOW)
        usual = median_low(self._recent)  # one step that had to wait is not told
        if usual <= max(LEAST, FAR * self.expected):
            return ""
        self._is_watched = False
        return slow_words(usual, self.expected)


def slow_words(now: float, expected: float) -> str:
    """Says that steps take far longer than expected, why that may be, and what to do.

    Args:
        now, expected: seconds a step.
    """
    return (
        f"A step takes {now:.2g} s, where {expected:.2g} s were enough: probably the GPU's memory has overflowed into "
        "the computer's RAM, or another program uses the GPU. Close other programs; or stop, and queue again with "
        "gradient_checkpointing, a lower batch_size or a lower resolution. Under Windows set 'CUDA - Sysmem Fallback "
        "Policy' to 'Prefer No Sysmem Fallback' in NVIDIA's control panel: then the run sees that memory is full."
    )
