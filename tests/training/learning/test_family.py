"""The timesteps that a family is trained at."""

import math

import pytest
import torch
from lora_kiln.training.config import ObjectiveConfig
from lora_kiln.training.learning.family import Family, density_of
from lora_kiln.training.learning.prediction import Eps, Flow

FLOW = Family(Flow(torch.linspace(0.001, 1.0, 1000)), shift=3.0)
DISCRETE = Family(Eps(torch.arange(1000.0)))


@pytest.mark.parametrize(
    ("family_", "sampling", "timestep_shift", "expected"),
    [
        (DISCRETE, "auto", 2.0, ("uniform", 1.0)),
        (FLOW, "auto", 0.0, ("logit_normal", 3.0)),
        (FLOW, "uniform", 2.0, ("uniform", 1.0)),
        (FLOW, "logit_normal", 2.0, ("logit_normal", 1.0)),
        (FLOW, "shift", 2.0, ("logit_normal", 2.0)),
        (FLOW, "shift", 0.0, ("logit_normal", 3.0)),
    ],
)
def test_timestep_sampling_by_its_name(family_: Family, sampling: str, timestep_shift: float, expected) -> None:
    objective = ObjectiveConfig(timestep_sampling=sampling, timestep_shift=timestep_shift)
    density = density_of(family_, objective, 64, 64)
    assert (density.shape, density.shift) == expected


@pytest.mark.parametrize(("side", "mu"), [(32, 0.5), (64, 0.63), (128, 1.15)])
def test_resolution_shift_is_fluxs(side: int, mu: float) -> None:
    """mu of 256 tokens, of a picture of 512 pixels and of one of 1024."""
    objective = ObjectiveConfig(timestep_sampling="resolution_shift", timestep_shift=2.0)
    density = density_of(FLOW, objective, side, side)
    assert density.shape == "logit_normal" and density.shift == pytest.approx(math.exp(mu))


def test_an_unknown_timestep_sampling_is_refused() -> None:
    objective = ObjectiveConfig()
    object.__setattr__(objective, "timestep_sampling", "mode")
    with pytest.raises(ValueError, match="'mode'"):
        density_of(FLOW, objective, 64, 64)
