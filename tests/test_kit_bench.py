"""The comparison of `bench quality`: its statistics, and that its peers learn and draw the same model."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import pytest
import torch
from scipy import stats

from kit import peers
from kit.bench import Run, summary, t_interval, wilson
from kit.bench_nodes import KitEncodeTogether, KitSnapshots, KitWatchOptimizer
from kit.demo import CHECKPOINT
from kit.peers import Recipe

RECIPE = Recipe(
    steps=100, every=25, batch_size=4, rank=16, learning_rate=2e-3, weight_decay=0.01, max_grad_norm=1.0, seed=0
)


@pytest.mark.parametrize(("hits", "of"), [(0, 16), (3, 16), (13, 16), (80, 80), (40, 80)])
def test_wilsons_interval(hits: int, of: int):
    wanted = stats.binomtest(hits, of).proportion_ci(method="wilson")
    assert wilson(hits, of) == pytest.approx((wanted.low, wanted.high), abs=1e-4)


@pytest.mark.parametrize("count", [2, 5, 11, 20, 41])
def test_students_interval(count: int):
    values = [float(n * n % 7) for n in range(count)]
    spread = stats.sem(values)
    wanted = stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=spread)
    assert t_interval(values) == pytest.approx(wanted, abs=0.02 * spread)
    assert t_interval(values[:1]) is None


def run(peer: str, seed: int, passed_at: int | None, kept: int = 8) -> Run:
    return Run(peer, seed, 16, 0, {"25": 3, "100": 12}, [10, 9], kept, passed_at, {"training": 2.0})


def test_a_run_that_never_passes_counts_as_the_step_after_the_last():
    table = summary([run("ours", 1, 50), run("ours", 2, None)], RECIPE)["ours"]
    assert (table["steps"], table["passed"]) == ((50 + 125) / 2, 1)
    assert table["concept_rate"] == 24 / 32
    assert table["base_kept"] == 16 / 20


def test_differences_to_ours_are_taken_seed_by_seed():
    runs = [run("ours", 1, 25), run("ours", 2, 75), run("core", 2, 100, kept=7), run("core", 3, 25)]
    gap = summary(runs, RECIPE)["core"]["against_ours"]
    assert gap["steps"] == 25 and math.isclose(gap["base_kept"], -0.1)


def test_what_the_demo_recipe_is_to_reach():
    good = Run("ours", 1, 16, 1, {"25": 3, "400": 13}, [10, 9], 9, 25)
    assert good.reached
    assert not Run("ours", 1, 16, 1, {"25": 13, "400": 12}, [10, 9], 9, 25).reached
    assert not Run("ours", 1, 16, 2, {"400": 16}, [10, 9], 9, 25).reached
    assert not Run("ours", 1, 16, 0, {"400": 16}, [10, 9], 8, 25).reached


def test_snapshots_are_the_parameters_after_those_steps():
    KitWatchOptimizer().execute(None, every=2, run="x")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for _ in range(5):
        weight.grad = torch.ones(1)
        optimizer.step()
    loras, steps = KitSnapshots().execute({"a": weight})
    assert steps == [2, 4]
    assert [float(lora["a"]) for lora in loras] == [-2.0, -4.0]
    optimizer.step()
    assert [float(lora["a"]) for lora in loras] == [-2.0, -4.0]


@pytest.fixture(scope="module")
def kit(kit_dir: Path, host_dir: Path) -> SimpleNamespace:
    with torch.inference_mode():
        loaded = comfy.sd.load_checkpoint_guess_config(str(kit_dir / "checkpoints" / CHECKPOINT), output_vae=False)
    return SimpleNamespace(bench=SimpleNamespace(kit=kit_dir, host_dir=host_dir), model=loaded[0], clip=loaded[1])


def test_diffusers_unet_is_the_kits(kit: SimpleNamespace):
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 768, generator=generator)
    times = torch.tensor([10, 700])
    with torch.inference_mode():
        theirs = peers.diffusers_unet(kit.bench).eval()(x, times, context, return_dict=False)[0]
        unet = kit.model.model.diffusion_model.float()
        assert torch.allclose(theirs, unet(x, times, context=context, transformer_options={}), atol=1e-5)


def test_what_peft_learned_is_what_the_host_loads(kit: SimpleNamespace, caplog: pytest.LogCaptureFixture):
    import copy

    from peft import LoraConfig

    unet = copy.deepcopy(peers.diffusers_unet(kit.bench))
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(peers.PROJECTIONS)))
    for parameter in unet.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    tensors = peers.kohya_tensors(unet)
    patched, _ = comfy.sd.load_lora_for_models(kit.model, None, tensors, 1.0, 0.0)
    assert "not loaded" not in caplog.text
    assert len(patched.patches) == len(tensors) // 2 == 4 * 8
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    wanted = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    weight = torch.zeros_like(wanted)
    found = comfy.lora.calculate_weight(patched.patches[key], weight, key)
    assert torch.allclose(found, wanted, atol=2e-3 * float(wanted.abs().max()))


def test_prompts_together_are_the_prompts_each(kit: SimpleNamespace):
    texts = ["a red star", "a big blue ring on a white ground, left"]
    with torch.inference_mode():
        ((rows, _),) = KitEncodeTogether().execute(kit.clip, "\n".join(texts))[0]
        for row, text in zip(rows, texts, strict=True):
            assert torch.allclose(row, kit.clip.encode_from_tokens(kit.clip.tokenize(text))[0], atol=1e-5)
