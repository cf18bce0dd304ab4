"""Whether a MODEL can be trained, and whether MODEL, CLIP and VAE belong together."""

from typing import Any

from ..basics.errors import raise_if_any
from .families import facts_about, find_family, unknown_family
from .model_patches import patch_problems
from .packed import refusal_of
from .text_encoder import encode_text

FOREIGN = "they are of different families."
MISSING = {
    "model": "model is missing: connect a node that loads one, such as Load Checkpoint or Load Diffusion Model.",
    "clip": "clip is missing: the checkpoint holds no text encoder. Connect Load CLIP, with the one the model takes.",
    "vae": "vae is missing: the checkpoint holds none. Connect Load VAE, with the one the model takes.",
}


def check_present(model: Any, clip: Any, vae: Any, subject: str) -> None:
    """Refuses inputs that a loader has left empty, since its file does not hold them.

    Raises:
        InputError: with all that are missing.
    """
    # The host's VAE of a checkpoint without one is an object without a model.
    given = {"model": model, "clip": clip, "vae": getattr(vae, "first_stage_model", None)}
    raise_if_any(subject, [MISSING[name] for name, each in given.items() if each is None])


def check_formats(model: Any) -> None:
    """Refuses a MODEL whose weights are in a format that cannot be trained on.

    Raises:
        InputError: naming the format.
    """
    problem = refusal_of(model.model)
    raise_if_any("MODEL", [problem] if problem else [])


def check_compatible(model: Any, clip: Any, vae: Any) -> None:
    """Refuses a MODEL that cannot be trained, and a MODEL, CLIP and VAE of different families.

    Raises:
        InputError: with all mismatches.
    """
    problems = [*_model_problems(model), *_vae_problems(model, vae)] or _clip_problems(model, clip)
    raise_if_any("MODEL, CLIP and VAE together", problems)


def takes_pooled_text(model: Any) -> bool:
    """Whether the MODEL takes a pooled embedding of the text, besides that of its words."""
    return _text_widths(model.model)[1] is not None


def _model_problems(model: Any) -> list[str]:
    family = find_family(model.model)
    problem = unknown_family(model.model) if family is None else family.refusal_of(model.model)
    return [*([problem] if problem else []), *patch_problems(model)]


def _vae_problems(model: Any, vae: Any) -> list[str]:
    latent_format = model.get_model_object("latent_format")
    name = type(latent_format).__name__
    if vae.latent_channels != latent_format.latent_channels:
        mismatch = (
            f"latents with {vae.latent_channels} channels, the model ({name}) takes {latent_format.latent_channels}"
        )
    elif vae.latent_dim != latent_format.latent_dimensions:
        mismatch = f"latents of {vae.latent_dim} dimensions, the model ({name}) takes {latent_format.latent_dimensions}"
    else:
        return []
    return [f"vae gives {mismatch}: {FOREIGN} Connect the VAE that belongs to the model's checkpoint."]


def _clip_problems(model: Any, clip: Any) -> list[str]:
    embedding, options = encode_text(clip, "")[0][:2]
    width, pooled_width = _text_widths(model.model)
    pooled = options.get("pooled_output")
    if width is not None and embedding.shape[-1] != width:
        mismatch = f"embeddings {embedding.shape[-1]} wide, the model takes {width}"
    elif pooled_width is not None and pooled is None:
        mismatch = "no pooled embedding, which the model needs"
    elif pooled_width and pooled.shape[-1] != pooled_width:
        mismatch = f"a pooled embedding {pooled.shape[-1]} wide, the model takes {pooled_width}"
    else:
        return []
    return [f"clip gives {mismatch}: {FOREIGN} Connect the CLIP that belongs to the model's checkpoint."]


def _text_widths(base_model: Any) -> tuple[int | None, int | None]:
    """Widths of the text and pooled text embeddings that the model takes; None = unknown or not used, 0 = any."""
    family, config = facts_about(base_model), base_model.model_config.unet_config
    if family.text_layer:
        width = base_model.diffusion_model.get_submodule(family.text_layer).in_features
    else:
        width = config.get(family.text_width)
    pooled = getattr(base_model, family.pooled_width, None) or config.get(family.pooled_width) or None
    return width if isinstance(width, int) else None, 0 if pooled and family.shares_pooled_vector else pooled
