"""kohya-ss/musubi-tuner: the TOML of --config_file or --dataset_config of its *_train_network.py.

Its names are those of sd-scripts with other defaults, and pictures are told by other keys. See
github.com/kohya-ss/musubi-tuner, 2026 (src/musubi_tuner/training/, src/musubi_tuner/dataset/config_utils.py).
"""

from collections.abc import Mapping
from typing import Any

from . import sd_scripts
from .ledger import Entry, Ledger
from .recipe import Recipe
from .sd_scripts.keys import CACHE, FOLDERS, GRAPH, MEMORY, METADATA

SOURCE, DATA_SOURCE = "musubi-tuner TOML", "musubi-tuner dataset file"
MARKS = (
    *("dit", "dit_dtype", "dit_high_noise", "image_directory", "image_jsonl_file", "video_directory"),
    "video_jsonl_file",
)
"""keys that only this trainer has"""
LORA = "networks.lora"
NETWORKS = tuple(
    f"{LORA}_{name}"
    for name in (
        *("wan", "framepack", "flux_2", "qwen_image", "kandinsky", "zimage", "hv_1_5", "hidream_o1", "krea2"),
        "ideogram4",
    )
)
"""its own LoRAs, one for each family of models"""
BY_RESOLUTION = ("qwen_shift", "flux2_shift", "krea2_shift")
"""values of timestep_sampling that are flux_shift with other numbers"""
DEFAULTS = {
    "discrete_flow_shift": 1.0,
    "model_prediction_type": "raw",
    "max_bucket_reso": 2048,
    "save_precision": "bf16",
}
"""those that differ from sd-scripts'"""

FILMS = "films are not trained here"
IGNORED = {
    **dict.fromkeys(("image_directory", "image_jsonl_file"), FOLDERS),
    "cache_directory": CACHE,
    "debug_dataset": CACHE,
    **dict.fromkeys(
        (
            *("dit", "dit_dtype", "dit_in_channels", "vae_dtype", "text_encoder1", "text_encoder2", "t5", "clip"),
            *("text_encoder_dtype", "image_encoder", "ckpt_dir", "task", "model_version", "flow_shift", "fp8_llm"),
            *("fp8_t5", "fp8_text_encoder", "fp8_vl", "num_layers"),
        ),
        GRAPH,
    ),
    **dict.fromkeys(
        (
            *("flash_attn", "sage_attn", "flash3", "split_attn", "compile", "compile_backend", "compile_mode"),
            *("compile_dynamic", "compile_fullgraph", "compile_cache_size_limit", "cuda_allow_tf32"),
            *("cuda_cudnn_benchmark", "dynamo_fullgraph", "dynamo_dynamic", "use_pinned_memory_for_block_swap"),
            *("block_swap_h2d_only", "block_swap_ring_size", "img_in_txt_in_offloading", "disable_numpy_memmap"),
            *("gradient_checkpointing_cpu_offload", "offload_inactive_dit", "vae_tiling", "vae_cache_cpu"),
            *("vae_spatial_tile_sample_min_size", "use_32bit_attention", "bulk_decode"),
        ),
        MEMORY,
    ),
    **dict.fromkeys(("metadata_reso", "metadata_arch"), METADATA),
}
MISSING: dict[str, tuple] = {
    **dict.fromkeys(
        (
            *("video_directory", "video_jsonl_file", "target_frames", "frame_extraction", "frame_stride", "max_frames"),
            *("frame_sample", "source_fps", "fp_latent_window_size", "latent_window_size", "f1", "one_frame"),
        ),
        (FILMS,),
    ),
    **dict.fromkeys(
        ("control_directory", "control_resolution", "no_resize_control", "multiple_target"),
        ("training on control pictures",),
    ),
    "dit_high_noise": ("a second model for the noisy timesteps would have been trained too",),
    "timestep_boundary": ("where the second model begins",),
    "preserve_distribution_shape": ("timesteps outside the limits would have been drawn again, not moved inside",),
    "num_timestep_buckets": ("timesteps drawn evenly from so many parts",),
    "remove_first_image_from_target": ("a picture of the target left out",),
}


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table has keys or networks that only this trainer has."""
    entries, _, _ = sd_scripts.file_entries(content)
    network = entries.get("network_module")
    return any(mark in entries for mark in MARKS) or (network is not None and network.value in NETWORKS)


def read(content: Mapping[str, Any]) -> Recipe:
    """Converts a file for --config_file or --dataset_config, or both in one."""
    entries, repeated, is_data_only = sd_scripts.file_entries(content)
    network = entries.get("network_module")
    if network is not None and network.value in NETWORKS:
        entries["network_module"] = Entry(network.path, LORA, network.value)
    if not is_data_only:
        entries["network_train_unet_only"] = Entry("network_train_unet_only", True, is_made_up=True)
        entries.setdefault("timestep_sampling", Entry("timestep_sampling", "sigma", is_made_up=True))
    book = Ledger(entries, repeated, DEFAULTS, has_defaults=not is_data_only)
    sampling = entries.get("timestep_sampling")
    if sampling is not None and sampling.value in BY_RESOLUTION:
        lost = "the shift by resolution has other numbers than Flux's"
        book.replace("timestep_sampling", lost, timestep_sampling="resolution_shift")
        book.carry("sigmoid_scale", logit_std=book.number("sigmoid_scale", 1.0))
    sd_scripts.carry(book, IGNORED, MISSING)
    if sampling is not None and sampling.value in BY_RESOLUTION:
        book.values["timestep_sampling"] = "resolution_shift"
    return book.recipe(DATA_SOURCE if is_data_only else SOURCE)
