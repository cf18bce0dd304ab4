"""LoKr: which factors a weight gets, and the forms in which files hold them."""

import comfy.lora
import pytest
import torch
from lora_kiln.training.adapters import adapter_from_tensors, new_adapter
from torch import nn

ALPHA = 2.0


def shapes(layer: nn.Module, rank: int, factor: int = -1) -> dict[str, tuple[int, ...]]:
    adapter = new_adapter("lokr", layer, rank, ALPHA, torch.Generator().manual_seed(0), factor)
    return {name.removeprefix("lokr_"): tuple(tensor.shape) for name, tensor in adapter.tensors().items()}


@pytest.mark.parametrize(
    ("layer", "rank", "factor", "expected"),
    [
        (nn.Linear(128, 360), 4, -1, {"w1": (18, 8), "w2_a": (20, 4), "w2_b": (4, 16)}),
        (nn.Linear(128, 360), 4, 4, {"w1": (4, 4), "w2_a": (90, 4), "w2_b": (4, 32)}),
        (nn.Linear(128, 360), 4, 5, {"w1": (5, 4), "w2_a": (72, 4), "w2_b": (4, 32)}),
        (nn.Linear(128, 360), 10, -1, {"w1": (18, 8), "w2": (20, 16)}),
        (nn.Linear(127, 36), 4, -1, {"w1": (6, 1), "w2_a": (6, 4), "w2_b": (4, 127)}),
        (nn.Conv2d(16, 36, 3), 2, -1, {"w1": (6, 4), "w2": (6, 4, 3, 3)}),
        (nn.Conv2d(64, 64, 1), 2, -1, {"w1": (8, 8), "w2": (8, 8, 1, 1)}),
    ],
)
def test_sides_are_split_at_the_factor(layer: nn.Module, rank: int, factor: int, expected) -> None:
    assert shapes(layer, rank, factor) == {**expected, "alpha": ()}


@pytest.mark.parametrize(("rank", "scale"), [(2, ALPHA / 2), (64, 1.0)])
def test_the_scale_is_one_where_no_factor_is_a_product(rank: int, scale: float) -> None:
    adapter = new_adapter("lokr", nn.Linear(36, 36), rank, ALPHA, torch.Generator().manual_seed(0))
    assert adapter.scale == scale
    assert adapter.tensors()["alpha"] == (ALPHA if rank == 2 else rank)


@pytest.mark.parametrize("layer", [nn.Linear(24, 12), nn.Conv2d(24, 12, 3, padding=1)])
@pytest.mark.parametrize("first", ["w1", "w1_a w1_b"])
@pytest.mark.parametrize("second", ["w2", "w2_a w2_b"])
def test_every_form_the_host_loads_is_trained_as_the_host_applies_it(layer, first: str, second: str) -> None:
    kernel = tuple(layer.weight.shape[2:])
    inner = 6 * (9 if kernel else 1)
    sizes = {"w1": (3, 4), "w1_a": (3, 2), "w1_b": (2, 4), "w2": (4, 6, *kernel), "w2_a": (4, 2), "w2_b": (2, inner)}
    generator = torch.Generator().manual_seed(0)
    tensors = {f"lokr_{n}": torch.randn(sizes[n], generator=generator) for n in f"{first} {second}".split()}
    tensors["alpha"] = torch.tensor(3.0)
    adapter = adapter_from_tensors(tensors)
    assert adapter is not None and adapter.tensors().keys() == tensors.keys()
    patch = comfy.lora.load_lora({f"l.{name}": t for name, t in tensors.items()}, {"l": "l.weight"})["l.weight"]
    weight = layer.weight.detach()
    merged = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), "l.weight")
    x = torch.randn((2, 24, *([5, 5] if kernel else [])), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(adapter.merged(weight), merged)
        output = adapter(layer, layer, x)
        layer.weight.copy_(merged)
        torch.testing.assert_close(output, layer(x), rtol=1e-4, atol=1e-4)
