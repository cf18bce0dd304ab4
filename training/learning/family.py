"""The mathematics of a model family: its prediction, and the timesteps that it is trained at."""

import math
from dataclasses import dataclass

from ..config import ObjectiveConfig
from .prediction import Prediction
from .timesteps import Density


@dataclass(frozen=True)
class Family:
    """How a model family noises, predicts and is trained."""

    prediction: Prediction
    shift: float = 1.0
    """timestep shift of a flow model, as the graph samples with it; 1 = none"""
    patch: int = 2
    """side of an image token, in latent pixels"""


def density_of(family: Family, objective: ObjectiveConfig, height: int, width: int) -> Density:
    """The density of a recipe's timesteps.

    shift: by timestep_shift, or by the model's own where that is 0. resolution_shift: by exp(mu), mu linear in the
    number of image tokens from 0.5 at 256 to 1.15 at 4096, as Flux was trained. auto: the prediction's usual one.

    Args:
        height, width: of the latent.
    """
    sampling = objective.timestep_sampling
    if sampling == "auto":
        sampling = family.prediction.usual_sampling
    match sampling:
        case "uniform" | "logit_normal":
            shape, shift = sampling, 1.0
        case "shift":
            shape, shift = "logit_normal", objective.timestep_shift or family.shift
        case "resolution_shift":
            tokens = height * width / family.patch**2
            mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
            shape, shift = "logit_normal", math.exp(mu)
        case _:
            raise ValueError(f"timestep_sampling {sampling!r} is not known")
    return Density(
        shape,
        logit_mean=objective.logit_mean,
        logit_std=objective.logit_std,
        shift=shift,
        min_timestep=objective.min_timestep,
        max_timestep=objective.max_timestep,
    )
