"""The MODEL's `model_sampling`: its prediction type, noise levels and timestep shift."""

import math
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch

from ..basics.errors import InputError, raise_if_any
from ..learning.family import Family
from ..learning.prediction import Eps, Flow, Prediction, V
from .families import facts_about


def family(model: Any) -> Family:
    """How the MODEL noises and predicts, including patches of its sampling.

    Raises:
        InputError: its prediction type is not one that the objective supports.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = comfy.model_sampling
    known: dict[type, type[Prediction]] = {kinds.CONST: Flow, kinds.V_PREDICTION: V, kinds.EPS: Eps}
    foreign = (kinds.X0, kinds.EDM, kinds.IMG_TO_IMG_FLOW)
    prediction = next((ours for kind, ours in known.items() if isinstance(sampling, kind)), None)
    if prediction is None or isinstance(sampling, foreign):
        names = ", ".join(kind.__name__ for kind in type(sampling).__mro__[1:3])
        problem = f"its prediction type ({names}) cannot be trained; eps, v and flow models can: connect one of those."
        raise InputError("MODEL", [problem])
    patch = model.model.model_config.unet_config.get("patch_size", 2)
    is_patched = "model_sampling" in model.object_patches
    trained_shift = 0.0 if is_patched else facts_about(model.model).timestep_shift
    return Family(
        prediction=prediction(
            sigmas=sampling.sigmas.detach().float().cpu().clone(),
            sigma_data=float(getattr(sampling, "sigma_data", 1.0)),
        ),
        shift=trained_shift or _sampling_shift(sampling),
        patch=patch if isinstance(patch, int) else int(patch[-1]),
    )


def sampler_sigmas(base_model: Any, steps: int) -> torch.Tensor:
    """(steps + 1,) falling noise levels of the host's "normal" scheduler, ending in 0."""
    return comfy.samplers.calculate_sigmas(base_model.model_sampling, "normal", steps).cpu()


def start_noise(base_model: Any, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """x_T from unit noise, for the first sigma of a sampler."""
    return base_model.model_sampling.noise_scaling(
        sigma.to(noise.device), noise, torch.zeros_like(noise), max_denoise=True
    )


def set_sigmas(twin: Any, sigmas: torch.Tensor) -> None:
    """Replaces the twin's table of noise levels, e.g. by one of zero terminal SNR; the MODEL keeps its own.

    Args:
        twin: from `trainable_twin`.
        sigmas: (T,) ascending.

    Raises:
        InputError: the model has no table; flow models have none.
    """
    if not isinstance(twin.model_sampling, comfy.model_sampling.ModelSamplingDiscrete):
        kind = type(twin.model_sampling).__mro__[1].__name__
        raise_if_any("MODEL", [f"its noise levels ({kind}) are no table that can be replaced; eps and v models' are."])
    with torch.inference_mode(False):
        twin.model_sampling.set_sigmas(sigmas.to(twin.device))


def _sampling_shift(sampling: Any) -> float:
    """s of sigma = s * u / (1 + (s - 1) * u), used by the host's samplers (Esser et al., arXiv:2403.03206)."""
    if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux):
        return math.exp(sampling.shift)
    return float(sampling.shift) if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow) else 1.0
