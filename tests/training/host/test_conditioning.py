"""Each sample of a batch gets its own caption, its own size, and the right scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import attached, find_targets, make_adapters
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.objective import batch_loss

import models

BATCH = 4
CONFIG = LoRAConfig.of(rank=4, alpha=16.0, min_snr_gamma=5.0, precision="fp32", seed=1)
TEXTS = ["a red cat", "", "two dogs on a hill", "a house"]
SIZES = [(64, 64, 0, 0), (100, 64, 18, 0), (64, 200, 0, 68), (70, 70, 3, 3)]  # width, height, crop_w, crop_h


def conditionings(small: models.Small, sized: bool):
    out = []
    for text, (width, height, crop_w, crop_h) in zip(TEXTS, SIZES, strict=True):
        (embedding, options), *_ = host.encode_text(small.clip, text)
        size = dict(width=width, height=height, crop_w=crop_w, crop_h=crop_h, target_width=64, target_height=64)
        out.append([[embedding, {**options, **(size if sized else {})}]])
    return out


def loss_and_gradients(small: models.Small, rows: list[int], family_of=None):
    """The loss of some rows of one fixed batch, and the gradients of all adapters."""
    generator = torch.Generator().manual_seed(9)
    x_0, noise = (torch.randn(BATCH, 4, 8, 8, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.3, 1.0, 4.0, 12.0])
    weight = torch.tensor([1.0, 0.5, 1.0, 2.0])
    conds = conditionings(small, host.wants_size_conditioning(small.model))
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.float32)
        targets = find_targets(twin, "all linear and convolution")
        adapters: dict[str, Any] = make_adapters(targets, CONFIG.adapter, CONFIG.run.seed)
        for number, adapter in enumerate(adapters.values()):
            adapter.up.data = 0.05 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(number))
        options = host.transformer_options(small.model)
        groups = host.batch_conds(twin, [conds[row] for row in rows], x_0[rows])
        batch = Batch(x_0[rows], noise[rows], sigma[rows], weight[rows], groups, None, None)
        with attached(targets, adapters, host.PRODUCTS):
            loss, _ = batch_loss(
                lambda x, s, c: host.predict(twin, options, x, s, c),
                host.family(small.model).prediction,
                CONFIG.objective,
                batch,
            )
            loss.backward()
    gradients = {f"{k}.{n}": p.grad for k, a in adapters.items() for n, p in a.named_parameters()}
    return loss.item(), gradients


@pytest.mark.parametrize("make", [models.sd15, models.sdxl, lambda: models.v_prediction(models.sdxl())])
def test_a_batch_gives_what_its_pictures_give_one_by_one(make):
    small = make()
    loss, gradients = loss_and_gradients(small, list(range(BATCH)))
    singles = [loss_and_gradients(small, [row]) for row in range(BATCH)]
    assert loss == pytest.approx(sum(single for single, _ in singles) / BATCH, rel=1e-5)
    largest = max(gradient.norm() for gradient in gradients.values())  # some are zero but for rounding
    for name, gradient in gradients.items():
        alone = torch.stack([single[name] for _, single in singles]).mean(0)
        assert (gradient - alone).norm() <= 1e-5 * alone.norm() + 1e-7 * largest, name


def test_sdxl_gets_each_pictures_own_size_as_the_cores_node_encodes_it():
    small = models.sdxl()
    latents = torch.randn(BATCH, 4, 8, 8)
    conds = conditionings(small, sized=True)
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.float32)
        ((rows, together),) = host.batch_conds(twin, conds, latents)
    assert rows == list(range(BATCH))
    for row, (width, height, crop_w, crop_h) in enumerate(SIZES):
        y = small.model.model.encode_adm(
            device=torch.device("cpu"), pooled_output=conds[row][0][1]["pooled_output"], width=width, height=height,
            crop_w=crop_w, crop_h=crop_h, target_width=64, target_height=64,
        )  # fmt: skip
        assert torch.equal(together["y"][row], y[0])


def test_each_row_carries_its_own_caption():
    small = models.sd15()
    conds = conditionings(small, sized=False)
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.float32)
        ((_, together),) = host.batch_conds(twin, conds, torch.randn(BATCH, 4, 8, 8))
    assert together["c_crossattn"].shape[0] == BATCH
    for row, text in enumerate(TEXTS):
        assert torch.equal(together["c_crossattn"][row], host.encode_text(small.clip, text)[0][0][0])


# ---------------------------------------------------------------- flow models and other transformers


def test_a_model_with_distilled_guidance_is_told_it_in_training():
    model = models.flux().model
    latents, text = (
        models.random_latents(model, 2, seed=1),
        [models.random_conditioning(model, seed) for seed in (2, 3)],
    )
    with host.training_mode():
        twin = host.trainable_twin(model, torch.float32)
        ((_, trained),) = host.batch_conds(twin, text, latents, guidance=host.training_guidance(twin))
        ((_, sampled),) = host.batch_conds(twin, text, latents)
        options, sigma = host.transformer_options(model), torch.tensor([0.5, 0.5])
        low, high = (host.predict(twin, options, latents, sigma, [([0, 1], cond)]) for cond in (trained, sampled))
    assert trained["guidance"].tolist() == [1.0, 1.0]
    assert sampled["guidance"].tolist() == [3.5, 3.5]
    assert not torch.allclose(low, high, atol=1e-4)
    assert "guidance" not in text[0][0][1]


def test_chroma_keeps_the_guidance_it_was_made_with():
    model = models.chroma().model
    latents = models.random_latents(model, 1, seed=1)
    with host.training_mode():
        twin = host.trainable_twin(model, torch.float32)
        ((_, cond),) = host.batch_conds(twin, [models.random_conditioning(model, 2)], latents, guidance=1.0)
    assert not host.takes_guidance(model) and host.takes_guidance(models.flux().model)
    assert cond["guidance"].tolist() == [0.0]


@pytest.mark.parametrize("name", ["sd3", "flux", "lumina2", "z_image", "qwen_image"])
def test_conditionings_of_other_lengths_are_predicted_each_for_itself(name):
    model = models.TRANSFORMERS[name]()
    short, long = models.random_conditioning(model, 2), models.random_conditioning(model, 3)
    short = [[short[0][0][:, :4], {key: _cut(value) for key, value in short[0][1].items()}]]
    x_t, sigma = models.random_latents(model, 3, seed=1), torch.tensor([0.2, 0.5, 0.8])
    with host.training_mode(), torch.no_grad():
        twin, options = host.trainable_twin(model, torch.float32), host.transformer_options(model)
        groups = host.batch_conds(twin, [long, short, long], x_t)
        together = host.predict(twin, options, x_t, sigma, groups)
        assert [rows for rows, _ in groups] == [[0, 2], [1]]
        for row, text in enumerate((long, short, long)):
            alone = host.batch_conds(twin, [text], x_t[row : row + 1])
            one = host.predict(twin, options, x_t[row : row + 1], sigma[row : row + 1], alone)
            assert torch.allclose(together[row : row + 1], one, atol=1e-4)


def _cut(value: torch.Tensor | None) -> torch.Tensor | None:
    return value[:, :4] if value is not None and value.dtype == torch.int64 else value


# ---------------------------------------------------------------- what patches are told


class Recorder:
    """A patch that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def __call__(self, h: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        self.told.append({**options, "rows": len(h)})
        return h


def test_patches_are_told_what_the_sampler_tells_them() -> None:
    """Each row's own level: a patch reads one for all. The level is one of the schedule, as it is when sampling."""
    small, recorder = models.sd15(), Recorder()
    small.model.set_model_input_block_patch(recorder)
    sigma = torch.tensor([0.3, 5.0, 1.7])
    texts = [host.encode_text(small.clip, text) for text in ("a cat", "a " * 100, "a dog")]  # of two lengths
    with host.training_mode(), torch.no_grad():
        twin, options = host.trainable_twin(small.model, torch.float32), host.transformer_options(small.model)
        x_t = models.random_latents(small.model, 3, seed=1)
        host.predict(twin, options, x_t, sigma, host.batch_conds(twin, texts, x_t))
        host.predict(twin, options, x_t[:1], sigma[:1], host.batch_conds(twin, texts[:1], x_t[:1], None, host.NEGATIVE))
    passes = [each for each in recorder.told if each["block"] == ("input", 0)]
    assert [(each["rows"], each["sigmas"].tolist()) for each in passes] == [(1, [each]) for each in [*sigma, sigma[0]]]
    assert [each["cond_or_uncond"] for each in passes] == [[0], [0], [0], [1]]
    assert len({uuid for each in passes for uuid in each["uuids"]}) == len(passes)
    for each in passes:
        schedule = each["sample_sigmas"]
        assert (schedule == each["sigmas"]).sum() == 1 and schedule[-1] == 0.0
        assert torch.equal(schedule, schedule.sort(descending=True).values)


def test_a_patched_batch_gives_what_its_pictures_give_one_by_one() -> None:
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale

    small = models.sd15()
    method = "bicubic", "bicubic"
    small.model = PatchModelAddDownscale.execute(small.model, 1, 2.0, 0.0, 0.35, True, *method).args[0]
    rows = [1, 3]  # the patch is at work at the second's level alone
    loss, gradients = loss_and_gradients(small, rows)
    singles = [loss_and_gradients(small, [row]) for row in rows]
    assert loss == pytest.approx(sum(single for single, _ in singles) / len(rows), rel=1e-5)
    largest = max(gradient.norm() for gradient in gradients.values())
    for key, gradient in gradients.items():
        alone = torch.stack([single[key] for _, single in singles]).mean(0)
        assert (gradient - alone).norm() <= 1e-5 * alone.norm() + 1e-7 * largest, key
