"""Text, pictures and noise levels in the terms of the graph's CLIP, VAE and MODEL."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..objective import Family
from ..problems import raise_if_any
from .view import sampling_mode

Conditioning = list[Any]
"""ComfyUI's CONDITIONING: [[embedding, options], ...]"""


def family(model: Any) -> Family:
    """How the MODEL noises and predicts, patches of its sampling included.

    Raises:
        InputError: the family's prediction is one the objective does not know.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = comfy.model_sampling
    known = {kinds.CONST: "flow", kinds.V_PREDICTION: "v", kinds.EPS: "eps"}
    foreign = (kinds.X0, kinds.EDM, kinds.IMG_TO_IMG_FLOW)
    prediction = next((name for kind, name in known.items() if isinstance(sampling, kind)), None)
    if prediction is None or isinstance(sampling, foreign):
        names = ", ".join(kind.__name__ for kind in type(sampling).__mro__[1:3])
        raise_if_any("MODEL", [f"its prediction type ({names}) cannot be trained; eps, v and flow models can."])
    sigmas = sampling.sigmas.detach().float().cpu().clone()
    return Family(prediction or "", sigmas, float(getattr(sampling, "sigma_data", 1.0)))


def encode_text(clip: Any, text: str, is_prompt: bool = False) -> Conditioning:
    """The CLIP's conditioning for a text, on the CPU, as normal tensors.

    Args:
        is_prompt: parentheses weight words, as in every prompt of the host; in a caption they are plain text.
    """
    with sampling_mode():
        tokens = clip.tokenize(text) if is_prompt else _literal_tokens(clip, text)
        return _own(clip.encode_from_tokens_scheduled(tokens))


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Latents of pictures, as the VAE gives them.

    Args:
        pixels: (B, H, W, 3) in [0, 1].
    """
    with sampling_mode():
        return _own(vae.encode(pixels))


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pictures (B, H, W, 3) in [0, 1] from latents in the VAE's own scale."""
    with sampling_mode():
        images = vae.decode(latents)
        return _own(images.flatten(0, 1).clamp(0, 1) if images.dim() == 5 else images.clamp(0, 1))


def to_model_space(base_model: Any, latents: torch.Tensor) -> torch.Tensor:
    """VAE latents scaled and shifted as the model was trained on them."""
    return base_model.process_latent_in(latents)


def from_model_space(base_model: Any, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_model_space`."""
    return base_model.process_latent_out(latents)


def batch_conds(
    base_model: Any, conditionings: Sequence[Conditioning], latents: torch.Tensor
) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
    """What `apply_model` takes for a batch, each sample with its own conditioning.

    Args:
        conditionings: one a sample.
        latents: (B, C, ...) on the model's device, for shapes and devices.

    Returns:
        Groups (sample indices, arguments); one group unless conditionings have lengths that cannot be joined.
    """
    groups: list[tuple[list[int], list[dict[str, Any]]]] = []
    for index, conditioning in enumerate(conditionings):
        conds = _model_conds(base_model, conditioning, latents[index : index + 1])
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
    """Refuses a MODEL, CLIP and VAE that do not belong together.

    Raises:
        InputError: with every mismatch.
    """
    problems = []
    if not isinstance(model.model.diffusion_model, UNetModel):
        kind = type(model.model.diffusion_model).__name__
        problems.append(f"model is a {kind}: SD1.5, SD2 and SDXL models can be trained so far.")
    latent_format = model.get_model_object("latent_format")
    wanted = (latent_format.latent_channels, latent_format.latent_dimensions)
    got = (vae.latent_channels, vae.latent_dim)
    name = type(latent_format).__name__
    if got[0] != wanted[0]:
        problems.append(
            f"vae gives latents with {got[0]} channels, the model ({name}) takes {wanted[0]}: "
            "they are of different families. Connect the VAE that belongs to the model's checkpoint."
        )
    elif got[1] != wanted[1]:
        problems.append(
            f"vae gives latents of {got[1]} dimensions, the model ({name}) takes {wanted[1]}: "
            "they are of different families. Connect the VAE that belongs to the model's checkpoint."
        )
    unet = model.model.model_config.unet_config
    width = unet.get("context_dim", unet.get("context_in_dim"))
    if isinstance(width, int):
        embedding, options = encode_text(clip, "")[0][:2]
        if embedding.shape[-1] != width:
            problems.append(
                f"clip gives embeddings {embedding.shape[-1]} wide, the model takes {width}: "
                "they are of different families. Connect the CLIP that belongs to the model's checkpoint."
            )
        elif model.model.adm_channels and options.get("pooled_output") is None:
            problems.append(
                "clip gives no pooled embedding, which the model needs: they are of different families. "
                "Connect the CLIP that belongs to the model's checkpoint."
            )
    raise_if_any("MODEL, CLIP and VAE together", problems)


def wants_size_conditioning(model: Any) -> bool:
    """Whether the model is told each picture's size and crop (SDXL and its kin)."""
    return bool(model.model.adm_channels) and hasattr(model.model, "embedder")


def latent_scale(vae: Any) -> int:
    """Pixels per latent cell along a side."""
    return int(vae.spacial_compression_encode())


def latent_shape(model: Any, vae: Any, width: int, height: int) -> tuple[int, ...]:
    """The shape (C, ...) of one picture's latent."""
    latent_format = model.get_model_object("latent_format")
    scale = latent_scale(vae)
    frames = (1,) if latent_format.latent_dimensions == 3 else ()
    return (latent_format.latent_channels, *frames, height // scale, width // scale)


def _literal_tokens(clip: Any, text: str) -> Any:
    text = text.replace("\\(", "(").replace("\\)", ")")
    try:
        return clip.tokenize(text, disable_weights=True)
    except TypeError:  # tokenizers that never weight words set the option themselves, and refuse it from others
        return clip.tokenize(text)


def _model_conds(base_model: Any, conditioning: Conditioning, latent: torch.Tensor) -> dict[str, Any]:
    device = latent.device
    conds = comfy.sampler_helpers.convert_cond(conditioning[:1])
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
