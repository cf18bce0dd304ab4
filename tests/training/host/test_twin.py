"""The twin computes what the host computes, and is nobody's but the run's."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import attached, find_targets, make_adapters
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig

import models

SHAPE = (1, 4, 8, 8)
LORA = LoRAConfig.of(rank=2, alpha=2.0, seed=1)


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
        twin = host.trainable_view(small.model, torch.float32)
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


def test_the_twin_shares_no_tensor_with_the_model():
    small = models.sd15()
    with host.training_mode():
        twin = host.trainable_view(small.model, torch.float32)
    theirs = {tensor.data_ptr() for tensor in small.model.model.state_dict().values() if tensor.numel()}
    ours = [name for name, tensor in twin.state_dict().items() if tensor.numel() and tensor.data_ptr() in theirs]
    assert ours == []
    assert not any(tensor.is_inference() for tensor in twin.state_dict().values())


def test_training_mode_puts_the_hosts_flag_back_after_an_error():
    with pytest.raises(RuntimeError, match="stop"), host.training_mode():
        assert comfy.model_management.in_training is True
        with host.sampling_mode():
            assert comfy.model_management.in_training is False
        raise RuntimeError("stop")
    assert comfy.model_management.in_training is False


def test_a_bf16_twin_computes_in_bf16():
    small = models.sd15()
    with host.training_mode():
        twin = host.trainable_view(small.model, torch.bfloat16)
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
        plain = host.trainable_view(small.model, torch.float32)
        small.model.add_object_patch("diffusion_model.forward", types.MethodType(forward, inner))
        twin = host.trainable_view(small.model, torch.float32)
    assert twin.diffusion_model.forward.__self__ is twin.diffusion_model
    assert "forward" not in vars(plain.diffusion_model)
    assert "forward" not in vars(inner)


def test_the_twin_of_a_text_encoder_encodes_as_the_clip_does_with_its_lora():
    small = models.sdxl()
    key = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    plain = host.encode_text(small.clip, "a cat")[0][0]
    clip = small.clip.clone()
    clip.add_patches({key: ("diff", (torch.ones(models.WIDTH, models.WIDTH),))}, 0.1)
    with host.training_mode():
        twin = host.twin_of(clip.patcher, torch.float32)
        embedding, pooled = twin.encode_token_weights(small.clip.tokenize("a cat"))[:2]
    expected, options = host.encode_text(clip, "a cat")[0]
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.allclose(embedding.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(pooled.cpu(), options["pooled_output"], rtol=1e-4, atol=1e-4)
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in twin.state_dict().values())


def test_the_twin_of_a_text_encoder_keeps_its_number_format():
    """Rounded once more it would train on other embeddings than those it is used with."""
    small = models.sdxl()
    with torch.inference_mode():
        comfy.model_management.archive_model_dtypes(small.clip.cond_stage_model.half())
    with host.training_mode():
        twin = host.trainable_text_encoder(small.clip)
        embedding = host.encode_text_with(small.clip, twin, "a cat")[0][0]
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.float16}
    assert torch.allclose(embedding, host.encode_text(small.clip, "a cat")[0][0], rtol=1e-5, atol=1e-5)


def test_another_table_of_noise_levels_is_the_twins_alone():
    small = models.v_prediction(models.sd15())
    sampling = small.model.get_model_object("model_sampling")
    before, log_before = sampling.sigmas.clone(), sampling.log_sigmas.clone()
    table = torch.linspace(0.03, 4500.0, 1000)
    with host.training_mode():
        twin = host.trainable_view(small.model, torch.float32)
        host.set_sigmas(twin, table)
    assert torch.equal(twin.model_sampling.sigmas.cpu(), table)
    assert twin.model_sampling.timestep(table[[0, 500, 999]].to(twin.device)).tolist() == [0, 500, 999]
    assert torch.equal(sampling.sigmas, before) and torch.equal(sampling.log_sigmas, log_before)


def test_a_flow_model_has_no_table_of_noise_levels_to_replace():
    with host.training_mode():
        twin = host.trainable_view(models.sd3().model, torch.float32)
        with pytest.raises(InputError, match="ModelSamplingDiscreteFlow.*no table that can be replaced"):
            host.set_sigmas(twin, torch.linspace(0.1, 1.0, 10))


# ---------------------------------------------------------------- gradients of every family


class Probe:
    """A float64 twin with adapters on every layer, and a linear function of what its network gives."""

    def __init__(self, model, checkpointed: bool):
        self.twin = host.trainable_view(model, torch.float64)
        self.blocks = host.checkpoint_blocks(self.twin) if checkpointed else []
        self.found = find_targets(self.twin, "all linear and convolution")
        self.adapters = make_adapters(self.found, LORA.adapter, LORA.run.seed)
        for number, adapter in enumerate(self.adapters.values()):
            adapter.up.data = 0.3 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(number))
            adapter.double()
        self.parameters = [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]
        self.options = host.transformer_options(model)
        self.x_t, self.mix = models.random_latents(model, 2, seed=1), models.random_latents(model, 2, seed=2)
        self.groups = host.batch_conds(
            self.twin, [models.random_conditioning(model, seed) for seed in (3, 4)], self.x_t
        )
        self.outputs: list[torch.Tensor] = []
        self.twin.diffusion_model.register_forward_hook(lambda module, args, output: self.outputs.append(output))

    def value(self) -> torch.Tensor:
        """Before the host rounds the output to float32."""
        host.predict(self.twin, self.options, self.x_t, torch.tensor([0.3, 0.7]), self.groups)
        return (self.outputs.pop() * self.mix).sum()

    def gradients(self) -> list[torch.Tensor]:
        with attached(self.found, self.adapters, host.PRODUCTS):
            self.value().backward()
        return [torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters]

    def slope(self, directions: list[torch.Tensor], step: float = 1e-3) -> float:
        """The central difference of `value` along a direction."""
        start = [parameter.detach().clone() for parameter in self.parameters]
        values = []
        for sign in (1.0, -1.0):
            for parameter, old, direction in zip(self.parameters, start, directions, strict=True):
                parameter.data = old + sign * step * direction
            with attached(self.found, self.adapters, host.PRODUCTS), torch.no_grad():
                values.append(self.value().item())
        for parameter, old in zip(self.parameters, start, strict=True):
            parameter.data = old
        return (values[0] - values[1]) / (2.0 * step)


@pytest.mark.parametrize("name", models.TRANSFORMERS)
def test_gradients_are_those_of_finite_differences(name):
    with host.training_mode():
        probe = Probe(models.TRANSFORMERS[name](), checkpointed=False)
        gradients = probe.gradients()
        for kind in ("down", "up"):  # along the gradient itself, where an error of any layer shows
            names = [name for adapter in probe.adapters.values() for name, _ in adapter.named_parameters()]
            part = [each if name == kind else 0.0 * each for each, name in zip(gradients, names, strict=True)]
            norm = torch.stack([each.norm() for each in part]).norm()
            assert probe.slope([each / norm for each in part]) == pytest.approx(norm.item(), rel=1e-3)


@pytest.mark.parametrize("name", models.TRANSFORMERS)
def test_checkpointing_changes_no_gradient(name):
    """Blocks that add in place write over what the recomputation needs, were they not given copies."""
    with host.training_mode():
        plain, checkpointed = (Probe(models.TRANSFORMERS[name](), flag) for flag in (False, True))
        assert checkpointed.blocks
        for ours, theirs in zip(checkpointed.gradients(), plain.gradients(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_broken_forward_pass_leaves_no_hooks_of_checkpointing_behind():
    with host.training_mode():
        probe = Probe(models.sd3().model, checkpointed=True)
        block = probe.twin.diffusion_model.joint_blocks[1]
        hook = block.x_block.attn.proj.register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError) as kept, attached(probe.found, probe.adapters, host.PRODUCTS):
            probe.value()
        hook.remove()
        x = torch.ones(2, requires_grad=True)
        x.square().sum().backward()
        assert kept.value.__traceback__ is not None and torch.equal(x.grad, 2 * torch.ones(2))
        assert all(gradient.isfinite().all() for gradient in probe.gradients())


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_half_precision_attention_is_the_hosts(name):
    make, sigma = FAMILIES[name]
    small = make()
    with host.training_mode():
        x_t = models.random_latents(small.model, 2, seed=1)
        values = []
        for dtype in (torch.float32, torch.bfloat16):
            twin = host.trainable_view(small.model, dtype)
            is_unet = hasattr(twin.diffusion_model, "input_blocks")
            told = host.encode_text(small.clip, "a") if is_unet else models.random_conditioning(small.model, 3)
            groups = host.batch_conds(twin, [told] * 2, x_t)
            options = host.transformer_options(small.model)
            values.append(host.predict(twin, options, x_t, torch.full((2,), sigma), groups))
        exact, rough = values
        assert (rough - exact).norm() < 0.05 * exact.norm()


def test_flux_is_checkpointed_block_by_block():
    with host.training_mode():
        probe = Probe(models.flux().model, checkpointed=True)
    assert probe.blocks == ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1"]


def test_training_sums_fp16_in_fp32_and_puts_the_hosts_choice_back() -> None:
    products = torch.backends.cuda.matmul
    before, products.allow_fp16_accumulation = products.allow_fp16_accumulation, True  # as --fast sets it
    try:
        with host.training_mode():
            assert not products.allow_fp16_accumulation
        assert products.allow_fp16_accumulation
    finally:
        products.allow_fp16_accumulation = before


@pytest.mark.parametrize(
    ("make", "takes"),
    [
        (lambda: models.sd15().model, True), (lambda: models.sdxl().model, True),
        (models.qwen_image, False), (models.lumina2, False),
    ],
)  # fmt: skip
def test_models_that_the_host_keeps_from_fp16(make, takes: bool) -> None:
    assert host.takes_fp16(make()) == takes
