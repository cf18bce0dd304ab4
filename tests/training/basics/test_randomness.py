"""Random numbers as a function of their key."""

import pytest
import torch
from lora_kiln.training.basics.randomness import (
    derive_seed,
    generators_kept,
    python_random,
    seed_generators,
    tensor_generator,
)

KEYS = [(0,), (1,), ("0",), (0, 0), (0, "noise"), (0, 0, "noise"), ("00",), (1, 23), (12, 3), ("a", "b"), ("ab",)]


def test_keys_that_differ_give_seeds_that_differ() -> None:
    assert len({derive_seed(*key) for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_seed_is_one_torch_takes(key: tuple) -> None:
    assert 0 <= derive_seed(*key) < 2**63


def test_a_seed_is_the_same_in_every_process() -> None:
    assert derive_seed(0, 1, "noise") == 4274436110566407033


def test_a_generator_does_not_know_what_was_drawn_before() -> None:
    first = torch.randn(8, generator=tensor_generator(3, "noise"))
    torch.randn(100, generator=tensor_generator(3, "other"))
    torch.manual_seed(99)
    assert torch.equal(first, torch.randn(8, generator=tensor_generator(3, "noise")))


def test_generators_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    torch.randn(4, generator=tensor_generator(0, "noise"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_global_generators_follow_a_key_and_have_their_states_back() -> None:
    before, drawn = torch.get_rng_state(), []
    with pytest.raises(ValueError), generators_kept():
        for key in ((1, "model"), (2, "model"), (1, "model")):
            seed_generators(*key)
            drawn.append(torch.rand(4))
        raise ValueError
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_the_generators_of_gpus_do_so_too() -> None:
    torch.rand(1, device="cuda")
    before, drawn = torch.cuda.get_rng_state(), []
    with generators_kept():
        for _ in range(2):
            seed_generators(1, "model")
            drawn.append(torch.rand(4, device="cuda"))
    assert torch.equal(*drawn) and torch.equal(torch.cuda.get_rng_state(), before)


def test_python_random_follows_its_key() -> None:
    assert python_random(1, "x").random() == python_random(1, "x").random() != python_random(2, "x").random()
