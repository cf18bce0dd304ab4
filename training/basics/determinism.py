"""Bitwise reproducible results, on a GPU too."""

import contextlib
import os
from collections.abc import Iterator

import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Inside, torch uses deterministic algorithms alone; on exit its settings are restored.

    Without them, the backward passes of flash and memory-efficient attention sum in varying order on a GPU. torch
    requires the environment variable of cuBLAS's workspace for this. The backward pass runs in the calling thread: with
    a thread for each device, gradients that pass over the CPU (those of text encoders) are summed in order of arrival.

    Args:
        wanted: False = nothing is changed.

    Raises:
        RuntimeError: by torch, at an operation without a deterministic algorithm; the message names the operation.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=False)  # warn_only=True would leave attention nondeterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
