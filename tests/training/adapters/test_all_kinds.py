"""What holds for every parametrisation: bypass equals merged equals the host's loader; the start changes nothing."""

from __future__ import annotations

import comfy.lora
import comfy.ops
import pytest
import torch
from comfy.weight_adapter.bypass import BypassForwardHook
from comfy.weight_adapter.oft import OFTDiff
from lora_kiln.training.adapters import EXACT, Adapter, adapter_from_tensors, new_adapter
from lora_kiln.training.adapters.base import apply_weight
from lora_kiln.training.adapters.dropout import draw_dropout
from lora_kiln.training.config import ADAPTERS, LoRAConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

ops = comfy.ops.manual_cast
LAYERS = {
    "linear": (lambda: ops.Linear(24, 12), (2, 5, 24)),
    "linear without bias": (lambda: ops.Linear(24, 12, bias=False), (2, 5, 24)),
    "1d": (lambda: ops.Conv1d(8, 12, 3, stride=2, padding=1), (2, 8, 9)),
    "1x1": (lambda: ops.Conv2d(8, 12, 1), (2, 8, 7, 5)),
    "3x3": (lambda: ops.Conv2d(8, 12, 3, padding=1), (2, 8, 7, 5)),
    "strided": (lambda: ops.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 7, 6)),
    "dilated": (lambda: ops.Conv2d(8, 12, 3, padding=2, dilation=2), (2, 8, 7, 5)),
    "circular": (lambda: ops.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), (2, 8, 7, 5)),
    "same": (lambda: ops.Conv2d(8, 12, (3, 5), padding="same", bias=False), (2, 8, 7, 5)),
    "3d": (lambda: ops.Conv3d(8, 12, (1, 3, 3), padding=(0, 1, 1)), (2, 8, 2, 5, 5)),
}
RANK, ALPHA = 3, 2.0
SAVED = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # relative to the largest change

all_kinds = pytest.mark.parametrize("kind", ADAPTERS)
all_layers = pytest.mark.parametrize("name", LAYERS)


def layer_and_input(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A frozen layer of the host's class with random weights, and an input for it."""
    make, shape = LAYERS[name]
    layer, generator = make().requires_grad_(False), torch.Generator().manual_seed(7)
    for parameter in layer.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer, torch.randn(shape, generator=generator)


def fresh(kind: str, layer: nn.Module, rank: int = RANK) -> Adapter:
    return new_adapter(kind, layer, rank, ALPHA, torch.Generator().manual_seed(0))


def learned(kind: str, layer: nn.Module) -> Adapter:
    """An adapter all of whose parameters have moved."""
    adapter, generator = fresh(kind, layer), torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return adapter


def draw(adapter: Adapter, step: int = 0, **shares: float) -> None:
    draw_dropout({"it": adapter}, LoRAConfig.of(**shares).adapter, 1, step, 0)


def output_with(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    output = apply_weight(layer, x, weight)
    if layer.bias is None:
        return output
    return output + layer.bias.reshape(-1, *(1 for _ in weight.shape[2:]))


def host_merged(tensors: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """What the host's loader makes of a weight and a file's entries."""
    lora = {f"layer.{suffix}": tensor for suffix, tensor in tensors.items()}
    patches = comfy.lora.load_lora(lora, {"layer": "layer.weight"})
    return comfy.lora.calculate_weight(
        [(1.0, patches["layer.weight"], 1.0, None, None)], weight.clone(), "layer.weight"
    )


def as_saved(adapter: Adapter, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: t if name in EXACT else t.to(dtype) for name, t in adapter.tensors().items()}


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, other.abs().max().item()))


@all_kinds
@all_layers
def test_the_output_is_that_of_the_merged_weight(kind: str, name: str) -> None:
    layer, x = layer_and_input(name)
    adapter = learned(kind, layer)
    with torch.no_grad():
        output, merged = adapter(layer, layer, x), adapter.merged(layer.weight)
        assert merged.dtype == torch.float32 and not torch.allclose(merged, layer.weight, atol=1e-2)
        close(output, output_with(layer, merged, x), 1e-5)
        torch.testing.assert_close(adapter.difference(layer.weight), merged - layer.weight, atol=1e-6, rtol=0)


@all_kinds
@all_layers
@pytest.mark.parametrize("dtype", SAVED)
def test_the_host_applies_the_saved_file_as_we_do(kind: str, name: str, dtype: torch.dtype) -> None:
    layer, _ = layer_and_input(name)
    adapter = learned(kind, layer)
    with torch.no_grad():
        tensors, merged = as_saved(adapter, dtype), adapter.merged(layer.weight)
        close(host_merged(tensors, layer.weight), merged, SAVED[dtype])
        reloaded = adapter_from_tensors(tensors)
        assert reloaded is not None
        close(reloaded.merged(layer.weight), host_merged(tensors, layer.weight), 1e-6)  # rounded alike


BYPASS = [
    (kind, name)
    for kind in ("lora", "loha", "lokr", "oft")
    for name in LAYERS
    # The host's bypass leaves padding modes out, takes LoKr for 2-D convolutions only, and turns OFT's bias too.
    if name != "circular" and not (kind == "lokr" and name in ("1d", "3d"))
    if kind != "oft" or name in ("linear without bias", "same")
]


@pytest.mark.parametrize(("kind", "name"), BYPASS)
def test_the_hosts_bypass_gives_our_output(kind: str, name: str) -> None:
    layer, x = layer_and_input(name)
    adapter = learned(kind, layer)
    lora = {f"layer.{suffix}": tensor for suffix, tensor in adapter.tensors().items()}
    theirs = comfy.lora.load_lora(lora, {"layer": "layer.weight"})["layer.weight"]
    if kind == "oft":  # the loaded form raises (a view of what does not lie in a row); its trainer's form works
        theirs = OFTDiff((theirs.weights[0], None, 0.0, None))
    hook = BypassForwardHook(layer, theirs)
    with torch.no_grad():
        expected = adapter(layer, layer, x)
        hook.inject()
        close(layer(x), expected, 1e-5)


@all_kinds
@all_layers
def test_a_fresh_adapter_changes_nothing(kind: str, name: str) -> None:
    layer, x = layer_and_input(name)
    adapter = fresh(kind, layer)
    assert torch.equal(adapter(layer, layer, x), layer(x))
    close(adapter.merged(layer.weight), layer.weight, 1e-6 if kind == "dora" else 0)


@all_kinds
@pytest.mark.parametrize("name", ["linear", "strided"])
def test_a_fresh_adapter_begins_to_learn(kind: str, name: str) -> None:
    layer, x = layer_and_input(name)
    adapter = fresh(kind, layer)
    for _ in range(2):  # factors beside a zero factor learn from the second step on
        adapter.zero_grad()
        (adapter(layer, layer, x) ** 2).sum().backward()
        assert any(parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter -= 1e-3 * parameter.grad.sign()
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())


@all_kinds
@pytest.mark.parametrize("name", ["linear", "strided"])
def test_a_file_can_be_trained_on(kind: str, name: str) -> None:
    layer, x = layer_and_input(name)
    adapter = learned(kind, layer)
    again = adapter_from_tensors(adapter.tensors())
    assert again is not None and (again.kind, again.scale) == (kind, adapter.scale)
    assert torch.equal(again(layer, layer, x), adapter(layer, layer, x))
    tensors, saved = adapter.tensors(), again.tensors()
    assert tensors.keys() == saved.keys() and all(torch.equal(tensors[key], saved[key]) for key in tensors)
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in tensors.values())


@all_kinds
@pytest.mark.parametrize("name", ["linear", "3x3"])
def test_outputs_keep_the_layers_number_format_and_gradients_are_float32(kind: str, name: str) -> None:
    layer, x = layer_and_input(name)
    adapter = learned(kind, layer)
    expected = adapter(layer, layer, x)
    layer.bfloat16()
    output = adapter(layer, layer, x.bfloat16())
    assert output.dtype == torch.bfloat16
    close(output.float(), expected, 4e-2)
    output.float().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in adapter.parameters())


@all_kinds
@pytest.mark.parametrize("name", ["linear", "strided"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_see_the_same_dropout(kind: str, name: str, reentrant: bool) -> None:
    layer, x = layer_and_input(name)
    adapter = learned(kind, layer)
    p = 0.4 if adapter.has_input_dropout else 0.0
    q = 0.4 if adapter.has_rank_dropout else 0.0
    draw(adapter, dropout=p, rank_dropout=q)
    expected, gradients = {}, {}
    for how in ("plain", "recomputed"):
        adapter.zero_grad()
        start = x.clone().requires_grad_()
        again = (lambda y: adapter(layer, layer, y)) if how == "plain" else _recomputed(adapter, layer, reentrant)
        expected[how] = again(start)
        torch.manual_seed(99)  # whatever else draws in between
        (expected[how] ** 2).sum().backward()
        gradients[how] = [parameter.grad.clone() for parameter in adapter.parameters()]
    # Another draw differs by whole entries; where tensors lie in memory moves the last bits of a product.
    torch.testing.assert_close(expected["plain"], expected["recomputed"])
    torch.testing.assert_close(gradients["plain"], gradients["recomputed"])
    adapter.clear_dropout()
    assert (p or q) == 0 or not torch.allclose(adapter(layer, layer, x), expected["plain"])


def _recomputed(adapter: Adapter, layer: nn.Module, reentrant: bool):
    return lambda y: checkpoint(lambda z: adapter(layer, layer, z), y, use_reentrant=reentrant)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize(("dropout", "rank_dropout"), [(0.3, 0.0), (0.0, 0.3)])
def test_dropout_keeps_the_mean(kind: str, dropout: float, rank_dropout: float) -> None:
    layer, x = layer_and_input("linear")
    adapter = learned(kind, layer)
    if rank_dropout and not adapter.has_rank_dropout:
        return
    draws = 4000
    with torch.no_grad():
        whole, total, square = adapter(layer, layer, x), torch.zeros(2, 5, 12), torch.zeros(2, 5, 12)
        for step in range(draws):
            draw(adapter, step, dropout=dropout, rank_dropout=rank_dropout)
            change = adapter(layer, layer, x) - whole
            total, square = total + change, square + change**2
    mean, deviation = total / draws, (square / draws).sqrt()
    assert deviation.max() > 0.05
    assert ((mean.abs() / (deviation / draws**0.5 + 1e-6)) < 5).all()


@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
def test_rank_dropout_leaves_whole_ranks_out(kind: str) -> None:
    layer, x = layer_and_input("linear")
    adapter = learned(kind, layer)
    draw(adapter, rank_dropout=0.5)
    mask = adapter.dropped.ranks
    assert mask is not None and set(mask.tolist()) == {0.0, 2.0}
    (adapter(layer, layer, x) ** 2).sum().backward()
    gradient = (adapter.up if kind != "loha" else adapter.w1_a).grad.abs().sum(0)
    assert torch.equal(gradient > 0, mask > 0)


@all_kinds
def test_a_layer_may_go_without_its_adapter(kind: str) -> None:
    layer, x = layer_and_input("linear")
    adapter = learned(kind, layer)
    with_it, settings = adapter(layer, layer, x), LoRAConfig.of(adapter=kind, module_dropout=0.5).adapter
    is_left_out = []
    for step in range(20):
        draw_dropout({"it": adapter, "another": fresh(kind, layer)}, settings, 1, step, 0)
        output = adapter(layer, layer, x)
        is_left_out.append(torch.equal(output, layer(x)))
        assert is_left_out[-1] or torch.equal(output, with_it)
    assert 0 < sum(is_left_out) < 20 and not torch.allclose(with_it, layer(x))


@all_kinds
def test_parameters_follow_from_the_generator(kind: str) -> None:
    layer, _ = layer_and_input("linear")
    one, same, other = (
        new_adapter(kind, layer, RANK, ALPHA, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    is_drawn = [not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert any(is_drawn) or kind == "oft"


@all_kinds
def test_only_the_adapter_learns(kind: str) -> None:
    layer, x = layer_and_input("3x3")
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    learned(kind, layer)(layer, layer, x).sum().backward()
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_up.weight": (4, 2), "lora_down.weight": (2, 6), "lora_mid.weight": (2, 2, 3, 3)},
        {"lora_up.weight": (4, 2), "lora_down.weight": (3, 6)},
        {"lora_up.weight": (4, 2)},
        {"hada_w1_a": (4, 2), "hada_w1_b": (2, 6), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6), "hada_t1": (2, 2, 3, 3)},
        {"hada_w1_a": (4, 2), "hada_w1_b": (2, 6), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6), "dora_scale": (1, 6)},
        {"lokr_w1": (2, 2), "lokr_w2_a": (2, 2), "lokr_w2_b": (2, 3), "lokr_t2": (2, 2, 3, 3)},
        {"lokr_w1": (2, 2)},
        {"oft_blocks": (2, 2, 2), "rescale": (4, 1)},
        {"oft_blocks": (2, 2, 2, 2)},
        {"diff": (4, 6)},
        {},
    ],
    ids=lambda tensors: " ".join(tensors),
)
def test_forms_that_are_not_trained_here_are_not_taken(tensors: dict[str, tuple[int, ...]]) -> None:
    assert adapter_from_tensors({name: torch.ones(shape) for name, shape in tensors.items()}) is None


@pytest.mark.parametrize(
    "shapes",
    [
        {"hada_w1_a": (8, 2), "hada_w1_b": (3, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
        {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (4, 2), "hada_w2_b": (2, 8)},
        {"hada_w1_a": (8, 2, 1), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
        {"lokr_w1": (1, 2, 2, 1), "lokr_w2": (4, 4)},
        {"lokr_w1_a": (2, 3), "lokr_w1_b": (2, 2), "lokr_w2": (4, 4)},
    ],
)
def test_factors_that_do_not_multiply_are_no_adapter(shapes: dict[str, tuple[int, ...]]) -> None:
    assert adapter_from_tensors({name: torch.ones(shape) for name, shape in shapes.items()}) is None
