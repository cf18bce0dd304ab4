"""The same bits each time, on a GPU too."""

import contextlib
import os
from collections.abc import Iterator

import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Only kernels whose result does not depend on the order in which threads finish; as before on the way out.

    The backward passes of flash and memory-efficient attention otherwise add up in changing order on a GPU.
    torch asks for cuBLAS's workspace setting by this environment variable.

    Raises:
        RuntimeError: inside, by torch, at an operation that has no such kernel; it names the operation.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=False)  # with True, attention goes on as it was
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
