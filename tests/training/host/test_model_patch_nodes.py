"""Every node of the host that changes a MODEL: one can train behind it, or is told by name why not.

A node that a new host brings belongs into one of the tables here; until then the first test fails.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.host.families import FAMILIES

import models
from gradients import Probe, distance

pytestmark = pytest.mark.host("0.30.0")

# ---------------------------------------------------------------- the tables: class -> module and what it gets

GUIDANCE: dict[str, tuple[Any, ...]] = {
    "APG": ("nodes_apg", 1.0, 5.0, 0.0),
    "CFGNorm": ("nodes_cfg", 1.0, False),
    "CFGOverride": ("nodes_custom_sampler", 1.0, 0.0, 1.0),
    "CFGZeroStar": ("nodes_cfg",),
    "DifferentialDiffusion": ("nodes_differential_diffusion", 1.0),
    "EpsilonScaling": ("nodes_eps", 1.005),
    "FreSca": ("nodes_fresca", 1.0, 1.25, 20),
    "LatentApplyOperationCFG": ("nodes_latent", lambda latent, **options: latent),
    "Mahiro": ("nodes_mahiro",),
    "NAGuidance": ("nodes_nag", 5.0, 0.5, 1.5),
    "PerpNeg": ("nodes_perpneg", [[torch.zeros(1, 4, models.WIDTH), {}]], 1.0),
    "PerturbedAttentionGuidance": ("nodes_pag", 3.0),
    "RenormCFG": ("nodes_lumina2", 100.0, 1.0),
    "RescaleCFG": ("nodes_model_advanced", 0.7),
    "SelfAttentionGuidance": ("nodes_sag", 0.5, 2.0),
    "SkipLayerGuidanceDiT": ("nodes_slg", 3.0, 0.01, 0.15, "7", "7", 0.0),
    "SkipLayerGuidanceDiTSimple": ("nodes_slg", 0.0, 1.0, "7", "7"),
    "SkipLayerGuidanceSD3": ("nodes_sd3", "7", 3.0, 0.01, 0.15),
    "TCFG": ("nodes_tcfg",),
    "TemporalScoreRescaling": ("nodes_eps", 0.95, 1.0),
    "VideoLinearCFGGuidance": ("nodes_video_model", 1.0),
    "VideoTriangleCFGGuidance": ("nodes_video_model", 1.0),
}
"""They act on what a sampler makes of the predictions: training is as without them."""

UNSEEN: dict[str, tuple[Any, ...]] = {
    "EasyCacheNode": ("nodes_easycache", 0.2, 0.15, 0.95, False),
    "LazyCacheNode": ("nodes_easycache", 0.2, 0.15, 0.95, False),
}
"""Wrappers, for speed: training goes without them, and says so by name."""

PATCHES: dict[str, tuple[Any, ...]] = {
    "FreeU": ("nodes_freelunch", 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": ("nodes_freelunch", 1.3, 1.4, 0.9, 0.2),
    "HyperTile": ("nodes_hypertile", 32, 2, 0, False),
    "PatchModelAddDownscale": ("nodes_model_downscale", 1, 2.0, 0.0, 0.9, True, "bicubic", "bicubic"),
    "TomePatchModel": ("nodes_tomesd", 0.5),
}
"""Code in the forward pass: the model is trained with it."""

WEIGHTS: dict[str, tuple[Any, ...]] = {
    "UNetCrossAttentionMultiply": ("nodes_attention_multiply", 1.0, 1.0, 1.0, 1.2),
    "UNetSelfAttentionMultiply": ("nodes_attention_multiply", 1.0, 1.0, 1.0, 1.2),
    "UNetTemporalAttentionMultiply": ("nodes_attention_multiply", 1.2, 1.0, 1.2, 1.0),
}
"""Other weights or options: the model is trained with them."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "ModelComputeDtype": ("nodes_model_advanced", "fp32"),
    "wanBlockSwap": ("nodes_nop",),
    "ScaleROPE": ("nodes_rope", 1.0, 0.0, 1.0, 0.0, 1.0, 0.0),
}
"""Nothing that this model would read."""

SAMPLINGS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "ModelSamplingAuraFlow": ("nodes_model_advanced", "flow", (1.73,)),
    "ModelSamplingContinuousEDM": ("nodes_model_advanced", "v", ("v_prediction", 120.0, 0.002)),
    "ModelSamplingContinuousV": ("nodes_model_advanced", "v", ("v_prediction", 500.0, 0.03)),
    "ModelSamplingDiscrete": ("nodes_model_advanced", "v", ("v_prediction", False)),
    "ModelSamplingFlux": ("nodes_model_advanced", "flow", (1.15, 0.5, 1024, 1024)),
    "ModelSamplingSD3": ("nodes_model_advanced", "flow", (3.0,)),
}
"""Other predictions, and what they are."""

WITH_A_MODEL = {
    "AnimaLLLiteApply": ("comfy.ldm.anima.lllite", "AnimaLLLitePatch"),
    "QwenImageDiffsynthControlnet": ("comfy_extras.nodes_model_patch", "DiffSynthCnetPatch"),
    "SUPIRApply": ("comfy.ldm.supir.supir_patch", "SUPIRPatch"),
    "USOStyleReference": ("comfy_extras.nodes_model_patch", "UsoStyleProjectorPatch"),
    "WanInfiniteTalkToVideo": ("comfy.ldm.wan.model_multitalk", "MultiTalkCrossAttnPatch"),
    "WanUni3CControlnetApply": ("comfy_extras.nodes_model_patch", "WanUni3CCnetPatch"),
    "ZImageFunControlnet": ("comfy_extras.nodes_model_patch", "ZImageControlPatch"),
}
"""Patches with a model of their own, and the class of the patch: refused."""

OTHER_FAMILIES = {
    "ARVideoI2V": "WAN21", "ChromaRadianceOptions": "ChromaRadiance", "ContextWindowsManualNode": "WAN21",
    "HiDreamO1PatchSeamSmoothing": "HiDreamO1", "LTXVContextWindowsNode": "LTXV", "LTXVReferenceAudio": "LTXV",
    "MiniMaxH3SigmaShift": "MiniMaxH3", "ModelNoiseScale": "HiDreamO1", "ModelSamplingLTXV": "LTXV",
    "ModelSamplingStableCascade": "StableCascade_C", "TripoSplatSamplingPreview": "TripoSplat",
    "WanContextWindowsManualNode": "WAN21",
}  # fmt: skip
"""Nodes for models that are refused as such."""

SORTED_ELSEWHERE = {
    "FluxKVCache": "the test of object patches below",
    "HypernetworkLoader": "the test of hypernetworks below",
    "LoraLoader": "test_loras.py", "LoraLoaderModelOnly": "test_loras.py", "LoraModelLoader": "test_loras.py",
    "LoraLoaderBypass": "injections, below", "LoraLoaderBypassModelOnly": "injections, below",
    "ModelAdd": "weights", "ModelMergeBlocks": "weights", "ModelMergeSimple": "weights", "ModelSubtract": "weights",
    "MultiGPUCFGSplitNode": "needs two GPUs", "SelectModelDeviceNode": "another load_device",
    "TorchCompileModel": "a wrapper, as EasyCache",
}  # fmt: skip
"""Nodes whose kind has its test in another place."""

RUN = {name: entry for table in (GUIDANCE, UNSEEN, PATCHES, WEIGHTS, NEUTRAL) for name, entry in table.items()}
SORTED = {*RUN, *SAMPLINGS, *WITH_A_MODEL, *OTHER_FAMILIES, *SORTED_ELSEWHERE}


# ---------------------------------------------------------------- the host's nodes, read from its source


def _names(node: ast.AST) -> set[str]:
    """The strings, and the names before and after each dot, in a piece of code."""
    found = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Attribute):
            found.add(f"{each.value.attr}.{each.attr}")
    return found


def patch_nodes(host_dir: Path) -> Iterator[str]:
    """The classes of nodes that take a MODEL and give one, in a host's source; merges of named blocks are one kind."""
    for path in [host_dir / "nodes.py", *sorted((host_dir / "comfy_extras").glob("nodes_*.py"))]:
        classes = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
        for each in classes:
            bases = {ast.unparse(base).rpartition(".")[2] for base in each.bases}
            if not bases & {"ModelMergeBlocks"} and ("Model.Input" in _names(each) or _takes_model(each)):
                if _gives_model(each, classes):
                    yield each.name


def _takes_model(node: ast.ClassDef) -> bool:
    """Whether a node of the old kind takes a MODEL."""
    parts = {statement.name: statement for statement in node.body if isinstance(statement, ast.FunctionDef)}
    return "INPUT_TYPES" in parts and "MODEL" in _names(parts["INPUT_TYPES"])


def _gives_model(node: ast.ClassDef, classes: list[ast.ClassDef]) -> bool:
    """Whether a node returns a MODEL, by itself or its base in the same file."""
    for statement in node.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "RETURN_TYPES":
            return "MODEL" in _names(statement.value)
    bases = [each for each in classes if each.name in {ast.unparse(base) for base in node.bases}]
    return "Model.Output" in _names(node) or any(_gives_model(base, classes) for base in bases)


def test_every_node_is_sorted(host_dir: Path) -> None:
    there = set(patch_nodes(host_dir))
    assert {"FreeU", "LoraLoader", "ZImageFunControlnet", "ModelMergeSimple"} <= there  # of each kind of class
    assert there - SORTED == set(), "sort these nodes into a table of this file"
    assert SORTED - there == set(), "the host has these nodes no more"


# ---------------------------------------------------------------- what happens behind them


def patched(model: Any, name: str, module: str, *arguments: Any) -> Any:
    """A MODEL after a node of the host, run as the host runs it."""
    importlib.import_module("comfy_extras.nodes_post_processing")  # it and nodes_latent import each other
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    with torch.inference_mode():
        call = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
        result = call(model, *arguments)
    return result[0] if isinstance(result, tuple) else result.args[0]


def gradients(small: models.Small, model: Any, checkpointing: bool = False) -> list[torch.Tensor]:
    """Of the adapters on a MODEL's attention layers, with a batch of two."""
    with host.training_mode():
        twin = host.trainable_twin(model, torch.float32)
        if checkpointing:
            host.checkpoint_blocks(twin, draws=True)
        sigma = 3.0 if host.family(model).prediction.name != "flow" else 0.6
        torch.manual_seed(1)
        return Probe(models.Small(model, small.clip, small.vae), sigma, twin, targets="attention").gradients()


def is_read_as(model: Any, plain: Any) -> bool:
    """Whether a twin of one MODEL gets what a twin of the other gets, to the last option."""
    read = [(host.transformer_options(each), each.patches, each.object_patches) for each in (model, plain)]
    return read[0] == read[1]


@pytest.fixture(scope="module")
def small() -> models.Small:
    return models.sd15()


@pytest.fixture(scope="module")
def plain(small: models.Small) -> list[torch.Tensor]:
    """The gradients without any node."""
    return gradients(small, small.model)


@pytest.mark.parametrize("name", RUN)
def test_gradients_pass_or_the_node_is_named(name: str, small: models.Small, plain: list[torch.Tensor]) -> None:
    model = patched(small.model, name, *RUN[name])
    ours = plain if is_read_as(model, small.model) else gradients(small, model)
    assert all(each.isfinite().all() for each in ours)
    changes = name in {*PATCHES, *WEIGHTS}
    assert distance(ours, plain) > 1e-3 if changes else distance(ours, plain) < 1e-4
    if name in PATCHES:
        assert distance(gradients(small, model, checkpointing=True), ours) < 1e-5
    notes = " ".join(host.warnings_about(model))
    if name in UNSEEN:
        assert "carries wrappers (" in notes and "training goes without them" in notes
    if name in PATCHES:
        assert f"trained with its patches ({name}." in notes


@pytest.mark.parametrize("name", SAMPLINGS)
def test_another_sampling_is_another_prediction(name: str, small: models.Small) -> None:
    module, prediction, arguments = SAMPLINGS[name]
    model = patched(small.model, name, module, *arguments)
    assert host.family(model).prediction.name == prediction
    assert all(each.isfinite().all() for each in gradients(small, model))


def test_a_sampling_that_cannot_be_trained_is_refused(small: models.Small) -> None:
    model = patched(small.model, "ModelSamplingContinuousEDM", "nodes_model_advanced", "edm", 120.0, 0.002)
    with pytest.raises(InputError, match="its prediction type .* cannot be trained"):
        host.family(model)


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_a_patch_with_a_model_of_its_own_is_refused_by_name(name: str, small: models.Small) -> None:
    module, kind = WITH_A_MODEL[name]
    patch: Any = object.__new__(getattr(importlib.import_module(module), kind))
    vars(patch).update(dict.fromkeys(("encoded_image", "hint_latent", "prepared_render"), torch.zeros(1)))
    patch.model_patch = small.model  # what it brings: any model
    model = small.model.clone()
    if hasattr(patch, "register"):
        patch.register(model)
    else:
        model.set_model_patch(patch, "double_block")
    with pytest.raises(InputError, match=f"carries the patch {kind} of .*, which shows it a picture"):
        host.check_compatible(model, small.clip, small.vae)


def test_nodes_of_other_families_are_for_models_that_are_refused() -> None:
    assert not set(OTHER_FAMILIES.values()) & {family.model_class for family in FAMILIES}


# ---------------------------------------------------------------- kinds with a test of their own


def test_an_object_patch_leaves_the_model_as_it_was() -> None:
    flux = models.flux()
    params, before = flux.model.model.diffusion_model.params, models.flux().model.model.diffusion_model.params
    cached = patched(flux.model, "FluxKVCache", "nodes_flux")
    with host.training_mode():
        twin: Any = host.trainable_twin(cached, torch.float32)
        assert twin.diffusion_model.params.default_ref_method == "index_timestep_zero"
        ours = Probe(models.Small(cached, flux.clip, flux.vae), 0.6, twin, targets="attention").gradients()
        plain = Probe(flux, 0.6, host.trainable_twin(flux.model, torch.float32), targets="attention").gradients()
    assert params == before and flux.model.model.diffusion_model.params is params
    assert distance(ours, plain) < 1e-5


def test_a_hypernetwork_is_trained_with_or_named(small: models.Small, tmp_path: Path) -> None:
    weights = {f"linear.{end}": torch.ones(*shape) for end, shape in (("weight", (64, 64)), ("bias", (64,)))}
    torch.save({64: [weights, weights]}, tmp_path / "net.pt")
    from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

    outcomes = []
    for mode in (True, False):  # as nodes run; and with weights that were brought to a GPU since
        with torch.inference_mode(mode):
            patch: Any = load_hypernetwork_patch(str(tmp_path / "net.pt"), 0.1)
        model = small.model.clone()
        model.set_model_attn1_patch(patch)
        try:
            outcomes.append(all(each.isfinite().all() for each in gradients(small, model)))
        except InputError as error:
            assert "load_hypernetwork_patch.hypernetwork_patch of comfy_extras.nodes_hypernetwork" in str(error)
            outcomes.append("named")
    assert outcomes[1] is True


def test_injections_and_guidance_are_said(small: models.Small) -> None:
    model = patched(small.model, "RescaleCFG", "nodes_model_advanced", 0.7)
    model.set_injections("bypass_lora", [])
    notes = host.warnings_about(model)
    assert any("carries injections" in note for note in notes)
    assert any("carries guidance (RescaleCFG.patch.rescale_cfg of" in note for note in notes)
