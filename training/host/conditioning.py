"""Text, pictures and noise levels in the terms of the graph's CLIP, VAE and MODEL."""

import math
from collections.abc import Sequence
from typing import Any

import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch

from ..basics.errors import InputError, raise_if_any
from ..learning.family import Family
from ..learning.prediction import Eps, Flow, Prediction, V
from .families import facts_about, find_family, unknown_family
from .modes import sampling_mode

Conditioning = list[Any]
"""ComfyUI's CONDITIONING: [[embedding, options], ...]"""


def family(model: Any) -> Family:
    """How the MODEL noises and predicts, patches of its sampling included.

    Raises:
        InputError: the family's prediction is one the objective does not know.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = comfy.model_sampling
    known: dict[type, type[Prediction]] = {kinds.CONST: Flow, kinds.V_PREDICTION: V, kinds.EPS: Eps}
    foreign = (kinds.X0, kinds.EDM, kinds.IMG_TO_IMG_FLOW)
    prediction = next((ours for kind, ours in known.items() if isinstance(sampling, kind)), None)
    if prediction is None or isinstance(sampling, foreign):
        names = ", ".join(kind.__name__ for kind in type(sampling).__mro__[1:3])
        problem = f"its prediction type ({names}) cannot be trained; eps, v and flow models can: connect one of those."
        raise InputError("MODEL", [problem])
    sigmas = sampling.sigmas.detach().float().cpu().clone()
    patch = model.model.model_config.unet_config.get("patch_size", 2)
    is_patched = "model_sampling" in model.object_patches
    shift = 0.0 if is_patched else facts_about(model.model).timestep_shift
    return Family(
        prediction(sigmas, float(getattr(sampling, "sigma_data", 1.0))),
        shift=shift or _shift(sampling),
        patch=patch if isinstance(patch, int) else int(patch[-1]),
    )


def encode_text(clip: Any, text: str, is_prompt: bool = False) -> Conditioning:
    """The CLIP's conditioning for a text, on the CPU, as normal tensors.

    Args:
        is_prompt: parentheses weight words, as in every prompt of the host; in a caption they are plain text.
    """
    with sampling_mode():
        return _own(clip.encode_from_tokens_scheduled(tokens_of(clip, text, is_prompt)))


def tokens_of(clip: Any, text: str, is_prompt: bool = False) -> Any:
    """The CLIP's tokens of a text; parentheses weight words in a prompt alone."""
    return clip.tokenize(text) if is_prompt else _literal_tokens(clip, text)


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Latents of pictures, as the VAE gives them.

    Args:
        pixels: (B, H, W, 3) in [0, 1].
    """
    takes_batch_for_video = getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False)
    with sampling_mode():
        if takes_batch_for_video:
            return torch.cat([_own(vae.encode(picture)) for picture in pixels.split(1)])
        return _own(vae.encode(pixels))


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pictures (B, H, W, 3) in [0, 1] from latents in the VAE's own scale."""
    with sampling_mode():
        images = vae.decode(latents)
        return _own(images.flatten(0, 1).clamp(0, 1) if images.dim() == 5 else images.clamp(0, 1))


def to_model_space(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """VAE latents scaled and shifted as the MODEL was trained on them."""
    return model.get_model_object("latent_format").process_in(latents)


def from_model_space(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_model_space`."""
    return model.get_model_object("latent_format").process_out(latents)


def batch_conds(
    base_model: Any, conditionings: Sequence[Conditioning], latents: torch.Tensor, guidance: float | None = None
) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
    """What `apply_model` takes for a batch, each sample with its own conditioning.

    Args:
        conditionings: one a sample.
        latents: (B, C, ...) on the model's device, for shapes and devices.
        guidance: for a model that `takes_guidance`; None = the host's default.

    Returns:
        Groups (sample indices, arguments); one group unless conditionings have lengths that cannot be joined.
    """
    extra = {} if guidance is None or not _takes_guidance(base_model) else {"guidance": guidance}
    groups: list[tuple[list[int], list[dict[str, Any]]]] = []
    for index, conditioning in enumerate(conditionings):
        conds = _model_conds(base_model, conditioning, latents[index : index + 1], extra)
        for indices, members in groups:
            first = members[0]
            if first.keys() == conds.keys() and all(first[key].can_concat(conds[key]) for key in conds):
                indices.append(index)
                members.append(conds)
                break
        else:
            groups.append(([index], [conds]))
    return [(indices, _join(members)) for indices, members in groups]


def predict(
    base_model: Any,
    options: dict[str, Any],
    x_t: torch.Tensor,
    sigma: torch.Tensor,
    groups: list[tuple[list[int], dict[str, torch.Tensor]]],
) -> torch.Tensor:
    """x_0 (B, C, ...) in float32 from x_t (B, C, ...), sigma (B,) and `batch_conds`."""
    if len(groups) == 1:
        return base_model.apply_model(x_t, sigma, transformer_options=options.copy(), **groups[0][1])
    parts = [
        base_model.apply_model(x_t[rows], sigma[rows], transformer_options=options.copy(), **conds)
        for rows, conds in groups
    ]
    order = torch.tensor([row for rows, _ in groups for row in rows], device=x_t.device)
    return torch.cat(parts)[order.argsort()]


def sampler_sigmas(base_model: Any, steps: int) -> torch.Tensor:
    """(steps + 1,) falling noise levels of the host's "normal" scheduler, ending in 0."""
    return comfy.samplers.calculate_sigmas(base_model.model_sampling, "normal", steps).cpu()


def start_noise(base_model: Any, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """x_T from unit noise, for the first sigma of a sampler."""
    return base_model.model_sampling.noise_scaling(
        sigma.to(noise.device), noise, torch.zeros_like(noise), max_denoise=True
    )


def check_compatible(model: Any, clip: Any, vae: Any) -> None:
    """Refuses a MODEL that cannot be trained, and a MODEL, CLIP and VAE that do not belong together.

    Raises:
        InputError: with every mismatch.
    """
    problems = [*_model_problems(model), *_vae_problems(model, vae)] or _clip_problems(model, clip)
    raise_if_any("MODEL, CLIP and VAE together", problems)


def training_guidance(base_model: Any) -> float | None:
    """The guidance value that a model with distilled guidance gets in training; None for others."""
    return facts_about(base_model).guidance if _takes_guidance(base_model) else None


def takes_guidance(model: Any) -> bool:
    """Whether the MODEL is told how strongly to be guided (Flux dev) and samples without a negative prompt."""
    return _takes_guidance(model.model)


def wants_size_conditioning(model: Any) -> bool:
    """Whether the MODEL takes each picture's size and crop."""
    return facts_about(model.model).has_size_conditioning


def captures_with_cuda_malloc(model: Any) -> bool:
    """Whether the MODEL's steps can be captured as CUDA graphs under cudaMallocAsync.

    Its family must allow it, and no other node may have patched its forward pass; LoRAs do not count.
    """
    patches = {name for name in model.object_patches if name != "model_sampling"}
    can_capture = facts_about(model.model).captures_with_cuda_malloc
    return can_capture and not patches and not model.model_options.get("transformer_options")


def latent_scale(vae: Any) -> int:
    """Pixels per latent cell along a side."""
    return int(vae.spacial_compression_encode())


def latent_shape(model: Any, vae: Any, width: int, height: int) -> tuple[int, ...]:
    """The shape (C, ...) of one picture's latent."""
    latent_format = model.get_model_object("latent_format")
    scale = latent_scale(vae)
    frames = (1,) if latent_format.latent_dimensions == 3 else ()
    return (latent_format.latent_channels, *frames, height // scale, width // scale)


FOREIGN = "they are of different families."


def _shift(sampling: Any) -> float:
    """s of sigma = s * u / (1 + (s - 1) * u), as the flow model was trained (Esser et al., arXiv:2403.03206)."""
    if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux):
        return math.exp(sampling.shift)
    return float(sampling.shift) if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow) else 1.0


def _takes_guidance(base_model: Any) -> bool:
    is_distilled = bool(base_model.model_config.unet_config.get("guidance_embed"))
    return is_distilled and facts_about(base_model).guidance is not None


def _model_problems(model: Any) -> list[str]:
    family = find_family(model.model)
    problem = unknown_family(model.model) if family is None else family.refusal_of(model.model)
    return [problem] if problem else []


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


def _literal_tokens(clip: Any, text: str) -> Any:
    text = text.replace("\\(", "(").replace("\\)", ")")
    try:
        return clip.tokenize(text, disable_weights=True)
    except TypeError:  # tokenizers that never weight words set the option themselves, and refuse it from others
        return clip.tokenize(text)


def _model_conds(
    base_model: Any, conditioning: Conditioning, latent: torch.Tensor, extra: dict[str, Any]
) -> dict[str, Any]:
    device = latent.device
    embedding, options = conditioning[0]
    conds = comfy.sampler_helpers.convert_cond([[embedding, {**options, **extra}]])
    conds = comfy.samplers.encode_model_conds(base_model.extra_conds, conds, latent, device, "positive")
    return {key: value.process_cond(batch_size=1, area=None) for key, value in conds[0]["model_conds"].items()}


def _join(members: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    first, *rest = members
    return {key: value.concat([other[key] for other in rest]) for key, value in first.items()}


def _own(value: Any) -> Any:
    """Normal CPU tensors in place of inference tensors, all through lists and dicts."""
    if isinstance(value, torch.Tensor):
        with torch.inference_mode(False):
            return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_own(item) for item in value)
    return value
