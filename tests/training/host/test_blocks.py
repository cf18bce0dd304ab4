"""Gradients through the repeated blocks are right in every family, checkpointed or not."""

from __future__ import annotations

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import attached, find_targets, make_adapters
from lora_kiln.training.config import LoRAConfig

import models

LORA = LoRAConfig.of(rank=2, alpha=2.0, seed=1)


class Probe:
    """A float64 twin with adapters on every layer, and a linear function of what its network gives."""

    def __init__(self, model, checkpointed: bool):
        self.twin = host.trainable_twin(model, torch.float64)
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


def test_flux_is_checkpointed_block_by_block():
    with host.training_mode():
        probe = Probe(models.flux().model, checkpointed=True)
    assert probe.blocks == ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1"]


def test_a_unet_without_a_middle_has_its_other_blocks():
    """Small UNets such as KOALA-700M: the host leaves the middle out."""
    base = models.sd15().model.model
    names = [name for name, _ in host.repeated_blocks(base)]
    base.diffusion_model.middle_block = None
    left = [name for name in names if not name.startswith("middle_block")]
    assert [name for name, _ in host.repeated_blocks(base)] == left != names
