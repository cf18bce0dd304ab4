"""OneTrainer's settings: the models it knows, and those settings that are without effect here, or lost."""

from dataclasses import dataclass

from .sd_scripts.keys import CACHE, FAMILY, FOLDERS, GRAPH, HUB, LAUNCH, LOGS, MEMORY, OUTPUT, STATE, VALIDATION


@dataclass(frozen=True)
class Family:
    """What a model_type is made of, in that trainer's words."""

    model: str
    """the part that is the diffusion model"""
    encoders: tuple[str, ...] = ()
    """the text encoders that are trained here too"""
    others: tuple[str, ...] = ()
    """its further text encoders"""
    is_flow: bool = True


FAMILIES: dict[str, Family] = {
    "STABLE_DIFFUSION_3": Family("transformer", ("text_encoder", "text_encoder_2"), ("text_encoder_3",)),
    "STABLE_DIFFUSION_XL": Family("unet", ("text_encoder", "text_encoder_2"), is_flow=False),
    "STABLE_DIFFUSION": Family("unet", ("text_encoder",), is_flow=False),
    "WUERSTCHEN": Family("prior", is_flow=False),
    "STABLE_CASCADE": Family("prior", is_flow=False),
    "PIXART": Family("transformer", is_flow=False),
    "FLUX_": Family("transformer", ("text_encoder",), ("text_encoder_2",)),
    "": Family("transformer", (), ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")),
}
"""how a model_type begins -> what it is; the first that fits counts"""

PARTS = (
    *("unet", "prior", "transformer", "unconditional_transformer", "vae", "effnet_encoder", "decoder"),
    *("decoder_text_encoder", "decoder_vqgan", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"),
)
UPDATES = "how the update of the weights is computed"
NO_EMBEDDING = "for embeddings only"

IGNORED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("__version", "debug_mode", "debug_dir", "workspace_dir", "cache_dir", "huggingface_cache_dir"),
            *("offline_mode", "multi_gpu", "device_indexes", "gradient_reduce_precision", "gradient_reduce_prevision"),
            *("fused_gradient_reduce", "async_gradient_reduce", "async_gradient_reduce_buffer", "train_device"),
            *("temp_device", "dataloader_threads", "only_cache", "cloud", "secrets", "prevent_overwrites"),
            *("include_train_config", "optimizer_defaults"),
        ),
        LAUNCH,
    ),
    **dict.fromkeys(
        (
            *("tensorboard", "tensorboard_expose", "tensorboard_always_on", "tensorboard_port"),
            "samples_to_tensorboard",
        ),
        LOGS,
    ),
    **dict.fromkeys(("base_model_name", "weight_dtype", "text_encoder_sequence_length"), GRAPH),
    **dict.fromkeys(("text_encoder_2_sequence_length",), GRAPH),
    "model_type": FAMILY,
    **dict.fromkeys(("output_model_format", "output_model_destination", "save_filename_prefix"), OUTPUT),
    **dict.fromkeys(("concept_file_name",), FOLDERS),
    **dict.fromkeys(("latent_caching", "clear_cache_before_training"), CACHE),
    **dict.fromkeys(
        (
            *("async_offloading", "enable_async_offloading", "enable_activation_offloading", "layer_offload_fraction"),
            *("compile", "attention_mechanism", "enable_autocast_cache", "fallback_train_dtype", "lokr_vec_trick"),
            "quantization",
        ),
        MEMORY,
    ),
    **dict.fromkeys(("frames", "sample_video_format", "sample_audio_format"), "for films only"),
    **dict.fromkeys(("embedding_learning_rate", "preserve_embedding_norm", "embedding_weight_dtype"), NO_EMBEDDING),
    **dict.fromkeys(("embedding", "embeddings", "bundle_additional_embeddings"), NO_EMBEDDING),
    **dict.fromkeys(
        ("sample_image_format", "sample_skip_first", "non_ema_sampling", "save_skip_first"),
        "when and how files are written is decided here by sample_every and save_every alone",
    ),
    **dict.fromkeys(
        ("backup_after", "backup_after_unit", "rolling_backup", "rolling_backup_count", "backup_before_save"), STATE
    ),
    **dict.fromkeys(("validate_after", "validate_after_unit"), "for validation only"),
    "lokr_dora_on_output": "for lokr_weight_decompose only",
    **dict.fromkeys(
        (
            *("optimizer.weight_decay_by_lr", "optimizer.split_groups", "optimizer.split_groups_mean"),
            *("optimizer.factored", "optimizer.factored_fp32", "optimizer.use_stableadamw", "optimizer.d_limiter"),
            *("optimizer.use_schedulefree", "optimizer.rms_rescaling"),
        ),
        "for optimizers that are not offered",
    ),
    "lora_decompose_norm_epsilon": "a very small number against division by zero",
    "vb_loss_strength": "for models that predict their variance",
    **{
        f"optimizer.{name}": UPDATES
        for name in (
            *("stochastic_rounding", "fused", "fused_back_pass", "foreach", "capturable", "differentiable"),
            *("fsdp_in_use", "use_triton", "log_every", "optim_bits", "compile", "adam_w_mode"),
        )
    },
}
"""key -> why it has no effect here"""

PREFIXES: dict[str, str] = {
    "cloud.": LAUNCH,
    "secrets.": HUB,
    "optimizer_defaults.": "another optimizer's settings, kept for when it is chosen",
    "quantization.": MEMORY,
    "embedding.": NO_EMBEDDING,
    "embeddings": NO_EMBEDDING,
}
"""beginnings of keys -> why they have no effect here"""

LISTS = ("samples", "concepts")
"""lists of tables"""
STRENGTH = "a share of another loss in the sum"
TURN = "pictures would have been changed a little each time"

MISSING: dict[str, tuple] = {
    "validation": (VALIDATION,),
    "continue_last_backup": (STATE,),
    "force_circular_padding": ("convolutions would have wrapped around the pictures' edges",),
    "force_v_prediction": ("the model would have been taken for one of v-prediction: set that in the graph",),
    "force_epsilon_prediction": ("the model would have been taken for one of eps-prediction: set that in the graph",),
    "custom_learning_rate_scheduler": ("a scheduler from a library; scheduler counts in its place",),
    "scheduler_params": ("further settings of the scheduler",),
    "learning_rate_min_factor": ("the learning rate would have ended above zero",),
    "loss_scaler": ("the loss would have been multiplied by the batch", "NONE"),
    "mae_strength": (STRENGTH,),
    "log_cosh_strength": (STRENGTH,),
    "generalized_offset_noise": ("the noise offset would have grown with the noise level",),
    "perturbation_noise_weight": ("more noise, that is to be predicted too",),
    "unmasked_probability": ("the share of steps without the mask",),
    "normalize_masked_area_loss": ("the loss would have been divided by the mask's area",),
    "masked_prior_preservation_weight": ("outside the mask, the model's own prediction as the target",),
    "custom_conditioning_image": ("training on control pictures",),
    "additional_embeddings": ("embeddings would have been trained beside the LoRA",),
    "lora_model_name": ("training would have gone on from that LoRA: connect it to Train LoRA",),
    "oft_block_share": ("one block of OFT for a whole layer",),
    "oft_scaled": ("a factor for each of OFT's outputs would have been learned",),
    "lokr_decompose_both": ("both factors of LoKr would have been decomposed; here the second alone",),
    "lokr_use_tucker": ("convolutions would have been decomposed once more (Tucker)",),
    "lokr_weight_decompose": ("weight decomposition, which lokr has not here",),
    "lora_decompose_output_axis": ("the weight's norms would have been taken for each output; here for each input",),
    "sample_definition_file_name": ("the prompts are in that file: write them into Import Recipe's changes",),
    "text_encoder_layer_skip": ("put the node CLIP Set Last Layer in front of Train LoRA",),
    "text_encoder_2_layer_skip": ("put the node CLIP Set Last Layer in front of Train LoRA",),
    **{f"text_encoder_{number}_layer_skip": ("the text encoder's last layers left out",) for number in (3, 4)},
}
"""key -> (its effect in that trainer, values besides 0, false and empty that have no effect)"""

OF_A_PART = {
    "model_name": GRAPH,
    "include": GRAPH,
    "weight_dtype": GRAPH,
    "gradient_checkpointing": MEMORY,
    "offload_fraction": MEMORY,
    "activation_offloading": MEMORY,
    "train_embedding": NO_EMBEDDING,
    "stop_training_after": "stop_training_after_unit is not EPOCH, or the part is not trained",
    "stop_training_after_unit": "stop_training_after says after how many",
    "train": "not a part that is trained here",
    "learning_rate": "not a part that is trained here",
    "dropout_probability": "0, or not a part of this model",
    "attention_mask": "ComfyUI decides how the filling of captions is hidden",
    "guidance_scale": "1, or not a part of this model",
}
"""key in the table of one of PARTS -> why it has no effect here, where nothing else was made of it"""

IN_CONCEPTS: dict[str, str] = {
    **{
        f"image.enable_{name}": TURN
        for name in (
            *("random_rotate", "random_brightness", "random_contrast", "random_saturation", "random_hue"),
            *("fixed_flip", "fixed_rotate", "fixed_brightness", "fixed_contrast", "fixed_saturation", "fixed_hue"),
            *("random_circular_mask_shrink", "random_mask_rotate_crop"),
        )
    },
    "image.enable_resolution_override": "a resolution for this folder alone; a settings file in it can say the same",
    "text.caps_randomize_enable": "capitals in captions changed at random",
    "text.tag_dropout_special_tags": "tags that are dropped at another rate",
}
"""switch in a concept -> what is lost by it"""
