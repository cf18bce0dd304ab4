"""The only room that knows ComfyUI: everything else asks here.

`view` makes a trainable twin of the graph's MODEL, `conditioning` turns text and pictures into what the model
takes, `loras` knows key names and patches, `places` the host's folders, `page` progress, interrupt and the page.
"""

from .captioning import inference_device, loaded_for_inference
from .conditioning import (
    batch_conds,
    check_compatible,
    decode_latents,
    encode_pixels,
    encode_text,
    family,
    from_model_space,
    latent_shape,
    predict,
    sampler_sigmas,
    start_noise,
    to_model_space,
    wants_size_conditioning,
)
from .images import draw, sampler_names, scheduler_names
from .loras import base_version, kohya_names, with_lora
from .page import (
    Interrupted,
    blocked,
    progress_bar,
    raise_if_interrupted,
    say,
    send,
    serve_json,
    show_text,
    where,
)
from .places import data_roots, lora_folder, model_folders, register_model_folder, resolve_folder
from .view import (
    checkpoint_blocks,
    make_room,
    patches_on_device,
    sampling_mode,
    trainable_view,
    training_device,
    training_dtype,
    training_mode,
    transformer_options,
    warnings_about,
)

__all__ = [
    "Interrupted",
    "base_version",
    "batch_conds",
    "blocked",
    "check_compatible",
    "checkpoint_blocks",
    "data_roots",
    "decode_latents",
    "draw",
    "encode_pixels",
    "encode_text",
    "family",
    "from_model_space",
    "inference_device",
    "kohya_names",
    "loaded_for_inference",
    "latent_shape",
    "lora_folder",
    "make_room",
    "model_folders",
    "patches_on_device",
    "predict",
    "progress_bar",
    "raise_if_interrupted",
    "register_model_folder",
    "resolve_folder",
    "sampler_names",
    "sampler_sigmas",
    "sampling_mode",
    "say",
    "scheduler_names",
    "send",
    "serve_json",
    "show_text",
    "start_noise",
    "to_model_space",
    "trainable_view",
    "training_device",
    "training_dtype",
    "training_mode",
    "transformer_options",
    "wants_size_conditioning",
    "warnings_about",
    "where",
    "with_lora",
]
