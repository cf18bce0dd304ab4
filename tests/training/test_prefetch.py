"""Batches ahead of time; on the CPU each is made when it is asked for."""

import torch
from lora_kiln.training.batches import Batch
from lora_kiln.training.prefetch import on_device, prefetched

CPU = torch.device("cpu")


def batch(step: int, micro: int) -> Batch:
    x = torch.full((1, 2), 10.0 * step + micro)
    return Batch(x, x, x[:, 0], x[:, 0], [([0], {"c": x})])


def test_each_batch_comes_when_it_is_asked_for() -> None:
    made = []

    def make(step: int, micro: int) -> Batch:
        made.append((step, micro))
        return batch(step, micro)

    order = [(step, micro) for step in range(2) for micro in range(2)]
    with prefetched(make, iter(order), CPU) as batch_at:
        for place in order:
            assert batch_at(*place).x_0[0, 0] == 10 * place[0] + place[1] and made[-1] == place
    assert made == order


def test_all_tensors_go_to_the_device() -> None:
    moved = on_device(batch(0, 0), torch.device("meta"))
    assert moved.x_0.is_meta and moved.cond[0][1]["c"].is_meta and moved.mask is None
