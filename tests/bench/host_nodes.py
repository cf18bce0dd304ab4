"""Nodes of the benches, for the server alone: they watch a trainer from outside and measure the process.

`KilnBenchWatch` stands before a trainer: it empties the GPU and begins to measure. `KilnBenchEnd` stands behind it and
gives what was measured. Steps are seen by torch's own hook after optimizer steps, which a captured step does not call;
our trainer tells its steps itself. `KilnBenchLimit` holds the process to a smaller card. No trainer is touched.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

PAUSE = 0.05
"""seconds between two looks at the memory"""
LAST_PART = 0.25
"""of the looks, which counts as "while training": what came before is loading and encoding"""

NOTE = "Note: "
"""begins a line of our trainer's report"""


class Watch:
    """Memory over time and the times of optimizer steps, from `start` to `stop`.

    The thread that looks asks the kernel and the driver (NVML), never CUDA: a call of CUDA's from another thread may
    break the capture of a graph. Torch's own counts are read in the trainer's thread, after its steps.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._steps: list[float] = []
        self._lowest: dict[str, int] = {}
        self._looks: list[dict[str, int]] = []

    def start(self) -> None:
        self.stop()
        empty_gpu()
        self._steps, self._lowest, self._looks = [], {}, []
        self._before = look()
        self._reserved_before = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
        self._started = time.perf_counter()
        self._handle = register_optimizer_step_post_hook(self._after_step)
        self._end.clear()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """What was measured, in seconds and bytes; those of `gpu` and the rises count from the start."""
        if self._thread is None:
            return {}
        self._handle.remove()
        self._end.set()
        self._thread.join()
        self._thread = None
        looks = [*self._looks, look()]
        last = looks[-max(1, round(LAST_PART * len(looks))) :]
        found: dict[str, Any] = {
            "steps": self._steps,
            "ram_rise": max(each["anonymous"] for each in last) - self._before["anonymous"],
            "ram_rise_peak": max(each["anonymous"] for each in looks) - self._before["anonymous"],
            "resident": last[-1]["resident"],
            "anonymous": last[-1]["anonymous"],
        }
        if torch.cuda.is_available():
            found |= {"reserved": torch.cuda.max_memory_reserved(), "allocated": torch.cuda.max_memory_allocated()}
            found |= self._lowest
        if "gpu" in self._before:
            found["gpu"] = max(each["gpu"] for each in looks) - self._before["gpu"] + self._reserved_before
        return found

    def _after_step(self, *_: object) -> None:
        self._steps.append(time.perf_counter() - self._started)
        if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
            return
        allocated = torch.cuda.memory_allocated()
        now = {"between_steps": allocated}  # weights, adapters, what the optimizer keeps
        if "gpu" in self._before:
            used = look()["gpu"] - self._before["gpu"] + self._reserved_before
            now["gpu_between_steps"] = used - torch.cuda.memory_reserved() + allocated
        self._lowest = {name: min(value, self._lowest.get(name, value)) for name, value in now.items()}

    def _keep_looking(self) -> None:
        while not self._end.wait(PAUSE):
            self._looks.append(look())


WATCH = Watch()


def look() -> dict[str, int]:
    """Bytes now: of this process's RAM all and what no file backs; and of the whole GPU, where NVML tells."""
    wanted = {"VmRSS": "resident", "RssAnon": "anonymous", "RssShmem": "shared"}
    found = dict.fromkeys(wanted.values(), 0)
    status = Path("/proc/self/status")  # Linux
    for line in status.read_text().splitlines() if status.exists() else []:
        name, _, value = line.partition(":")
        if name in wanted:
            found[wanted[name]] = int(value.split()[0]) * 1024
    found["anonymous"] += found.pop("shared")  # page-locked memory is shared memory to the kernel
    if (gpu := _nvml()) is not None:
        found["gpu"] = gpu[0].nvmlDeviceGetMemoryInfo(gpu[1]).used
    return found


@functools.cache
def _nvml() -> tuple[Any, Any] | None:
    """NVML and the GPU in use."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    except Exception as error:  # not installed, or not allowed here: the figure is left out
        logging.warning("KilnBench: no NVML (%s)", error)
        return None


def empty_gpu() -> None:
    """Takes all models off the GPU and begins the count of its peak anew."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class KilnBenchWatch:
    """Begins to measure once all of `after` is there; the MODEL goes through."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "execute"
    CATEGORY = "LoRA Kiln bench"
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "after": ("*",), "run": ("STRING",)}}

    def execute(self, model: list[Any], after: list[Any], run: list[str]) -> tuple[Any]:
        WATCH.start()
        return (model[0],)


class KilnBenchEnd:
    """Ends the measurement when `after` is there, and takes along the notes of our trainer's report."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "execute"
    CATEGORY = "LoRA Kiln bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"after": ("*",)}, "optional": {"report": ("STRING", {"forceInput": True})}}

    def execute(self, after: Any, report: str = "") -> dict[str, Any]:
        found = WATCH.stop()
        found["notes"] = [line.removeprefix(NOTE) for line in report.splitlines() if line.startswith(NOTE)]
        if type(after) is dict:  # the core leaves its LoRA on the GPU, where the host's cache would keep it
            after.clear()
        return {"ui": {"figures": [json.dumps(found)]}}


class KilnBenchLimit:
    """Holds torch's share of the GPU to so many GiB (0 = all of it), and says what is free."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "execute"
    CATEGORY = "LoRA Kiln bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"gib": ("FLOAT", {"min": 0.0, "max": 1000.0}), "run": ("STRING",)}}

    def execute(self, gib: float, run: str) -> dict[str, Any]:
        WATCH.stop()
        empty_gpu()
        free, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total) if gib else 1.0)
        return {"ui": {"figures": [json.dumps({"free": free, "total": total})]}}


class KilnBenchHold:
    """Begins a run whose model is loaded: gives its inputs on, so that the host keeps them for the next prompt."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "execute"
    CATEGORY = "LoRA Kiln bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",)}}

    def execute(self, model: Any, clip: Any, vae: Any) -> dict[str, Any]:
        return {"ui": {"figures": ["{}"]}}


NODES = (KilnBenchWatch, KilnBenchEnd, KilnBenchLimit, KilnBenchHold)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
