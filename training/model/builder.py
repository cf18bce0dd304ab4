"""Building a learner that fits into the memory of the device."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from .. import host
from ..adapters import Adapter
from ..adapters.attach import Target, attached
from ..adapters.layer_rules import DIFFUSION_MODEL
from ..adapters.shared_input import AdaptedForward, Readers, block_names, share, watched
from ..basics.memory import is_device_full
from ..learning.fitting import Placement, free_memory, placements
from .assembly import make_learner
from .learner import Learner
from .networks import Networks, Setup, make_networks, targets_of

RESERVE = 128 * 2**20
"""Bytes that a run may need beyond its largest pass: the update, workspaces of kernels, fragmentation."""


class NoRoomTogether(Exception):
    """There is memory for the largest pass, but not with layers computed together."""


def about_precision(precision: str, has_bf16: bool, has_fp16: bool, takes_fp16: bool) -> str:
    """Advice on a precision for a GPU; empty where there is none to give.

    Args:
        has_bf16, has_fp16: whether the GPU computes them well.
        takes_fp16: whether the base model works in fp16.
    """
    if precision == "fp16" and not has_fp16:
        return "This GPU computes fp16 wrongly (GTX 16) or slowly: if the loss is no number, set precision to fp32."
    if precision == "bf16" and not has_bf16:
        better = "fp16" if has_fp16 and takes_fp16 else "fp32"
        return f"This GPU only imitates bf16, which is slow: set precision to {better}."
    if precision == "auto" and not has_bf16 and has_fp16 and takes_fp16:
        return (
            "This GPU has no bf16, so the base model computes in fp32: precision fp16 takes half the memory and, with "
            "tensor cores, far less time."
        )
    return ""


def about_fitting(device: torch.device) -> str:
    """What to set by hand on a device on which runs are not fitted into the memory."""
    return (
        f"fit_memory does nothing on {device.type}: only runs on NVIDIA's and AMD's GPUs (cuda) are fitted into the "
        "memory. If memory runs out, or all becomes slow: in LoRA Config turn gradient_checkpointing on, lower "
        "batch_size and raise gradient_accumulation; or lower resolution in Load Dataset."
    )


@dataclass
class Builder:
    """Builds learners, placed so that they fit into the memory."""

    setup: Setup
    adapters: dict[str, Adapter]
    """those of a LoRA that is continued, by state-dict key of the base weight; empty: fresh ones are made"""
    pictures: int
    """number of training pictures"""

    def fitted(self, try_out: Callable[[Learner, Placement], None], attachments: ExitStack) -> Learner:
        """A learner, placed so that the largest batch fits into the memory.

        Args:
            try_out: runs the largest forward and backward pass.
            attachments: receives the clean-up after the run.

        Raises:
            torch.OutOfMemoryError: no placement fits, or that of the recipe does not and no other may be tried.
        """
        setup, run, batch_size = self.setup, self.setup.config.run, self.setup.config.optimization.batch_size
        asked = Placement(run.gradient_checkpointing, batch_size)
        if setup.device.type != "cuda":
            if run.fit_memory and setup.device.type != "cpu":
                setup.note(about_fitting(setup.device))
            return self._placed(asked, attachments)
        has_bf16, has_fp16 = host.has_bf16(setup.device), host.has_fp16(setup.device)
        if words := about_precision(run.precision, has_bf16, has_fp16, host.takes_fp16(setup.model)):
            setup.note(words)
        tried = [asked]
        if run.fit_memory:
            weights = host.weight_bytes(setup.model, setup.dtype, run.base_precision)
            tried = list(placements(asked, not setup.trains_text, weights < host.free_bytes(setup.device)))
        placement, learner = self._first_that_fits(tried, try_out, attachments)
        if placement != asked:
            words = placement.words(batch_size)
            setup.note(f"The recipe does not fit into the GPU's memory as it is; it runs with {words}.")
        return learner

    def targets_of(self, model: Any, text_encoder: Any | None) -> list[Target]:
        """The layers to train: those of a continued LoRA, or those that the recipe chooses."""
        return targets_of(self.setup, self.adapters, model, text_encoder)

    def _first_that_fits(
        self, tried: Sequence[Placement], try_out: Callable[[Learner, Placement], None], attachments: ExitStack
    ) -> tuple[Placement, Learner]:
        """The first placement whose largest pass fits, and its learner.

        Layers are computed together only where a run need not be the same to the last bit, since that depends on the
        free memory.
        """
        left, together = list(tried), not self.setup.config.run.deterministic
        while True:
            placement = left[0]
            with ExitStack() as stack:
                try:
                    learner = self._tried_out(placement, together and placement.resident == 1.0, try_out, stack)
                except NoRoomTogether:
                    together = False
                    self.setup.note(
                        "Layers that read the same tensor are computed one by one, which is slower: together they do "
                        "not fit into the GPU's memory."
                    )
                except Exception as error:
                    if len(left) == 1 or not is_device_full(error):
                        raise
                    left.pop(0)
                else:
                    attachments.enter_context(stack.pop_all())
                    return placement, learner
            free_memory()

    def _tried_out(
        self, placement: Placement, together: bool, try_out: Callable[[Learner, Placement], None], stack: ExitStack
    ) -> Learner:
        """A learner whose largest pass was run with the memory of the optimizer and a reserve taken.

        Args:
            together: whether layers that read the same tensor are computed together.

        Raises:
            torch.OutOfMemoryError: it does not fit.
            NoRoomTogether: it fits, but not together; joining the weights has fragmented the memory.
        """
        learner = self._placed(placement, stack)
        networks = learner.networks
        lengths = range(self.setup.config.optimization.optimizer_kind.memory)
        held = [torch.empty_like(flat.values) for flat in learner.flats for _ in lengths]
        held.append(torch.empty(RESERVE, dtype=torch.uint8, device=self.setup.device))
        with watched(networks.forwards.values()) as readers:
            try_out(learner, placement)
        groups = _groups(networks, readers, placement) if together else []
        if groups:
            try:
                networks.shared.extend(map(share, groups))
                try_out(learner, placement)
            except Exception as error:
                if not is_device_full(error):
                    raise
                raise NoRoomTogether from error
        return learner

    def _placed(self, placement: Placement, stack: ExitStack) -> Learner:
        networks = make_networks(self.setup, self.adapters, placement)
        self.adapters = networks.adapters  # another placement goes on with them
        learner = make_learner(self.setup, networks, placement, self.pictures)
        networks.forwards = stack.enter_context(attached(networks.targets, networks.adapters, host.PRODUCTS))
        stack.enter_context(host.patches_on_device(self.setup.model))
        return learner


def _groups(networks: Networks, readers: Readers, placement: Placement) -> list[list[AdaptedForward]]:
    """Layers that have read the same tensor, in groups to be computed together.

    Checkpointed blocks are recomputed one by one, so their layers are grouped within a block only.
    """
    blocks = host.repeated_blocks(networks.model) if placement.checkpointing else ()
    block_of = block_names([f"{DIFFUSION_MODEL}{name}" for name, _ in blocks], networks.forwards)
    return readers.groups(block_of.__getitem__)
