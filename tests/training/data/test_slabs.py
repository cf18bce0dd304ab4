"""Small tensors in large pieces of memory."""

import torch
from lora_kiln.training.data import slabs as room
from lora_kiln.training.data.slabs import ALIGNMENT, Slabs


def test_values_keep_their_numbers_and_structure_and_lie_side_by_side() -> None:
    given = [
        (torch.randn(3, 5).T, {"pooled_output": torch.arange(7, dtype=torch.float16), "width": 64}),
        torch.randn(()), torch.ones(2, dtype=torch.bool), torch.empty(0, 4),
    ]  # fmt: skip
    found = Slabs().copy(given)
    (turned, options), *rest = found
    assert torch.equal(turned, given[0][0]) and torch.equal(options["pooled_output"], given[0][1]["pooled_output"])
    assert options["width"] == 64 and all(map(torch.equal, rest, given[1:]))
    tensors = [turned, options["pooled_output"], *rest]
    assert len({each.untyped_storage().data_ptr() for each in tensors}) == 1
    assert all(each.data_ptr() % ALIGNMENT == 0 for each in tensors if each.numel())
    given[1].fill_(5.0)
    assert rest[0] != 5.0


def test_large_ones_stay_and_a_full_slab_is_followed_by_another(monkeypatch) -> None:
    monkeypatch.setattr(room, "SLAB", 4096)
    slabs, large = Slabs(), torch.randn(1024)
    assert slabs.copy(large) is large
    found = [slabs.copy(torch.full((200,), float(n))) for n in range(12)]
    assert all((each == n).all() for n, each in enumerate(found))
    assert len({each.untyped_storage().data_ptr() for each in found}) == 3


def test_what_is_made_of_inference_tensors_can_be_trained_on() -> None:
    with torch.inference_mode():
        settled = Slabs().copy(torch.ones(3))
    assert not settled.is_inference()
    weight = torch.ones(3, requires_grad=True)
    (weight * settled).sum().backward()
