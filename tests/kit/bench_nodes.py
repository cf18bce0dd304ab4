"""Nodes for the comparison alone.

ComfyUI's core trainer gives a LoRA at its end only. `KitWatchOptimizer` stands before it and listens to torch's own
hook after optimizer steps; `KitSnapshots` stands behind it and gives the LoRA as it was every so many steps. The
trainer itself is untouched. `KitEncodeTogether` lets one KSampler draw a batch of different prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Watch:
    """Copies of an optimizer's parameters every `every` steps, while `start` and `stop` last."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.taken: dict[int, list[torch.Tensor]] = {}

    def start(self, every: int) -> None:
        self.stop()
        self.taken, steps = {}, 0

        def after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
            nonlocal steps
            steps += 1
            if steps % every == 0:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                self.taken[steps] = [p.detach().to("cpu", copy=True) for p in parameters]

        self.handle = register_optimizer_step_post_hook(after_step)

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


WATCH = Watch()


class KitWatchOptimizer:
    """Begins to listen; the MODEL goes through."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "execute"
    CATEGORY = "LoRA Kiln kit"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "every": ("INT", {"min": 1, "max": 100000}), "run": ("STRING",)}}

    def execute(self, model: Any, every: int, run: str) -> tuple[Any]:
        WATCH.start(every)
        return (model,)


class KitSnapshots:
    """Ends listening: the LoRA at each of the watched steps, and the steps."""

    RETURN_TYPES = ("LORA_MODEL", "INT")
    OUTPUT_IS_LIST = (True, True)
    FUNCTION = "execute"
    CATEGORY = "LoRA Kiln kit"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"lora": ("LORA_MODEL",)}}

    def execute(self, lora: dict[str, torch.Tensor]) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
        WATCH.stop()
        snapshots = [dict(zip(lora, tensors, strict=True)) for tensors in WATCH.taken.values()]
        return snapshots, list(WATCH.taken)


class KitEncodeTogether:
    """Prompts, one a line, as one conditioning with a row each: for as many latents in one KSampler."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "execute"
    CATEGORY = "LoRA Kiln kit"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "prompts": ("STRING", {"multiline": True})}}

    def execute(self, clip: Any, prompts: str) -> tuple[Any]:
        rows = [clip.encode_from_tokens(clip.tokenize(line)) for line in prompts.split("\n")]
        return ([[torch.cat(rows), {}]],)


NODES = (KitWatchOptimizer, KitSnapshots, KitEncodeTogether)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
