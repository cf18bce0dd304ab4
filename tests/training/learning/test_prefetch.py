"""Batches ahead of time; on the CPU each is made when it is asked for."""

import threading

import pytest
import torch
from lora_kiln.training.basics.pinned import NOT_PINNED
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.prefetch import AHEAD, NotHere, made_ahead, on_device, prefetched

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
    with prefetched(make, iter(order), CPU, print) as batch_at:
        for place in order:
            assert batch_at(*place).x_0[0, 0] == 10 * place[0] + place[1] and made[-1] == place
    assert made == order


def test_all_tensors_go_to_the_device() -> None:
    moved = on_device(batch(0, 0), torch.device("meta"), print)
    assert moved.x_0.is_meta and moved.cond[0][1]["c"].is_meta and moved.mask is None


def test_without_pinned_memory_data_goes_from_ordinary_memory_and_that_is_said(monkeypatch) -> None:
    def refuses(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    said, sent = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuses)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: sent.append(tensor) or tensor)
    expected = batch(0, 0)
    assert torch.equal(on_device(expected, torch.device("cuda"), said.append).x_0, expected.x_0)
    assert sent and said and set(said) == {NOT_PINNED}


def test_a_thread_makes_what_is_asked_for_next_and_leaves_what_it_may_not() -> None:
    made, own = [], threading.get_ident()

    def make(step: int, micro: int) -> int:
        if step == 2 and threading.get_ident() != own:
            raise NotHere
        made.append((step, threading.get_ident() == own))
        return 10 * step + micro

    with made_ahead(make, ((step, 0) for step in range(2 + AHEAD))) as made_at:
        assert [made_at(step, 0) for step in range(4)] == [0, 10, 20, 30]
    assert [step for step, is_own in made if is_own] == [2]


def test_what_is_wrong_in_the_thread_is_raised_where_it_is_asked_for() -> None:
    def make(step: int, micro: int) -> int:
        return 1 // (1 - step)

    with made_ahead(make, ((step, 0) for step in range(3))) as made_at:
        assert made_at(0, 0) == 1
        with pytest.raises(ZeroDivisionError):
            made_at(1, 0)
