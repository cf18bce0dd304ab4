"""Parameters side by side."""

import torch
from lora_kiln.training.adapters import LoKr, LoRA, init_lora
from lora_kiln.training.adapters.flat import ALIGNMENT, FlatParameters
from torch import nn

CPU = torch.device("cpu")


def adapters() -> list:
    lora = LoRA(*init_lora((7, 5), 3, torch.Generator().manual_seed(0)), 1.0)
    return [lora, LoKr.new(nn.Linear(6, 8), 2, 1.0, torch.Generator().manual_seed(1))]


def test_the_adapters_keep_their_numbers_and_read_them_there() -> None:
    members, expected = adapters(), [p.clone() for a in adapters() for p in a.parameters()]
    flat = FlatParameters(members, CPU, torch.float32)
    assert all(map(torch.equal, flat.parameters, expected)) and len(flat.parameters) == len(expected)
    with torch.no_grad():
        flat.values += 1.0
    assert all(torch.equal(p, e + 1.0) for p, e in zip(flat.parameters, expected, strict=True))


def test_gradients_lie_in_one_tensor() -> None:
    flat = FlatParameters(adapters(), CPU, torch.float32)
    sum(p.square().sum() for p in flat.parameters).backward()
    assert flat.values.grad is not None
    torch.testing.assert_close(flat.values.grad, 2 * flat.values.detach())  # what lies between is zero


def test_one_step_moves_all_as_one_by_one() -> None:
    one, other = adapters(), adapters()
    flat = FlatParameters(one, CPU, torch.float32)
    optimizers = [
        torch.optim.AdamW([flat.values], lr=0.1, weight_decay=0.3),
        torch.optim.AdamW([p for a in other for p in a.parameters()], lr=0.1, weight_decay=0.3),
    ]
    for _ in range(3):
        for members, optimizer in zip((one, other), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=False)
            sum((p - 1.0).square().sum() for a in members for p in a.parameters()).backward()
            optimizer.step()
    for a, b in zip(one, other, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_copies_follow_when_refreshed_and_are_aligned() -> None:
    members = adapters()
    flat = FlatParameters(members, CPU, torch.bfloat16)
    up = members[0].copies["up"]
    assert up.dtype == torch.bfloat16 and up.storage_offset() % ALIGNMENT == 0
    with torch.no_grad():
        members[0].up.fill_(3.0)
    assert not up.any()
    flat.refresh()
    assert (up == 3.0).all() and up.shape == members[0].up.shape
