"""Noise levels and timestep shift of a MODEL."""

from __future__ import annotations

import math

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError

import models


def test_shift_is_the_models_own():
    assert host.family(models.sd15().model).shift == 1.0
    assert host.family(models.sd3().model).shift == 3.0
    assert host.family(models.flux(guidance=False).model).shift == 1.0
    flux = host.family(models.flux().model)
    assert flux.prediction.name == "flow"
    assert flux.shift == pytest.approx(math.exp(1.15))
    sigmas = flux.prediction.sigmas
    u = torch.arange(1, len(sigmas) + 1) / len(sigmas)
    assert torch.allclose(sigmas, flux.shift * u / (1.0 + (flux.shift - 1.0) * u), atol=1e-6)


def test_shift_of_a_patched_sampling_is_the_patchs():
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    assert host.family(ModelSamplingSD3().patch(models.sd3().model, 5.5)[0]).shift == 5.5


def test_another_table_of_noise_levels_is_the_twins_alone():
    small = models.v_prediction(models.sd15())
    sampling = small.model.get_model_object("model_sampling")
    before, log_before = sampling.sigmas.clone(), sampling.log_sigmas.clone()
    table = torch.linspace(0.03, 4500.0, 1000)
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.float32)
        host.set_sigmas(twin, table)
    assert torch.equal(twin.model_sampling.sigmas.cpu(), table)
    assert twin.model_sampling.timestep(table[[0, 500, 999]].to(twin.device)).tolist() == [0, 500, 999]
    assert torch.equal(sampling.sigmas, before) and torch.equal(sampling.log_sigmas, log_before)


def test_a_flow_model_has_no_table_of_noise_levels_to_replace():
    with host.training_mode():
        twin = host.trainable_twin(models.sd3().model, torch.float32)
        with pytest.raises(InputError, match="ModelSamplingDiscreteFlow.*no table that can be replaced"):
            host.set_sigmas(twin, torch.linspace(0.1, 1.0, 10))
