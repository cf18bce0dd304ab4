"""Batches of a run: which samples at which step, and their noise."""

import math
from collections import Counter

import pytest
import torch
from lora_kiln.training.basics.randomness import tensor_generator
from lora_kiln.training.config import LoRAConfig, ObjectiveConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.data.plan import Plan
from lora_kiln.training.learning.batches import Batch, Example, make_batch
from lora_kiln.training.learning.family import Family
from lora_kiln.training.learning.noise import multires_noise
from lora_kiln.training.learning.prediction import Eps, Flow

PICTURES, EPOCHS = 10, 3
LATENT = (4, 8, 8)
FAMILY = Family(Eps(torch.linspace(0.1, 10.0, 1000)))


def plan(**changes) -> Plan:
    pictures = tuple(Picture(f"{n}", 64, 64, f"caption {n}") for n in range(PICTURES))
    settings = DatasetSettings(resolution=64, bucket_step=16, shortest_side=32, longest_side=128)
    config = LoRAConfig.of(**{"epochs": EPOCHS, "batch_size": 2, **changes})
    return Plan(Dataset(pictures, settings), config.optimization, config.run.seed)


def all_samples(a_plan: Plan) -> list:
    accumulation = a_plan.optimization.gradient_accumulation
    return [s for step in range(a_plan.steps) for micro in range(accumulation) for s in a_plan.samples_at(step, micro)]


def batch(config: LoRAConfig, step: int = 0, micro: int = 0, size: int = 3) -> Batch:
    examples = [Example(torch.full(LATENT, float(index))) for index in range(size)]
    return make_batch(examples, FAMILY, config.objective, (config.run.seed, step, micro), lambda x: x.shape)


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
    one, same = batch(LoRAConfig.of(seed=1)), batch(LoRAConfig.of(seed=1))
    assert torch.equal(one.noise, same.noise) and torch.equal(one.sigma, same.sigma)


@pytest.mark.parametrize("other", [dict(seed=2), dict(step=1), dict(micro=1)])
def test_another_seed_step_or_pass_has_other_noise(other: dict) -> None:
    config = LoRAConfig.of(seed=other.pop("seed", 1))
    one, another = batch(LoRAConfig.of(seed=1)), batch(config, **other)
    assert not torch.equal(one.noise, another.noise) and not torch.equal(one.sigma, another.sigma)


def test_no_two_samples_of_a_batch_share_their_noise() -> None:
    made = batch(LoRAConfig())
    assert not torch.equal(made.noise[0], made.noise[1]) and made.sigma.unique().numel() == 3


def test_a_slots_noise_does_not_depend_on_the_batch_size() -> None:
    config = LoRAConfig()
    assert torch.equal(batch(config, size=1).noise[0], batch(config, size=3).noise[0])


def test_noise_does_not_touch_the_global_state() -> None:
    before = torch.get_rng_state()
    batch(LoRAConfig.of(noise_offset=0.1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_has_its_parts_in_order() -> None:
    made = batch(LoRAConfig())
    assert made.x_0[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert made.noise.shape == made.x_0.shape == made.cond == (3, *LATENT)
    assert made.sigma.shape == made.weight.shape == (3,)
    assert made.mask is None and made.perturbation is None


def test_plain_noise_is_gaussian_and_its_level_even() -> None:
    made = batch(LoRAConfig.of(seed=5), step=2, micro=1)
    key = (5, 2, 1, 2)
    index = torch.randint(0, 1000, (), generator=tensor_generator(*key, "sigma"))
    assert torch.equal(made.noise[2], torch.randn(LATENT, generator=tensor_generator(*key, "noise")))
    assert made.sigma[2] == FAMILY.prediction.sigmas[index]


def test_samples_without_a_mask_count_whole() -> None:
    mask = torch.rand(8, 8, generator=tensor_generator(0))
    examples = [Example(torch.zeros(LATENT)), Example(torch.zeros(LATENT), mask=mask)]
    made = make_batch(examples, FAMILY, ObjectiveConfig(), (0, 0, 0), lambda x: x.shape)
    assert made.mask is not None and torch.equal(made.mask, torch.stack([torch.ones(8, 8), mask])[:, None])


def test_input_perturbation_has_the_asked_strength_and_leaves_the_noise_alone() -> None:
    plain, perturbed = batch(LoRAConfig()), batch(LoRAConfig.of(ip_noise_gamma=0.1))
    assert torch.equal(plain.noise, perturbed.noise) and torch.equal(plain.sigma, perturbed.sigma)
    assert perturbed.perturbation is not None and perturbed.perturbation.shape == perturbed.noise.shape
    assert perturbed.perturbation.std() == pytest.approx(0.1, rel=0.1)
    together = torch.corrcoef(torch.stack([perturbed.perturbation.flatten(), perturbed.noise.flatten()]))
    assert abs(together[0, 1]) < 0.1


def test_multires_noise_lies_under_the_noise_it_would_have_had() -> None:
    plain = batch(LoRAConfig.of(noise_offset=0.1))
    made = batch(LoRAConfig.of(noise_offset=0.1, multires_noise_iterations=6, multires_noise_discount=0.4))
    for slot in range(3):
        expected = multires_noise(plain.noise[slot], 6, 0.4, tensor_generator(0, 0, 0, slot, "multires"))
        assert torch.equal(made.noise[slot], expected)
    assert torch.equal(made.sigma, plain.sigma)


def test_timesteps_are_drawn_as_the_config_says() -> None:
    made = batch(LoRAConfig.of(min_timestep=100, max_timestep=101))
    assert torch.equal(made.sigma, FAMILY.prediction.sigmas[100].expand(3))


def sigmas_of_flow(**changes) -> torch.Tensor:
    flow = Family(Flow(torch.linspace(0.001, 1.0, 1000)), shift=3.0)
    return make_batch([Example(torch.zeros(LATENT))] * 200, flow, ObjectiveConfig(**changes), (0, 0, 0)).sigma


def test_a_flow_model_trains_at_its_own_shift() -> None:
    """The median of a shifted logit-normal time is that of the shifted 1/2."""
    assert sigmas_of_flow().median() == pytest.approx(3 / 4, abs=0.05)
    assert sigmas_of_flow(timestep_shift=1.0, timestep_sampling="shift").median() == pytest.approx(1 / 2, abs=0.05)


def test_resolution_shift_counts_the_latents_tokens() -> None:
    """8 x 8 latents are 16 tokens."""
    shift = math.exp(0.5 + 0.65 * (16 - 256) / (4096 - 256))
    plain, shifted = (
        sigmas_of_flow(timestep_sampling="logit_normal"),
        sigmas_of_flow(timestep_sampling="resolution_shift"),
    )
    torch.testing.assert_close(shifted, shift * plain / (1 + (shift - 1) * plain))
