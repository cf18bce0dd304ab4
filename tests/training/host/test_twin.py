"""The twin computes what the host computes, and is nobody's but the run's."""

from __future__ import annotations

import comfy.hooks
import comfy.model_management
import comfy.samplers
import comfy.sd
import pytest
import torch
from lora_kiln.training import host

import models

SHAPE = (1, 4, 8, 8)


def denoise_by_host(small: models.Small, x: torch.Tensor, sigma: float, text: str) -> tuple[torch.Tensor, ...]:
    """x_0 by the host's own guider, patches and all, and the x_t it was given."""
    guider = comfy.samplers.CFGGuider(small.model)
    conditioning = host.encode_text(small.clip, text)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    seen = []

    def sampler_function(model, noise, sigmas, extra_args, callback=None, disable=None):
        seen.append(model(noise, sigmas[:1].expand(len(noise)), **extra_args))
        return noise

    sampler = comfy.samplers.KSAMPLER(sampler_function)
    sigmas = torch.tensor([sigma, 0.0])
    scaled = small.model.get_model_object("model_sampling").noise_scaling(torch.tensor(sigma), x, torch.zeros_like(x))
    with torch.inference_mode():  # as the host runs its nodes
        guider.sample(x.clone(), torch.zeros_like(x), sampler, sigmas, disable_pbar=True, seed=0)
    return seen[0].cpu(), scaled


def denoise_by_twin(small: models.Small, x_t: torch.Tensor, sigma: float, text: str) -> torch.Tensor:
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.float32)
        groups = host.batch_conds(twin, [host.encode_text(small.clip, text)], x_t)
        out = host.predict(twin, host.transformer_options(small.model), x_t, torch.tensor([sigma]), groups)
        assert out.requires_grad is False
        return out


def lora_of_ones(small: models.Small) -> tuple[dict[str, torch.Tensor], str, torch.Tensor]:
    """A LoRA of rank 1 on one layer, that layer's key and its weight."""
    names = host.layer_names(small.model)
    key = next(key for key in names if key.endswith("attn1.to_q.weight"))
    weight = small.model.model.state_dict()[key]
    up, down = torch.ones(weight.shape[0], 1), torch.ones(1, weight.shape[1])
    kohya = names[key].kohya
    return {f"{kohya}.lora_up.weight": up, f"{kohya}.lora_down.weight": down}, key, weight


FAMILIES = {
    "sd15": (models.sd15, 3.0), "sdxl": (models.sdxl, 3.0), "v": (lambda: models.v_prediction(models.sd15()), 3.0),
    "sd3": (models.sd3, 0.6), "flux": (models.flux, 0.6), "schnell": (lambda: models.flux(guidance=False), 0.6),
    "chroma": (models.chroma, 0.6), "pixart": (models.pixart, 3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_twin_predicts_as_the_host_does(name):
    make, sigma = FAMILIES[name]
    small = make()
    x = models.random_latents(small.model, 1, seed=1)
    by_host, x_t = denoise_by_host(small, x, sigma, "a cat")
    by_twin = denoise_by_twin(small, x_t, sigma, "a cat")
    assert torch.allclose(by_host, by_twin, rtol=1e-4, atol=1e-4)


def test_the_twin_carries_the_loras_that_are_on_the_model():
    small = models.sd15()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    lora, _, _ = lora_of_ones(small)
    plain = denoise_by_host(small, x, 3.0, "a cat")[0]
    patched = models.Small(host.with_lora(small.model, None, lora, 0.7)[0], small.clip, small.vae)
    by_host, x_t = denoise_by_host(patched, x, 3.0, "a cat")
    assert not torch.allclose(plain, by_host, atol=1e-3)
    assert torch.allclose(by_host, denoise_by_twin(patched, x_t, 3.0, "a cat"), rtol=1e-4, atol=1e-4)


def test_the_twin_of_the_plain_model_is_plain_while_a_patched_clone_is_loaded():
    """The host bakes a clone's LoRA into the weights they share; the twin takes the base weights all the same."""
    small = models.sd15()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected, x_t = denoise_by_host(small, x, 3.0, "a cat")
    lora, key, weight = lora_of_ones(small)
    patched = host.with_lora(small.model, None, lora, 1.0)[0]
    comfy.model_management.load_models_gpu([patched])
    assert not torch.equal(small.model.model.state_dict()[key], weight) or patched.backup
    assert torch.allclose(expected, denoise_by_twin(small, x_t, 3.0, "a cat"), rtol=1e-4, atol=1e-4)


def _loaded_by_hooks(clone, lora):
    clone, _, hooks = comfy.hooks.load_hook_lora_for_models(clone, None, lora, 1.0, 1.0)
    clone.patch_hooks(hooks)
    return clone


def _injected(clone, lora):
    clone = comfy.sd.load_bypass_lora_for_models(clone, None, lora, 1.0, 1.0)[0]
    comfy.model_management.load_models_gpu([clone])
    return clone


def _loaded_in_part(clone, lora):
    clone = host.with_lora(clone, None, lora, 1.0)[0]
    clone.patch_model(clone.load_device, lowvram_model_memory=1)
    return clone


WAYS_TO_SHARE = {"in part": _loaded_in_part, "by hooks": _loaded_by_hooks, "injected": _injected}


@pytest.mark.parametrize("way", WAYS_TO_SHARE)
def test_the_twin_has_no_lora_that_was_left_on_what_clones_share(way):
    small = models.sd15()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    lora, key, weight = lora_of_ones(small)
    layer = small.model.model.get_submodule(key.removesuffix(".weight"))
    probe = torch.ones(1, weight.shape[1])
    with torch.inference_mode():
        before, expected = layer(probe), denoise_by_twin(small, x, 3.0, "a cat")
        other = WAYS_TO_SHARE[way](small.model, lora)
        left = layer(probe)
        assert not torch.equal(left, before)
        assert torch.equal(denoise_by_twin(small, x, 3.0, "a cat"), expected)
        assert torch.equal(layer(probe), left)  # the other MODEL still has its LoRA
        other.detach()


def test_the_twin_shares_no_tensor_with_the_model():
    small = models.sd15()
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.float32)
    theirs = {tensor.data_ptr() for tensor in small.model.model.state_dict().values() if tensor.numel()}
    ours = [name for name, tensor in twin.state_dict().items() if tensor.numel() and tensor.data_ptr() in theirs]
    assert ours == []
    assert not any(tensor.is_inference() for tensor in twin.state_dict().values())


def test_a_bf16_twin_computes_in_bf16():
    small = models.sd15()
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.bfloat16)
    assert twin.get_dtype_inference() == torch.bfloat16
    assert {parameter.dtype for parameter in twin.diffusion_model.parameters()} == {torch.bfloat16}


def test_the_twin_ignores_what_another_clone_has_put_on_the_shared_model():
    """On a processor a clone's sampling stays on the model they share after it was used."""
    small = models.sd15()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected, x_t = denoise_by_host(small, x, 3.0, "a cat")
    other = models.v_prediction(small)
    comfy.model_management.load_models_gpu([other.model])
    assert torch.allclose(expected, denoise_by_twin(small, x_t, 3.0, "a cat"), rtol=1e-4, atol=1e-4)


def test_a_method_patched_onto_the_model_runs_on_the_twin():
    import types

    small = models.sd15()
    inner = small.model.model.diffusion_model

    def forward(self, *args, **kwargs):
        return 2.0 * type(self).forward(self, *args, **kwargs)

    with host.training_mode():
        plain = host.trainable_twin(small.model, torch.float32)
        small.model.add_object_patch("diffusion_model.forward", types.MethodType(forward, inner))
        twin = host.trainable_twin(small.model, torch.float32)
    assert twin.diffusion_model.forward.function.__self__ is twin.diffusion_model
    assert "forward" not in vars(plain.diffusion_model)
    assert "forward" not in vars(inner)
