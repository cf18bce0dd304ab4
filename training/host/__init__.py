"""The only room that knows ComfyUI: everything else asks here.

`view` makes a trainable twin of the graph's MODEL, `streaming` leaves its weights in RAM, `quantise` holds them in
fewer bits, `conditioning` turns text and pictures into what the model takes, `text_encoder` makes a trainable twin of
the CLIP, `loras` knows key names and patches, `places` the host's folders, `lora_folder` those of LoRAs, `recipes`
the files of other trainers, `page` progress, interrupt and the page, `fingerprints` tells models apart.
"""

from .captioning import inference_device, loaded_for_inference
from .conditioning import (
    TRAINING_GUIDANCE,
    batch_conds,
    check_compatible,
    decode_latents,
    encode_pixels,
    encode_text,
    family,
    from_model_space,
    is_plain_unet,
    latent_shape,
    predict,
    rows_of,
    sampler_sigmas,
    start_noise,
    takes_guidance,
    to_model_space,
    wants_size_conditioning,
)
from .fingerprints import model_fingerprint
from .fusion import fuse_layers
from .images import draw, sampler_names, scheduler_names
from .lora_folder import lora_files, lora_folder, lora_path
from .loras import LayerNames, base_version, layer_names, with_lora
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
from .places import (
    WRITE_VARIABLE,
    cache_folder,
    cache_limit,
    data_roots,
    may_write,
    model_folders,
    register_model_folder,
    resolve_folder,
)
from .recipes import read_recipe, recipe_files, recipe_path
from .streaming import Streamed, free_bytes, stream_blocks, weight_bytes
from .text_encoder import clip_skip, encode_text_with, trainable_text_encoder
from .view import (
    checkpoint_blocks,
    make_room,
    patches_on_device,
    sampling_mode,
    set_sigmas,
    trainable_view,
    training_device,
    training_dtype,
    training_mode,
    transformer_options,
    twin_of,
    warnings_about,
)

__all__ = [
    "Interrupted",
    "LayerNames",
    "Streamed",
    "TRAINING_GUIDANCE",
    "WRITE_VARIABLE",
    "base_version",
    "batch_conds",
    "blocked",
    "cache_folder",
    "cache_limit",
    "check_compatible",
    "checkpoint_blocks",
    "clip_skip",
    "data_roots",
    "decode_latents",
    "draw",
    "encode_pixels",
    "encode_text",
    "encode_text_with",
    "family",
    "free_bytes",
    "from_model_space",
    "fuse_layers",
    "inference_device",
    "is_plain_unet",
    "latent_shape",
    "layer_names",
    "loaded_for_inference",
    "lora_files",
    "lora_folder",
    "lora_path",
    "make_room",
    "may_write",
    "model_fingerprint",
    "model_folders",
    "patches_on_device",
    "predict",
    "progress_bar",
    "raise_if_interrupted",
    "read_recipe",
    "recipe_files",
    "recipe_path",
    "register_model_folder",
    "resolve_folder",
    "rows_of",
    "sampler_names",
    "sampler_sigmas",
    "sampling_mode",
    "say",
    "scheduler_names",
    "send",
    "serve_json",
    "set_sigmas",
    "show_text",
    "stream_blocks",
    "start_noise",
    "takes_guidance",
    "to_model_space",
    "trainable_text_encoder",
    "trainable_view",
    "training_device",
    "training_dtype",
    "training_mode",
    "transformer_options",
    "twin_of",
    "wants_size_conditioning",
    "warnings_about",
    "weight_bytes",
    "where",
    "with_lora",
]
