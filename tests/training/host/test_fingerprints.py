"""Fingerprints: equal where the same is computed, different where not, and None where that cannot be known.

Identities: the same, with all that nodes put on a model, and never None.
"""

import importlib
import time
from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.patcher_extension
import comfy.sd
import pytest
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from lora_kiln.training.host import model_fingerprint, model_identity, sampling_identity, sampling_mode

import models


@pytest.fixture
def small() -> models.Small:
    return models.sd15()


def lora(seed: int = 0, key: str = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight", rows: int = 64):
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, models.WIDTH, generator=generator)
    return {key: LoRAAdapter(set(), (up, down, 2.0, None, None, None))}


def patched(clip, strength: float = 1.0, seed: int = 0):
    clone = clip.clone()
    assert clone.add_patches(lora(seed), strength)
    return clone


def test_the_same_weights_in_other_objects_are_the_same(small: models.Small) -> None:
    again = models.sd15()
    for part in ("model", "clip", "vae"):
        assert model_fingerprint(getattr(small, part)) == model_fingerprint(getattr(again, part))
        assert len(model_fingerprint(getattr(small, part)) or "") == 64


def test_other_weights_are_others(small: models.Small) -> None:
    other = models.sd15(seed=9)
    prints = [model_fingerprint(each) for each in (small.model, small.clip, small.vae, other.clip, other.vae)]
    assert len(set(prints)) == 5


@pytest.mark.parametrize("number", range(0, 40, 7))
def test_a_change_of_any_one_weight_is_seen(small: models.Small, number: int) -> None:
    before = model_fingerprint(small.clip)
    with torch.inference_mode():
        list(small.clip.cond_stage_model.parameters())[number].mul_(1.01).add_(1e-3)
    assert model_fingerprint(small.clip) != before


def test_another_type_is_seen(small: models.Small) -> None:
    before = model_fingerprint(small.vae)
    with torch.inference_mode():
        small.vae.first_stage_model.half()
    assert model_fingerprint(small.vae) != before


def test_another_arithmetic_is_seen(small: models.Small) -> None:
    before = model_fingerprint(small.vae)
    small.vae.vae_dtype = torch.bfloat16
    assert model_fingerprint(small.vae) != before


def test_clip_skip_is_seen(small: models.Small) -> None:
    skipping = small.clip.clone()
    skipping.clip_layer(-2)
    assert model_fingerprint(skipping) != model_fingerprint(small.clip)


def test_a_clone_is_the_same(small: models.Small) -> None:
    assert model_fingerprint(small.clip.clone()) == model_fingerprint(small.clip)


def test_patches_are_seen_with_their_content_and_strength(small: models.Small) -> None:
    prints = [
        model_fingerprint(each)
        for each in (small.clip, patched(small.clip), patched(small.clip, 0.5), patched(small.clip, seed=1))
    ]
    assert len(set(prints)) == 4 and None not in prints


def test_the_same_patches_are_the_same_though_put_on_anew(small: models.Small) -> None:
    assert model_fingerprint(patched(small.clip)) == model_fingerprint(patched(models.sd15().clip))


def test_a_loaded_patch_does_not_change_what_the_others_are(small: models.Small) -> None:
    """The host writes patches into the weights that all clones share, and keeps what was there."""
    with_lora, cpu = patched(small.clip), torch.device("cpu")
    before = model_fingerprint(small.clip), model_fingerprint(with_lora)
    with sampling_mode():
        small.clip.patcher.unpatch_model(cpu)
        with_lora.patcher.patch_model(cpu)
        assert with_lora.patcher.backup
        assert (model_fingerprint(small.clip), model_fingerprint(with_lora)) == before
        with_lora.patcher.unpatch_model(cpu)
    assert (model_fingerprint(small.clip), model_fingerprint(with_lora)) == before


def test_inside_and_outside_inference_mode_it_is_the_same(small: models.Small) -> None:
    outside = model_fingerprint(small.vae)
    with torch.inference_mode():
        assert model_fingerprint(small.vae) == outside


def test_weights_without_content_count_by_their_shape(small: models.Small) -> None:
    module = next(part for part in small.clip.cond_stage_model.modules() if isinstance(part, torch.nn.Linear))
    prints = []
    for features in (8, 8, 9):
        module.weight = torch.nn.Parameter(torch.empty(4, features, device="meta"))
        prints.append(model_fingerprint(small.clip))
    assert prints[0] == prints[1] != prints[2] and None not in prints


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.int8])
def test_weights_of_any_type_are_read(small: models.Small, dtype: torch.dtype) -> None:
    module = next(part for part in small.clip.cond_stage_model.modules() if isinstance(part, torch.nn.Linear))
    prints = []
    for value in (1.0, 1.0, 2.0):
        weight = torch.full((16, 16), value).to(dtype)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        prints.append(model_fingerprint(small.clip))
    assert prints[0] == prints[1] != prints[2] and None not in prints


def test_quantised_weights_are_read_with_their_scales(small: models.Small) -> None:
    from comfy.quant_ops import QuantizedTensor

    module = next(part for part in small.clip.cond_stage_model.modules() if isinstance(part, torch.nn.Linear))
    prints = []
    for factor in (1.0, 1.0, 3.0):
        weight = QuantizedTensor.from_float(torch.arange(256.0).reshape(16, 16) * factor, "TensorCoreFP8Layout")
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        prints.append(model_fingerprint(small.clip))
    assert prints[0] == prints[1] != prints[2] and None not in prints


@pytest.mark.parametrize("what", ["object patch", "weight wrapper", "hooks", "patch function"])
def test_what_cannot_be_compared_has_no_fingerprint(small: models.Small, what: str) -> None:
    clip = small.clip.clone()
    key = next(iter(lora()))
    if what == "object patch":
        clip.patcher.add_object_patch("clip_l", object())
    elif what == "weight wrapper":
        clip.patcher.add_weight_wrapper(key, lambda weight: weight)
    elif what == "hooks":
        clip.apply_hooks_to_conds = object()
    else:
        clip.add_patches({(key, (0, 0, 8), lambda weight: weight): next(iter(lora().values()))})
    assert model_fingerprint(clip) is None


def test_a_large_model_takes_no_time() -> None:
    """As many weights, and as large, as SDXL's text encoders and VAE have together; all in the same memory."""
    module, zeros = torch.nn.Module(), torch.zeros(640, 1024, dtype=torch.float16)
    for number in range(1400):
        module.register_parameter(str(number), torch.nn.Parameter(zeros))
    patcher = comfy.model_patcher.ModelPatcher(module, torch.device("cpu"), torch.device("cpu"))
    started_at = time.perf_counter()
    assert model_fingerprint(patcher)
    assert time.perf_counter() - started_at < 2.0


# ---------------------------------------------------------------- identities: what nodes put on a model


def node(module: str, name: str, *inputs: Any) -> Any:
    """What a node of the host makes of a MODEL."""
    made = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    out = made.execute(*inputs) if hasattr(made, "execute") else getattr(made(), made.FUNCTION)(*inputs)
    return out.args[0] if hasattr(out, "args") else out[0]


def with_wrapper(model: Any, scale: float) -> Any:
    clone = model.clone()
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    clone.add_wrapper_with_key(kind, "ours", lambda executor, *args, **kwargs: scale * executor(*args, **kwargs))
    return clone


def with_weight_wrapper(model: Any, scale: float) -> Any:
    clone = model.clone()
    clone.add_weight_wrapper("diffusion_model.out.2.weight", lambda weight: scale * weight)
    return clone


def with_hook(model: Any, scale: float) -> Any:
    clone = model.clone()
    clone.add_hook_patches(comfy.hooks.WeightHook(), lora(key="diffusion_model.out.2.weight"), scale)
    return clone


def with_object(model: Any, scale: float) -> Any:
    clone = model.clone()
    clone.add_object_patch("extra_conds", lambda **kwargs: scale)
    return clone


def with_injection(model: Any, scale: float) -> Any:
    clone = model.clone()
    injection = comfy.patcher_extension.PatcherInjection(lambda patcher: scale, lambda patcher: None)
    clone.set_injections("ours", [injection])
    return clone


ADVANCED = "nodes_model_advanced"
BASE = models.sd15(5).model
NODES: dict[str, Callable[[Any, bool], Any]] = {
    "FreeU": lambda model, more: node("nodes_freelunch", "FreeU", model, 3.0 if more else 1.1, 1.2, 0.9, 0.2),
    "prediction": lambda model, more: node(
        ADVANCED, "ModelSamplingDiscrete", model, "v_prediction" if more else "eps", False
    ),
    "zero SNR": lambda model, more: node(ADVANCED, "ModelSamplingDiscrete", model, "v_prediction", more),
    "shift": lambda model, more: node(ADVANCED, "ModelSamplingSD3", model, 4.0 if more else 3.0),
    "DeepShrink": lambda model, more: node(
        "nodes_model_downscale",
        "PatchModelAddDownscale",
        model,
        1,
        3.0 if more else 2.0,
        0.0,
        0.35,
        True,
        "bicubic",
        "bicubic",
    ),
    "ToMe": lambda model, more: node("nodes_tomesd", "TomePatchModel", model, 0.4 if more else 0.3),
    "RescaleCFG": lambda model, more: node(ADVANCED, "RescaleCFG", model, 0.8 if more else 0.7),
    "merge": lambda model, more: node("nodes_model_merging", "ModelMergeSimple", model, BASE, 0.4 if more else 0.3),
    "wrapper": lambda model, more: with_wrapper(model, 2.0 if more else 1.0),
    "weight wrapper": lambda model, more: with_weight_wrapper(model, 2.0 if more else 1.0),
    "hook": lambda model, more: with_hook(model, 2.0 if more else 1.0),
    "object": lambda model, more: with_object(model, 2.0 if more else 1.0),
    "injection": lambda model, more: with_injection(model, 2.0 if more else 1.0),
}


@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
def test_what_a_node_puts_on_a_model_counts_with_its_settings(make: Callable[[Any, bool], Any], two_models) -> None:
    one, other = two_models
    made = make(one, False)
    prints = [model_identity(each) for each in (one, made, make(one, True), make(other, False))]
    assert len(set(prints)) == len(prints)
    assert model_identity(made.clone()) == prints[1]
    assert model_identity(make(one, False), "graph") == model_identity(make(one, False), "graph")


SETTINGS = {"strength": 1.0}


def test_of_code_the_graph_counts_where_a_setting_lies_out_of_sight(small: models.Small) -> None:
    patched = small.model.clone()
    patched.set_model_attn2_output_patch(lambda n, extra: n * SETTINGS["strength"])
    assert model_identity(patched, "strength 1") != model_identity(patched, "strength 3")
    assert model_identity(patched, "strength 1") == model_identity(patched, "strength 1")


def test_sampling_that_cannot_be_read_is_known_by_the_graph(small: models.Small) -> None:
    patched = small.model.clone()
    patched.add_object_patch("model_sampling", SamplingWithGenerator())
    assert sampling_identity(patched, "a") == sampling_identity(patched, "a") != sampling_identity(patched, "b")


class SamplingWithGenerator:
    def __init__(self) -> None:
        self.generator = torch.Generator()


@pytest.fixture(scope="module")
def two_models() -> tuple[Any, Any]:
    return models.sd15().model, models.sd15(9).model


def test_a_model_without_code_on_is_known_by_its_fingerprint(small: models.Small) -> None:
    with_lora = patched(small.clip)
    assert model_identity(small.model, "graph") == model_fingerprint(small.model)
    assert model_identity(with_lora) == model_fingerprint(with_lora)


def test_a_clip_with_hooks_is_known_by_them(small: models.Small) -> None:
    def hooked(strength: float) -> Any:
        clip = small.clip.clone()
        clip.apply_hooks_to_conds = comfy.hooks.create_hook_lora({}, strength, strength)
        return clip

    assert model_identity(hooked(0.5)) != model_identity(hooked(1.0)) != model_identity(small.clip)
    assert model_identity(hooked(0.5), "graph") == model_identity(hooked(0.5), "graph")


def test_sampling_is_known_by_its_class_levels_and_shift(small: models.Small) -> None:
    def sampling(*settings: Any) -> str:
        return sampling_identity(node(ADVANCED, *settings[:1], small.model, *settings[1:]))

    made = [("ModelSamplingDiscrete", kind, False) for kind in ("eps", "v_prediction", "lcm")]
    made += [("ModelSamplingDiscrete", "eps", True), ("ModelSamplingSD3", 3.0), ("ModelSamplingSD3", 4.0)]
    assert len({sampling_identity(small.model), *(sampling(*each) for each in made)}) == len(made) + 1
    assert sampling(*made[1]) == sampling(*made[1])


def test_what_another_clone_has_put_on_the_shared_model_does_not_count(small: models.Small) -> None:
    """The host puts a clone's object patches on the model that all clones share, until another is loaded."""
    cpu, other = torch.device("cpu"), NODES["zero SNR"](small.model, True)
    before = model_identity(small.model), model_identity(other), sampling_identity(small.model)
    with sampling_mode():
        other.patch_model(cpu)
        assert other.object_patches_backup
        assert (model_identity(small.model), model_identity(other), sampling_identity(small.model)) == before
        other.unpatch_model(cpu)
