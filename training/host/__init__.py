"""The only package that imports ComfyUI; the other rooms use it as `host.name`.

`families` is the table of model families. `twin` copies a MODEL for training, `packed` knows weights in formats of
other packs, `streaming` and `quantise` let it take less GPU memory, `memory_bound` keeps it within the GPU's, `fusion`,
`attention`, `products` and `rotation` make it faster, `blocks` adds gradient checkpointing.
`text_encoder`, `latents`, `conditioning` and `model_sampling` give what a training step needs of CLIP, VAE and MODEL;
`compatibility` checks that they belong together, `model_patches` and `guard` are about code of other nodes. `loras`
names layers in LoRA files. `folders` and `lora_folder` are files, `page` and `routes` the way to the browser.
"""

from . import version  # isort: skip  (first: refuses a ComfyUI that is too old for the other imports)

from .blocks import checkpoint_blocks, repeated_blocks
from .captioning import inference_device, loaded_for_inference
from .compatibility import check_compatible, check_formats, check_present, takes_pooled_text
from .conditioning import NEGATIVE, batch_conds, predict, takes_guidance, training_guidance, wants_size_conditioning
from .device import has_bf16, has_fp16, make_room, takes_fp16, training_device, training_dtype
from .families import (
    ModelFamily,
    base_version,
    family_of,
    family_of_architecture,
    family_of_version,
    timestep_density,
)
from .fingerprints import POOLING, model_fingerprint, model_identity, sampling_identity
from .folders import (
    WRITE_VARIABLE,
    cache_folder,
    cache_limit,
    data_path,
    data_roots,
    input_folder,
    is_picture_there,
    largest_upload,
    leaves_roots,
    may_write,
    model_folders,
    output_location,
    register_model_folder,
    resolve_folder,
    runs_root,
    thumbnail_address,
    wrong_roots,
)
from .fusion import fuse_layers
from .images import draw, sampler_names, scheduler_names
from .latents import decode_latents, encode_pixels, from_model_space, latent_shape, to_model_space
from .lora_folder import lora_files, lora_folder, lora_path, lora_paths
from .loras import LayerNames, Rows, changeable_names, dense_base_weight, in_the_hosts_spelling, layer_names, with_lora
from .memory_bound import bounded_memory
from .model_patches import (
    captures_with_cuda_malloc,
    check_reached,
    patch_names,
    patches_blamed,
    patches_on_device,
    transformer_options,
    warnings_about,
)
from .model_sampling import family, sampler_sigmas, set_sigmas, start_noise
from .modes import sampling_mode, training_mode
from .page import (
    Interrupted,
    Telling,
    empty_output,
    log,
    memory,
    progress_bar,
    raise_if_interrupted,
    running_node,
    send,
    show_text,
)
from .products import PRODUCTS, fp8_matmul_obstacle
from .quantise import FP8_MATMUL, OURS, linear_formats
from .routes import Content, Upload, UploadRules, serve_get, serve_json, serve_post, serve_upload
from .streaming import Streamed, free_bytes, stream_blocks, weight_bytes
from .text_encoder import clip_skip, encode_text, encode_text_with, trainable_text_encoder
from .twin import trainable_twin, twin_of
