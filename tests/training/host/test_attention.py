"""Attention kernels with a backward pass: where they are used, and what they compute."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from lora_kiln.training import host, kernels
from lora_kiln.training.host.attention import FASTEST_FIRST, _try_backends, fits_few_keys, runs_few_keys, working
from lora_kiln.training.host.device import kernel_obstacle
from torch.nn.attention import SDPBackend

import models


@pytest.mark.parametrize("make", [models.sd15, models.sd3, models.flux])
def test_half_precision_attention_is_the_hosts(make):
    small = make()
    sigma = 3.0 if make is models.sd15 else 0.6
    with host.training_mode():
        x_t = models.random_latents(small.model, 2, seed=1)
        values = []
        for dtype in (torch.float32, torch.bfloat16):
            twin = host.trainable_twin(small.model, dtype)
            is_unet = hasattr(twin.diffusion_model, "input_blocks")
            told = host.encode_text(small.clip, "a") if is_unet else models.random_conditioning(small.model, 3)
            groups = host.batch_conds(twin, [told] * 2, x_t)
            options = host.transformer_options(small.model)
            values.append(host.predict(twin, options, x_t, torch.full((2,), sigma), groups))
        exact, rough = values
        assert (rough - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("capability", [(7, 5), (8, 6)])
@pytest.mark.parametrize("works", [True, False])
def test_attention_to_few_keys_is_tried_once_where_it_may_run_and_a_failure_is_said(
    capability: tuple[int, int], works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def trial(*shape: object) -> None:
        tries.append(shape)
        if not works:
            raise RuntimeError("out of resource: shared memory\nand more")

    runs_few_keys.cache_clear()
    kernel_obstacle.cache_clear()
    caplog.set_level("INFO")
    monkeypatch.setattr(kernels, "geglu", lambda x: x)
    monkeypatch.setattr(kernels, "try_cross_attention", trial)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = {runs_few_keys(torch.device("meta"), torch.bfloat16, 77, 64) for _ in range(3)}
    runs_few_keys.cache_clear()
    kernel_obstacle.cache_clear()
    is_new = capability >= (8, 0)
    assert found == {is_new and works} and len(tries) == is_new
    said = [record.getMessage() for record in caplog.records if "captions" in record.getMessage()]
    assert len(said) == (is_new and not works) and all(each.endswith("shared memory") for each in said)


def heads(length: int, batch: int = 2, number: int = 3, width: int = 64) -> torch.Tensor:
    return torch.zeros(batch, number, length, width)


@pytest.mark.parametrize(
    ("q", "k", "v", "fits"),
    [
        (heads(200), heads(77), heads(77), True), (heads(256), heads(128), heads(128), True),
        (heads(100), heads(77), heads(77), False), (heads(999), heads(129), heads(129), False),
        (heads(200), heads(0), heads(0), False), (heads(200), heads(77), heads(78), False),
        (heads(200), heads(77, batch=1), heads(77, batch=1), False),
        (heads(200), heads(9, number=1), heads(9, number=1), False),
        (heads(200), heads(77), heads(77, width=128), False), (heads(200), heads(77).half(), heads(77).half(), False),
        (heads(900, width=160), heads(77, width=160), heads(77, width=160), False),
        (heads(8, 70000, 1, 16), heads(1, 70000, 1, 16), heads(1, 70000, 1, 16), False),
    ],
)  # fmt: skip
def test_attention_that_the_kernel_takes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, fits: bool) -> None:
    assert fits_few_keys(q, k, v) == fits


CUDNN, FLASH, EFFICIENT, MATH = FASTEST_FIRST


@pytest.mark.parametrize(
    ("broken", "left"),
    [
        ((), [CUDNN, FLASH, EFFICIENT, MATH]), ((CUDNN,), [FLASH, EFFICIENT, MATH]), ((FLASH,), FASTEST_FIRST),
        ((CUDNN, FLASH), [EFFICIENT, MATH]), ((CUDNN, FLASH, EFFICIENT), [MATH]), (tuple(FASTEST_FIRST), [MATH]),
    ],
)  # fmt: skip
def test_the_next_backend_is_taken_where_one_does_not_work_and_that_is_said(broken, left) -> None:
    said: list[str] = []

    def trial(backends: Sequence[SDPBackend]) -> None:
        if backends[0] in broken:
            raise RuntimeError("No execution plans support the graph.\nmore")

    assert working(FASTEST_FIRST, trial, said.append) == left
    assert len(said) == len(FASTEST_FIRST) - len(left)
    assert all("slower: No execution plans support the graph." in sentence for sentence in said)


def test_full_memory_tells_nothing_about_a_backend() -> None:
    def full(_: Sequence[SDPBackend]) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        working(FASTEST_FIRST, full, pytest.fail)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_trial_is_made_anywhere_and_leaves_the_generators_as_they_were(around) -> None:
    q, k = torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 5, 16)
    before = torch.get_rng_state()
    with around():
        _try_backends(q, k, k, [SDPBackend.MATH])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trial_fails_where_no_backend_computes_it() -> None:
    wide = torch.zeros(1, 3, 8, 16)
    with pytest.raises(RuntimeError):
        _try_backends(wide, wide, wide, [SDPBackend.CUDNN_ATTENTION])
