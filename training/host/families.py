"""The table of model families: one row per family, with everything that differs between families.

To train another family of the host, add a row to FAMILIES; the trainer reads the row wherever families differ.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType

from ..basics.errors import InputError

HOST_MODULE = "comfy.model_base"


@dataclass(frozen=True)
class Version:
    """A published version of a family, as LoRA files name it."""

    config_class: str
    """Class in comfy.supported_models that the host detects for it."""
    base_version: str
    """kohya's ss_base_model_version."""
    architecture: str
    """modelspec.architecture."""
    applies: Callable[[Any], bool] = lambda base_model: True
    """Whether a `BaseModel` with that config class is this version."""


@dataclass(frozen=True)
class Resolution:
    """Picture sides, in pixels, for advice."""

    native: int
    """The model was trained on pictures of this side."""
    too_small: int = 0
    """Advice against sides up to this; 0 = none."""
    smallest: int = 0
    """Smallest side to recommend instead."""
    too_large: int = 0
    """Advice against sides from this on; 0 = none."""
    largest: int = 0
    """Largest side to recommend instead."""


@dataclass(frozen=True)
class Refusal:
    """Models of a family that cannot be trained, and why."""

    applies: Callable[[Mapping[str, Any]], bool]
    """Called with the model's config (the host's unet_config)."""
    reason: Callable[[Mapping[str, Any]], str]
    """Called likewise; gives what follows on "model " in the message."""


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """What is known about one family of diffusion models.

    Paths are module paths below `diffusion_model`. Config keys are those of the host's unet_config.
    """

    name: str
    """What people call it."""

    # ---- which models belong to it
    model_class: str
    """Class of the host's `BaseModel`: a name in comfy.model_base, or a full dotted name. Subclasses do not count,
    since a subclass may change the forward pass; UNets are the exception."""
    config_classes: tuple[str, ...] = ()
    """Classes in comfy.supported_models that belong to the row; empty = any."""
    is_unet: bool = False
    """Whether `diffusion_model` is the host's UNetModel."""
    refusals: tuple[Refusal, ...] = ()

    # ---- text and conditioning
    text_layer: str = ""
    """Path of the layer that reads the text embedding: its in_features are the embedding's width."""
    text_width: str = ""
    """Config key of the text embedding's width, for families without one such layer."""
    pooled_width: str = ""
    """Config key, or attribute of the `BaseModel`, of the pooled text embedding's width; empty = not used."""
    shares_pooled_vector: bool = False
    """The pooled embedding is only one part of a vector of that width, so its own width is not checked."""
    has_size_conditioning: bool = False
    """Takes each picture's size and crop (Podell et al., arXiv:2307.01952, section 2.2)."""

    # ---- training defaults
    timestep_density: str = "auto"
    """What timestep_sampling "auto" means, one of config.TIMESTEP_SAMPLINGS; auto = by prediction type."""
    timestep_shift: float = 0.0
    """Timestep shift in training; 0 = the shift that the host samples with."""
    guidance: float | None = None
    """Guidance value in training for models with distilled guidance (config key guidance_embed)."""
    resolution: Resolution | None = None
    presets: tuple[str, ...] = ()
    """Names in config.PRESETS that were made for the family."""

    # ---- layers
    blocks: tuple[str, ...] = ()
    """Paths of the module lists of repeated blocks, in the order of the forward pass; empty = all outermost lists."""
    in_place_blocks: tuple[str, ...] = ()
    """Class names of blocks that add in place to tensors which autograd has saved."""
    fused_layers: str = ""
    """Regular expression for paths of layers that hold attention and feed-forward in one matrix."""
    target_blocks: Mapping[str, str] = field(default_factory=dict)
    """Choice of config.TARGETS that names one block -> start of the block's path."""
    captures_with_cuda_malloc: bool = False
    """Whether a step can be captured as a CUDA graph under cudaMallocAsync."""

    # ---- names in LoRA files
    kohya_paths: str = "original"
    """Module paths that kohya's keys are made of: "original" or "diffusers"."""
    label_embedding: str = "class_embedding"
    """diffusers' name of a UNet's label_emb, for which the host's map has two."""
    prefers_later_names: bool = False
    """Of several diffusers names for a layer in the host's map, the last one is the family's; else the first."""
    not_in_diffusers: str = ""
    """Regular expression for names that the host's map gives as diffusers', but that diffusers' model lacks."""
    versions: tuple[Version, ...] = ()
    """The first that applies; models without one are named after their config class."""
    architecture: str = ""
    """Start of modelspec.architecture in all its versions."""
    implementation: str = ""
    """modelspec.implementation of kohya's keys; empty = ComfyUI's."""
    network_module: str = "networks.lora"
    """kohya's ss_network_module of a plain LoRA."""

    def version_of(self, base_model: Any) -> Version | None:
        """The version of a `BaseModel` of this family; None if no version is listed for it."""
        config_class = type(base_model.model_config).__name__
        found = (each for each in self.versions if each.config_class == config_class and each.applies(base_model))
        return next(found, None)

    def refusal_of(self, base_model: Any) -> str:
        """Why a `BaseModel` of this family cannot be trained; empty if it can."""
        config = base_model.model_config.unet_config
        return next((f"model {each.reason(config)}" for each in self.refusals if each.applies(config)), "")


# ---------------------------------------------------------------- the rows

EXTRA_CHANNELS = Refusal(
    lambda config: config["in_channels"] > config["out_channels"],
    lambda config: (
        f"takes {config['in_channels']} channels and gives {config['out_channels']}: it is an inpainting or "
        "control model, which cannot be trained so far. Connect the plain model of its family."
    ),
)
"""The network reads a picture or a mask beside the noisy latent."""
BESIDE_TEXT = Refusal(
    lambda config: config.get("num_classes") is not None,
    lambda config: (
        "reads more than a text: a picture's embedding, a task or a noise level (unCLIP, Lotus, upscalers). Such "
        "models cannot be trained so far. Connect the plain model of its family."
    ),
)
"""The network reads a vector that is not made of the text."""

UNET: dict[str, Any] = {
    "is_unet": True,
    "refusals": (EXTRA_CHANNELS,),
    "text_width": "context_dim",
    "pooled_width": "adm_channels",
    "shares_pooled_vector": True,
    "blocks": ("input_blocks", "middle_block", "output_blocks"),
    "captures_with_cuda_malloc": True,
}
SD: dict[str, Any] = {
    **UNET,
    "model_class": "BaseModel",
    "refusals": (EXTRA_CHANNELS, BESIDE_TEXT),
    "kohya_paths": "diffusers",
    "implementation": "diffusers",
}
SDXL: dict[str, Any] = {
    **UNET,
    "has_size_conditioning": True,
    "label_embedding": "add_embedding",
    "implementation": "https://github.com/Stability-AI/generative-models",
}
FLUX: dict[str, Any] = {
    "text_layer": "txt_in",
    "pooled_width": "vec_in_dim",
    "blocks": ("double_blocks", "single_blocks"),
    "in_place_blocks": ("DoubleStreamBlock", "SingleStreamBlock"),
    "fused_layers": r"single_blocks\.\d+\.linear[12]",
    "refusals": (EXTRA_CHANNELS,),
}
LUMINA: dict[str, Any] = {
    "model_class": "Lumina2",
    "text_layer": "cap_embedder.1",
    "pooled_width": "adm_channels",
    "blocks": ("context_refiner", "siglip_refiner", "noise_refiner", "layers"),
}


def _is_sd3_large(base_model: Any) -> bool:
    return base_model.model_config.unet_config.get("depth", 24) >= 38


def _is_sd3_5_medium(base_model: Any) -> bool:
    return bool(base_model.model_config.unet_config.get("x_block_self_attn_layers"))


def _predicts_v(base_model: Any) -> bool:
    return base_model.model_type == ModelType.V_PREDICTION


FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        **SD,
        name="SD1.5",
        config_classes=("SD15",),
        resolution=Resolution(native=512, too_large=1024, largest=768),
        presets=("SD1.5 character or object", "SD1.5 style"),
        versions=(Version("SD15", "sd_v1", "stable-diffusion-v1"),),
        architecture="stable-diffusion-v1",
    ),
    ModelFamily(
        **SD,
        name="SD2",
        config_classes=("SD20",),
        versions=(
            Version("SD20", "sd_v2", "stable-diffusion-v2-768-v", _predicts_v),
            Version("SD20", "sd_v2", "stable-diffusion-v2-512"),
        ),
        architecture="stable-diffusion-v2",
    ),
    ModelFamily(
        **SDXL,
        name="SDXL",
        model_class="SDXL",
        resolution=Resolution(native=1024, too_small=640, smallest=768),
        presets=("SDXL character or object", "SDXL style"),
        # up_blocks.0.attentions.0 and .1 of B-LoRA (Frenkel et al., arXiv:2403.14572)
        target_blocks={"SDXL content blocks": "output_blocks.0.1.", "SDXL style blocks": "output_blocks.1.1."},
        versions=(Version("SDXL", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),),
        architecture="stable-diffusion-xl",
    ),
    ModelFamily(
        **SDXL,
        name="SDXL refiner",
        model_class="SDXLRefiner",
        versions=(Version("SDXLRefiner", "sdxl_refiner_v1-0", "stable-diffusion-xl-v1-refiner"),),
        architecture="stable-diffusion-xl-v1-refiner",
    ),
    ModelFamily(
        name="SD3",
        model_class="SD3",
        text_layer="context_embedder",
        pooled_width="adm_channels",
        blocks=("joint_blocks",),
        versions=(
            Version("SD3", "sd3_5-large", "stable-diffusion-3-5-large", _is_sd3_large),
            Version("SD3", "sd3_5-medium", "stable-diffusion-3-5-medium", _is_sd3_5_medium),
            Version("SD3", "sd3_m", "stable-diffusion-3-medium"),
        ),
        architecture="stable-diffusion-3",
        implementation="https://github.com/Stability-AI/sd3.5",
        network_module="networks.lora_sd3",
    ),
    ModelFamily(
        **FLUX,
        name="Flux",
        model_class="Flux",
        guidance=1.0,  # captions and pictures of a dataset are not guided
        versions=(
            Version("Flux", "flux1", "flux-1-dev"),
            Version("FluxSchnell", "flux1", "flux-1-schnell"),
        ),
        architecture="flux-1",
        implementation="https://github.com/black-forest-labs/flux",
        network_module="networks.lora_flux",
    ),
    ModelFamily(
        **FLUX,
        name="Flux 2",
        model_class="Flux2",
        guidance=1.0,
        prefers_later_names=True,
        not_in_diffusers=r"transformer\.time_text_embed\..*",
        versions=(Version("Flux2", "flux2", "flux-2-dev"),),
        architecture="flux-2",
        implementation="https://github.com/black-forest-labs/flux2",
    ),
    ModelFamily(
        **FLUX,
        name="Chroma",
        model_class="Chroma",
        versions=(Version("Chroma", "chroma", "chroma"),),
        architecture="chroma",
    ),
    ModelFamily(
        **LUMINA,
        name="Z-Image",
        config_classes=("ZImage",),
        versions=(Version("ZImage", "zimage", "z-image"),),
        architecture="z-image",
    ),
    ModelFamily(
        **LUMINA,
        name="Lumina 2",
        not_in_diffusers=r"transformer\..*",  # the host has one map for it and for Z-Image
        versions=(Version("Lumina2", "lumina2", "lumina-2"),),
        architecture="lumina-2",
    ),
    ModelFamily(
        name="Qwen-Image",
        model_class="QwenImage",
        text_layer="txt_in",
        pooled_width="adm_channels",
        blocks=("transformer_blocks",),
        versions=(Version("QwenImage", "qwen_image", "qwen-image"),),
        architecture="qwen-image",
    ),
    ModelFamily(
        name="AuraFlow",
        model_class="AuraFlow",
        text_layer="cond_seq_linear",
        pooled_width="adm_channels",
        blocks=("double_layers", "single_layers"),
        versions=(Version("AuraFlow", "aura_flow", "aura-flow"),),
        architecture="aura-flow",
    ),
    ModelFamily(
        name="PixArt",
        model_class="PixArt",
        text_layer="y_embedder.y_proj.fc1",
        pooled_width="adm_channels",
        blocks=("blocks",),
        versions=(
            Version("PixArtAlpha", "pix_art_alpha", "pix-art-alpha"),
            Version("PixArtSigma", "pix_art_sigma", "pix-art-sigma"),
        ),
        architecture="pix-art",
    ),
    ModelFamily(**SD, name="other UNets of Stable Diffusion"),
)
"""The first row that a model belongs to counts."""

WITHOUT_ROW = ModelFamily(name="", model_class="")
"""Facts about a model that belongs to no family: its keys can be named, but it is not trained."""


# ---------------------------------------------------------------- looking a row up


def family_of(model: Any) -> ModelFamily:
    """The row of a MODEL.

    Raises:
        InputError: it belongs to no family that can be trained.
    """
    family = find_family(model.model)
    if family is None:
        raise InputError("MODEL", [unknown_family(model.model)])
    return family


def find_family(base_model: Any) -> ModelFamily | None:
    """The row of a `BaseModel` (or its twin); None if it belongs to no family."""
    is_unet = isinstance(base_model.diffusion_model, UNetModel)
    config_class = type(base_model.model_config).__name__
    for kind in type(base_model).__mro__ if is_unet else (type(base_model),):
        full_name = f"{kind.__module__}.{kind.__qualname__}"
        for family in FAMILIES:
            wanted = family.model_class if "." in family.model_class else f"{HOST_MODULE}.{family.model_class}"
            has_config = not family.config_classes or config_class in family.config_classes
            if full_name == wanted and is_unet == family.is_unet and has_config:
                return family
    return None


def facts_about(base_model: Any) -> ModelFamily:
    """The row of a `BaseModel` (or its twin), or WITHOUT_ROW."""
    return find_family(base_model) or WITHOUT_ROW


def unknown_family(base_model: Any) -> str:
    """The refusal of a `BaseModel` that belongs to no family."""
    names = ", ".join(family.name for family in FAMILIES if family.versions)
    return f"model is a {type(base_model).__name__}, which cannot be trained so far: {names} can."


def family_of_version(base_version: str) -> ModelFamily | None:
    """The row with a version of this ss_base_model_version."""
    matches = (family for family in FAMILIES if base_version in {each.base_version for each in family.versions})
    return next(matches, None)


def family_of_architecture(architecture: str) -> ModelFamily | None:
    """The row for a modelspec.architecture: the one with the longest matching start."""
    matches = [family for family in FAMILIES if family.architecture and architecture.startswith(family.architecture)]
    return max(matches, key=lambda family: len(family.architecture), default=None)


def timestep_density(model: Any) -> str:
    """The family's density for the config's timestep_sampling "auto"; "auto" = by prediction type."""
    return facts_about(model.model).timestep_density


def base_version(model: Any) -> tuple[str, str]:
    """A MODEL's names in LoRA files: (ss_base_model_version, modelspec.architecture)."""
    version = facts_about(model.model).version_of(model.model)
    if version is not None:
        return version.base_version, version.architecture
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", "-", type(model.model.model_config).__name__).lower()
    return words.replace("-", "_"), words
