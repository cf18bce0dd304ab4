"""Which layers get an adapter, and putting adapters on and off."""

import pytest
import torch
from lora_kiln.training.adapters import lora_difference
from lora_kiln.training.attach import attached, find_targets, make_adapters
from lora_kiln.training.config import TARGETS
from lora_kiln.training.problems import InputError
from torch import nn

from models import hooks, randomise, sd15

RANK, SCALE, SEED = 2, 0.5, 3


class Base(nn.Module):
    """Holds a diffusion model, as the host's BaseModel does."""

    def __init__(self, diffusion_model: nn.Module):
        super().__init__()
        self.diffusion_model = diffusion_model


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    """The host's SD1.5 UNet, narrow."""
    return sd15().model.model


@pytest.fixture
def small() -> Base:
    """A convolution and a linear layer in a row."""
    base = Base(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 16, 5)))
    randomise(base, 0)
    return base


def kinds(unet: nn.Module, targets: str) -> set[str]:
    """What the last parts of the targets' names are called in the UNet."""
    return {target.name.split(".", 2)[2] for target in find_targets(unet, targets)}


def learned(found, seed: int = SEED):
    """Adapters with an up that is not zero."""
    adapters = make_adapters(found, RANK, SCALE, seed)
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters.values():
        adapter.up.data = torch.randn(adapter.up.shape, generator=generator)
    return adapters


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        ("attention", {"to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out"}),
        (
            "attention and feed-forward",
            {"to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "ff"},
        ),
    ],
)
def test_targets_of_a_unet_are_those_kohya_trains(unet: nn.Module, targets: str, parts: set[str]) -> None:
    inside = [name for name in kinds(unet, targets)]
    assert {part for name in inside for part in name.split(".") if part in parts} == parts
    assert all(parts & set(name.split(".")) for name in inside)


def test_every_linear_and_convolution_layer_is_a_target_where_all_are_asked(unet: nn.Module) -> None:
    layers = [m for m in unet.diffusion_model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert {id(target.module) for target in find_targets(unet, TARGETS[2])} == {id(layer) for layer in layers}


def test_each_choice_of_targets_holds_the_one_before(unet: nn.Module) -> None:
    fewer, more, most = ({target.name for target in find_targets(unet, each)} for each in TARGETS)
    assert fewer < more < most


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(InputError, match="no such layer"):
        find_targets(Base(nn.Sequential(nn.Linear(4, 4))), "attention")


def test_layers_outside_the_diffusion_model_are_left_alone() -> None:
    base = Base(nn.Sequential(nn.Linear(4, 4)))
    base.other = nn.Linear(4, 4)
    assert [target.name for target in find_targets(base, TARGETS[2])] == ["diffusion_model.0"]


def test_grouped_convolutions_are_left_alone() -> None:
    base = Base(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4)))
    assert [target.name for target in find_targets(base, TARGETS[2])] == ["diffusion_model.1"]


def test_fresh_adapters_change_nothing(small: Base) -> None:
    found, x = find_targets(small, TARGETS[2]), torch.randn(2, 3, 4, 4)
    expected = small.diffusion_model(x)
    with attached(found, make_adapters(found, RANK, SCALE, SEED)):
        assert torch.equal(small.diffusion_model(x), expected)


def test_attached_adapters_are_the_merged_weights(small: Base) -> None:
    found, x = find_targets(small, TARGETS[2]), torch.randn(2, 3, 4, 4)
    adapters = learned(found)
    with torch.no_grad(), attached(found, adapters):
        bypass = small.diffusion_model(x)
    with torch.no_grad():
        for target in found:
            adapter = adapters[target.key]
            target.module.weight += lora_difference(adapter.down, adapter.up, SCALE)
        torch.testing.assert_close(bypass, small.diffusion_model(x), rtol=1e-4, atol=1e-4)


def test_adapters_come_off_at_the_end(small: Base) -> None:
    found, x = find_targets(small, TARGETS[2]), torch.randn(2, 3, 4, 4)
    expected, before = small.diffusion_model(x), hooks(small)
    with attached(found, learned(found)):
        assert not torch.allclose(small.diffusion_model(x), expected)
    assert hooks(small) == before and torch.equal(small.diffusion_model(x), expected)


def test_adapters_come_off_after_an_error(small: Base) -> None:
    found, before = find_targets(small, TARGETS[2]), hooks(small)
    with pytest.raises(KeyboardInterrupt), attached(found, learned(found)):
        raise KeyboardInterrupt
    assert hooks(small) == before


def test_adapters_come_off_when_one_cannot_be_put_on(small: Base) -> None:
    found, before = find_targets(small, TARGETS[2]), hooks(small)
    adapters = learned(found)
    del adapters[found[-1].key]
    with pytest.raises(KeyError), attached(found, adapters):
        pass
    assert hooks(small) == before


def test_weights_do_not_change_while_adapters_learn(small: Base) -> None:
    found = find_targets(small, TARGETS[2])
    small.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    adapters = learned(found)
    parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
    with attached(found, adapters):
        small.diffusion_model(torch.randn(2, 3, 4, 4)).sum().backward()
    torch.optim.SGD(parameters, lr=1.0).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_an_adapter_keeps_the_layers_number_format(small: Base) -> None:
    found = find_targets(small, TARGETS[2])
    small.bfloat16()
    with attached(found, learned(found)):
        assert small.diffusion_model(torch.randn(2, 3, 4, 4).bfloat16()).dtype == torch.bfloat16


def test_adapters_follow_from_the_seed(small: Base) -> None:
    found = find_targets(small, TARGETS[2])
    one, same, other = (make_adapters(found, RANK, SCALE, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[key].down, same[key].down) for key in one)
    assert not any(torch.equal(one[key].down, other[key].down) for key in one)


def test_an_adapter_does_not_know_the_others(small: Base) -> None:
    found = find_targets(small, TARGETS[2])
    alone = make_adapters(found[1:], RANK, SCALE, SEED)
    assert torch.equal(alone[found[1].key].down, make_adapters(found, RANK, SCALE, SEED)[found[1].key].down)
