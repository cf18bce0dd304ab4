"""Pinned memory, from which a GPU fetches data while it computes, where the system gives any."""

from collections.abc import Callable

from torch import Tensor

NOT_PINNED = (
    "The system gives no more pinned memory, so data goes to the GPU more slowly. Close other programs, or start "
    "ComfyUI with --disable-pinned-memory, which leaves it to the training."
)


def pinned(tensor: Tensor, say: Callable[[str], None]) -> Tensor:
    """A copy of the tensor in pinned memory; the tensor itself where the system gives none.

    Windows gives at most half of RAM, most of which ComfyUI may have taken. From ordinary memory a copy that was to be
    asynchronous is correct, but the processor waits for it.

    Args:
        tensor: on the CPU.
        say: called with a sentence where there is none.
    """
    try:
        return tensor.pin_memory()
    except RuntimeError:  # another CUDA error is raised again by the next call
        say(NOT_PINNED)
        return tensor
