"""Building a learner that fits into the memory of the device."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from .. import host
from ..adapters import Adapter
from ..adapters.attach import (
    Target,
    adapters_by_rate,
    attached,
    find_targets,
    find_text_targets,
    make_adapters,
)
from ..adapters.attach import targets_of as targets_named
from ..adapters.flat import FlatParameters
from ..adapters.layer_rules import DIFFUSION_MODEL, parse_layer_rules
from ..adapters.shared_input import AdaptedForward, Readers, block_names, share, watched
from ..basics.errors import raise_if_any
from ..config import LoRAConfig
from ..learning.ema import EMA
from ..learning.engine import EagerEngine, Engine, GraphEngine, uses_cudas_allocator
from ..learning.fitting import FittingEngine, Placement, free_memory, placements
from ..learning.loss_scale import LossScale
from ..learning.objective import Family
from ..learning.optimizers import make_capturable, make_optimizer
from ..learning.picture_losses import PictureLosses
from ..learning.step import Step
from .learner import Learner, Networks

CUDAS_ALLOCATOR = (
    "ComfyUI uses cudaMallocAsync, with which only SD1.5, SD2 and SDXL without patches are recorded: start it with "
    "--disable-cuda-malloc"
)


MOMENTS = 2
"""tensors as long as the parameters that an optimizer gathers at its first step"""
RESERVE = 128 * 2**20
"""bytes that a run may take beyond its largest pass: for the move, what kernels work in, memory in fragments"""


class NoRoomTogether(Exception):
    """There is memory for the largest pass, but not with layers computed together."""


def about_precision(precision: str, has_bf16: bool, has_fp16: bool, takes_fp16: bool) -> str:
    """What a person should know of a precision on a GPU, if anything.

    Args:
        has_bf16, has_fp16: whether the GPU computes them well.
        takes_fp16: whether the base model does.
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


class Builder:
    """Makes learners, placed so that they fit into the memory.

    Args:
        model, clip: the graph's; they are only read.
        config: with text_encoder_learning_rate 0 where the text encoders are not trained.
        names: what a layer is called in a LoRA file, by state-dict key of its weight.
        adapters: those of a LoRA that is continued; empty: fresh ones.
        pictures: how many there are.
        note: told what goes slower than it could, and why.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        config: LoRAConfig,
        family: Family,
        names: Mapping[str, Any],
        adapters: dict[str, Adapter],
        pictures: int,
        note: Callable[[str], None],
    ):
        self.model, self.clip, self.config, self.family = model, clip, config, family
        self.names, self.adapters, self.pictures, self.note = names, adapters, pictures, note
        self.trains_text = config.optimization.text_encoder_learning_rate > 0
        self.device = host.training_device(model)
        self.dtype = host.training_dtype(model, config.run.precision)

    def fitted(self, try_out: Callable[[Learner, Placement], None], attachments: ExitStack) -> Learner:
        """A learner, placed so that the largest batch fits into the memory.

        Args:
            try_out: the largest forward and backward pass.
            attachments: takes what must be undone after the run.

        Raises:
            torch.OutOfMemoryError: it fits in no way, or the recipe's own does not and no other may be tried.
        """
        config = self.config
        asked = Placement(config.run.gradient_checkpointing, config.optimization.batch_size)
        if self.device.type != "cuda":
            return self._placed(asked, attachments)
        has_fp16 = host.has_fp16(self.device)
        if words := about_precision(
            config.run.precision, host.has_bf16(self.device), has_fp16, host.takes_fp16(self.model)
        ):
            self.note(words)
        weights = host.weight_bytes(self.model, self.dtype, config.run.base_precision)
        fits = not config.run.fit_memory or weights < host.free_bytes(self.device)
        tried = list(placements(asked, not self.trains_text, fits)) if config.run.fit_memory else [asked]
        placement, learner = self._first_that_fits(tried, try_out, attachments)
        if placement != asked:
            words = placement.words(config.optimization.batch_size)
            self.note(f"The recipe does not fit into the GPU's memory as it is; it runs with {words}.")
        return learner

    def _first_that_fits(
        self, tried: Sequence[Placement], try_out: Callable[[Learner, Placement], None], attachments: ExitStack
    ) -> tuple[Placement, Learner]:
        # By what fits it is decided only where nothing must be the same to the last bit.
        left, together = list(tried), not self.config.run.deterministic
        while True:
            placement = left[0]
            with ExitStack() as stack:
                try:
                    learner = self._tried_out(placement, together and placement.resident == 1.0, try_out, stack)
                except NoRoomTogether:
                    together = False
                    self.note(
                        "Layers that read the same tensor are computed one by one, which is slower: together they do "
                        "not fit into the GPU's memory."
                    )
                except torch.OutOfMemoryError:
                    if len(left) == 1:
                        raise
                    left.pop(0)
                else:
                    attachments.enter_context(stack.pop_all())
                    return placement, learner
            free_memory()

    def _tried_out(
        self, placement: Placement, together: bool, try_out: Callable[[Learner, Placement], None], stack: ExitStack
    ) -> Learner:
        """A learner whose largest pass was made.

        Args:
            together: whether what reads the same tensor is to be computed together.

        Raises:
            torch.OutOfMemoryError: it does not fit.
            NoRoomTogether: it fits, but not together; what was laid side by side has left gaps in the memory.
        """
        learner = self._placed(placement, stack)
        held = [torch.empty_like(flat.values) for flat in learner.flats for _ in range(MOMENTS)]
        held.append(torch.empty(RESERVE, dtype=torch.uint8, device=self.device))
        with watched(learner.nets.forwards.values()) as readers:
            try_out(learner, placement)
        groups = self._together(learner.nets, readers, placement) if together else []
        if groups:
            try:
                learner.nets.shared.extend(map(share, groups))
                try_out(learner, placement)
            except torch.OutOfMemoryError as error:
                raise NoRoomTogether from error
        return learner

    @staticmethod
    def _together(nets: Networks, readers: Readers, placement: Placement) -> list[list[AdaptedForward]]:
        """What has read the same tensor, in groups.

        What is checkpointed is computed again block by block, and so goes together only within one.
        """
        blocks = host.repeated_blocks(nets.model) if placement.checkpointing else ()
        block_of = block_names([f"{DIFFUSION_MODEL}{name}" for name, _ in blocks], nets.forwards)
        return readers.groups(block_of.__getitem__)

    def targets_of(self, model: Any, text_encoder: Any | None) -> list[Target]:
        """The layers that are trained: those of the LoRA that is continued, or those the recipe chooses."""
        if self.adapters:
            roots = [model] if text_encoder is None else [model, text_encoder]
            return [target for root in roots for target in targets_named(root, self.adapters)]
        text_targets = [] if text_encoder is None else find_text_targets(text_encoder)
        family = host.family_of(self.model)
        found = find_targets(model, self.config.adapter.targets, family.fused_layers, family.target_blocks)
        return [*found, *text_targets]

    def _placed(self, placement: Placement, stack: ExitStack) -> Learner:
        nets = self._networks(placement)
        self.adapters = nets.adapters
        learner = self._learner(nets, placement)
        nets.forwards = stack.enter_context(attached(nets.targets, nets.adapters, host.PRODUCTS))
        stack.enter_context(host.patches_on_device(self.model))
        return learner

    def _networks(self, placement: Placement) -> Networks:
        """Twins of MODEL and, where they are trained, of the text encoders, with fresh or continued adapters."""
        config = self.config
        streams = placement.resident < 1.0
        model = host.trainable_twin(self.model, self.dtype, config.run.base_precision, in_ram=streams)
        if config.objective.zero_terminal_snr:
            host.set_sigmas(model, self.family.sigmas)
        if self.device.type == "cuda" and self.dtype != torch.float32 and (obstacle := host.fuse_layers(model)):
            self.note(f"Layers go without fused kernels, which is slower: Triton does not work ({obstacle}).")
        if config.run.base_precision == host.FP8_MATMUL and (why := host.fp8_matmul_obstacle(self.device, self.dtype)):
            self.note(f"8-bit products are computed from rounded numbers in {self.dtype}, which is slower: {why}.")
        if streams:
            self._stream(model, placement)
        elif placement.checkpointing and not host.checkpoint_blocks(model):
            self.note("gradient_checkpointing has no effect: this model has no list of blocks.")
        text_encoder = host.trainable_text_encoder(self.clip) if self.trains_text else None
        targets = self.targets_of(model, text_encoder)
        adapters = self.adapters or make_adapters(targets, config.adapter, config.run.seed)
        strangers = sorted(set(adapters) - self.names.keys())  # could not be saved after the last step
        if strangers:
            problem = f"layer {strangers[0]} is not the model's own (compiled, or replaced?): take that node out."
            raise_if_any("MODEL", [problem])
        return Networks(model, text_encoder, targets, adapters)

    def _stream(self, model: Any, placement: Placement) -> None:
        everything = host.weight_bytes(self.model, self.dtype, self.config.run.base_precision)
        streamed = host.stream_blocks(model, int(placement.resident * everything))
        if not streamed.is_pinned:
            self.note("Weights from RAM come slower than they could: the system gives no pinned memory.")

    def _learner(self, nets: Networks, placement: Placement) -> Learner:
        """The step that is trained, and how it is executed."""
        config = self.config
        flats, groups = self._parameter_groups(nets)
        optimizer = make_optimizer(config.optimization, groups)
        can_record = self.device.type == "cuda" and make_capturable(optimizer)
        ema = None
        if config.optimization.ema_decay:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            ema = EMA(parameters, config.optimization.ema_decay)
        options = host.transformer_options(self.model)

        def predict(x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
            try:
                return host.predict(nets.model, options, x_t, sigma, cond)
            finally:
                for shared in nets.shared:
                    shared.forget()

        picture_losses = PictureLosses(self.pictures, self.device)
        loss_scale = LossScale(flats[0].values.device) if self.dtype == torch.float16 else None
        step = Step(predict, self.family, config, optimizer, tuple(flats), ema, picture_losses, loss_scale)
        engine = self._engine(step, placement, can_record, nets)
        return Learner(nets, flats, optimizer, ema, picture_losses, engine)

    def _engine(self, step: Step, placement: Placement, can_record: bool, nets: Networks) -> Engine:
        config = self.config
        if self.device.type != "cuda":
            return EagerEngine(step)
        obstacles = [
            *(["text encoders are trained"] if self.trains_text else []),
            *(["dropout is drawn anew each step"] if config.adapter.has_dropout else []),
            *(["weights come from RAM"] if placement.resident < 1.0 else []),
            *([CUDAS_ALLOCATOR] if uses_cudas_allocator() and not host.captures_with_cuda_malloc(self.model) else []),
            *([] if can_record else [f"the optimizer {config.optimization.optimizer} moves from Python"]),
        ]
        if obstacles and config.run.cuda_graphs:
            self.note(
                f"The step goes op by op, not as a CUDA graph, which is several times slower: {'; '.join(obstacles)}."
            )
        is_eager = obstacles or not config.run.cuda_graphs
        engine = EagerEngine(step) if is_eager else GraphEngine(step, self.note, (host.Interrupted,))
        return FittingEngine(
            engine, placement.pictures, not self.trains_text, self.note, nets.adapters.values(), nets.shared
        )

    def _parameter_groups(self, nets: Networks) -> tuple[list[FlatParameters], list[dict[str, Any]]]:
        """MODEL's layers and those of the text encoders, each at their own learning rate, side by side in memory."""
        config, rules = self.config, parse_layer_rules(self.config.adapter.layer_rules)
        takes_flat = config.optimization.optimizer_kind.takes_flat_parameters
        own = {key: each for key, each in nets.adapters.items() if key.startswith(DIFFUSION_MODEL)}
        text = {key: each for key, each in nets.adapters.items() if key not in own}
        flats, groups = [], []
        # Where the layers compute, not where their weights wait.
        text_device = next(nets.text_encoder.parameters()).device if nets.text_encoder is not None else self.device
        for part, learning_rate, device, dtype in (
            (own, config.optimization.learning_rate, self.device, self.dtype),
            (text, config.optimization.text_encoder_learning_rate, text_device, torch.float32),
        ):
            for rate, members in adapters_by_rate(part, learning_rate, rules).items():
                flat = FlatParameters(members, device, dtype)
                flats.append(flat)
                parameters = [flat.values] if takes_flat else flat.parameters
                groups.append({"params": parameters, "learning_rate": rate})
        return flats, groups
