"""Batches of a run: which samples at which step, and their noise."""

from collections import Counter

import pytest
import torch
from lora_kiln.training.batches import Batch, Plan, make_batch
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.objective import Family

PICTURES, EPOCHS = 10, 3
LATENT = (4, 8, 8)
FAMILY = Family("eps", torch.linspace(0.1, 10.0, 1000))
CPU = torch.device("cpu")


def plan(**changes) -> Plan:
    pictures = tuple(Picture(f"{n}", 64, 64, f"caption {n}") for n in range(PICTURES))
    settings = DatasetSettings(resolution=64, bucket_step=16, shortest_side=32, longest_side=128)
    return Plan(Dataset(pictures, settings), LoRAConfig(**{"epochs": EPOCHS, "batch_size": 2, **changes}))


def all_samples(a_plan: Plan) -> list:
    accumulation = a_plan.config.gradient_accumulation
    return [s for step in range(a_plan.steps) for micro in range(accumulation) for s in a_plan.samples_at(step, micro)]


def batch(config: LoRAConfig, step: int = 0, micro: int = 0, size: int = 3) -> Batch:
    latents = [torch.full(LATENT, float(slot)) for slot in range(size)]
    return make_batch(latents, [1.0] * size, lambda x: x.shape, FAMILY, config, step, micro, CPU)


@pytest.mark.parametrize("accumulation", [1, 5])
def test_epochs_show_every_picture_as_often(accumulation: int) -> None:
    shown = Counter(s.picture for s in all_samples(plan(gradient_accumulation=accumulation)))
    assert shown == dict.fromkeys(range(PICTURES), EPOCHS)


def test_all_samples_are_what_the_steps_use() -> None:
    assert plan().all_samples() == set(all_samples(plan()))


def test_the_samples_of_a_step_do_not_depend_on_the_steps_before() -> None:
    whole = plan()
    all_samples(whole)
    assert plan().samples_at(13, 0) == whole.samples_at(13, 0)


def test_epochs_are_counted() -> None:
    assert [plan().epoch_of(step) for step in (0, 4, 5, 14)] == [0, 0, 1, 2]


def test_epochs_are_counted_with_accumulation() -> None:
    assert [plan(gradient_accumulation=5).epoch_of(step) for step in (0, 1, 2)] == [0, 1, 2]


def test_noise_follows_from_the_seed() -> None:
    one, same = batch(LoRAConfig(seed=1)), batch(LoRAConfig(seed=1))
    assert torch.equal(one.noise, same.noise) and torch.equal(one.sigma, same.sigma)


@pytest.mark.parametrize("other", [dict(seed=2), dict(step=1), dict(micro=1)])
def test_another_seed_step_or_pass_has_other_noise(other: dict) -> None:
    config = LoRAConfig(seed=other.pop("seed", 1))
    one, another = batch(LoRAConfig(seed=1)), batch(config, **other)
    assert not torch.equal(one.noise, another.noise) and not torch.equal(one.sigma, another.sigma)


def test_no_two_samples_of_a_batch_share_their_noise() -> None:
    made = batch(LoRAConfig())
    assert not torch.equal(made.noise[0], made.noise[1]) and made.sigma.unique().numel() == 3


def test_a_slots_noise_does_not_depend_on_the_batch_size() -> None:
    config = LoRAConfig()
    assert torch.equal(batch(config, size=1).noise[0], batch(config, size=3).noise[0])


def test_noise_does_not_touch_the_global_state() -> None:
    before = torch.get_rng_state()
    batch(LoRAConfig(noise_offset=0.1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_has_its_parts_in_order() -> None:
    made = batch(LoRAConfig())
    assert made.x_0[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert made.noise.shape == made.x_0.shape == made.cond == (3, *LATENT)
    assert made.sigma.shape == made.weight.shape == (3,)
