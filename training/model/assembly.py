"""Assembly of a learner: parameters, optimizer, step and engine for networks with adapters."""

from functools import partial
from typing import Any

import torch

from .. import host
from ..adapters.attach import adapters_by_rate
from ..adapters.dropout import can_be_recorded
from ..adapters.flat import FlatParameters
from ..adapters.layer_rules import DIFFUSION_MODEL, parse_layer_rules
from ..learning.ema import EMA
from ..learning.engine import EagerEngine, Engine, GraphEngine, uses_cudas_allocator
from ..learning.fitting import FittingEngine, Placement
from ..learning.loss_scale import LossScale
from ..learning.objective import Predict, batch_loss
from ..learning.optimizers import make_capturable, make_optimizer
from ..learning.picture_losses import PictureLosses
from ..learning.step import Step
from .learner import Learner
from .networks import Networks, Setup

CUDAS_ALLOCATOR = (
    "ComfyUI uses cudaMallocAsync, with which only SD1.5, SD2 and SDXL without patches are recorded: start it with "
    "--disable-cuda-malloc"
)


def make_learner(setup: Setup, networks: Networks, placement: Placement, pictures: int) -> Learner:
    """A learner for the networks.

    Args:
        pictures: number of training pictures.
    """
    optimization = setup.config.optimization
    flats, groups = _parameter_groups(setup, networks)
    optimizer = make_optimizer(optimization, groups)
    if setup.device.type == "cuda":
        make_capturable(optimizer)
    ema = None
    if optimization.ema_decay:
        ema = EMA([flat.values for flat in flats], optimization.ema_decay)
    predict = _predict_with(setup, networks)
    picture_losses = PictureLosses(pictures, setup.device)
    step = Step(
        partial(batch_loss, predict, setup.family.prediction, setup.config.objective),
        optimizer,
        optimization,
        flats=flats,
        ema=ema,
        picture_losses=picture_losses,
        loss_scale=LossScale(flats[0].values.device) if setup.dtype == torch.float16 else None,
    )
    return Learner(
        networks=networks,
        predict=predict,
        flats=flats,
        optimizer=optimizer,
        ema=ema,
        picture_losses=picture_losses,
        engine=_engine(setup, networks, placement, step),
    )


def _predict_with(setup: Setup, networks: Networks) -> Predict:
    """The model with its adapters on; an aborted pass leaves no outputs of shared layers behind."""
    options = host.transformer_options(setup.model)

    def predict(x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        try:
            return host.predict(networks.model, options, x_t, sigma, cond)
        finally:
            for shared in networks.shared:
                shared.forget()

    return predict


def _engine(setup: Setup, networks: Networks, placement: Placement, step: Step) -> Engine:
    """The fastest engine that can execute the step; on a GPU one that splits batches when memory runs out."""
    if setup.device.type != "cuda":
        return EagerEngine(step)
    run = setup.config.run
    adapters = networks.adapters.values()
    patches = host.patch_names(setup.model)
    has_bad_allocator = uses_cudas_allocator() and not (patches or host.captures_with_cuda_malloc(setup.model))
    obstacles = [
        *([f"the MODEL carries code of other nodes ({', '.join(patches)})"] if patches else []),
        *(["text encoders are trained"] if setup.trains_text else []),
        *(["dropout is drawn anew each step"] if not can_be_recorded(adapters, setup.config.adapter) else []),
        *(["weights come from RAM"] if placement.resident < 1.0 else []),
        *([CUDAS_ALLOCATOR] if has_bad_allocator else []),
    ]
    if obstacles and run.cuda_graphs:
        why = "; ".join(obstacles)
        setup.note(f"The step goes op by op, not as a CUDA graph, which is several times slower: {why}.")
    is_eager = obstacles or not run.cuda_graphs
    return FittingEngine(
        EagerEngine(step) if is_eager else GraphEngine(step, setup.note, (host.Interrupted,), adapters),
        most=placement.pictures,
        may_split=not setup.trains_text,
        say=setup.note,
        adapters=adapters,
        shared=networks.shared,
    )


def _parameter_groups(setup: Setup, networks: Networks) -> tuple[list[FlatParameters], list[dict[str, Any]]]:
    """The parameters of MODEL's adapters and of the text encoders', in a group for each learning rate.

    Returns:
        (flat parameters, an optimizer's parameter groups), one of each a group.
    """
    optimization, rules = setup.config.optimization, parse_layer_rules(setup.config.adapter.layer_rules)
    takes_flat = optimization.optimizer_kind.takes_flat_parameters
    of_model = {key: each for key, each in networks.adapters.items() if key.startswith(DIFFUSION_MODEL)}
    of_text = {key: each for key, each in networks.adapters.items() if key not in of_model}
    # The devices that the layers compute on; streamed weights wait elsewhere.
    text_encoder = networks.text_encoder
    text_device = setup.device if text_encoder is None else next(text_encoder.parameters()).device
    flats, groups = [], []
    for adapters, learning_rate, device, dtype in (
        (of_model, optimization.learning_rate, setup.device, setup.dtype),
        (of_text, optimization.text_encoder_learning_rate, text_device, torch.float32),
    ):
        for rate, members in adapters_by_rate(adapters, learning_rate, rules).items():
            flat = FlatParameters(members, device, dtype)
            flats.append(flat)
            groups.append({"params": [flat.values] if takes_flat else flat.parameters, "learning_rate": rate})
    return flats, groups
