"""sd-scripts' arguments: those without effect here, those that are lost, those that are carried over."""

FOLDERS = "choose the folder in Load Dataset"
GRAPH = "the graph gives the model, its VAE and its text encoders"
FAMILY = "the graph's model says so itself"
OUTPUT = "Train LoRA and Save LoRA name the file"
LOGS = "logs of that trainer's own"
METADATA = "text for the file's metadata, nothing that is learned"
HUB = "uploads are not made here"
MEMORY = "how memory and time are spent is decided here by itself"
LAUNCH = "how that trainer's program is started"
CACHE = "what is cached is decided here by itself"

IGNORED: dict[str, str] = {
    **dict.fromkeys(("train_data_dir", "reg_data_dir", "image_dir", "in_json", "metadata_file", "is_reg"), FOLDERS),
    **dict.fromkeys(
        (
            *("pretrained_model_name_or_path", "vae", "tokenizer_cache_dir", "clip_l", "clip_g", "t5xxl"),
            *("ae", "gemma2", "text_encoder", "byt5", "qwen3", "llm_adapter_path", "t5_tokenizer_path"),
            *("disable_mmap_load_safetensors", "no_half_vae", "t5xxl_device", "t5xxl_dtype", "text_encoder_cpu"),
        ),
        GRAPH,
    ),
    **dict.fromkeys(("v2", "v_parameterization", "model_type"), FAMILY),
    **dict.fromkeys(("output_dir", "output_name", "save_clip", "save_t5xxl", "use_safetensors"), OUTPUT),
    **dict.fromkeys(
        (
            *("logging_dir", "log_with", "log_prefix", "log_tracker_name", "log_tracker_config", "log_config"),
            *("wandb_run_name", "wandb_api_key", "console_log_level", "console_log_file", "console_log_simple"),
            *("show_timesteps", "show_timesteps_resolution", "debug_dataset", "network_args.verbose"),
        ),
        LOGS,
    ),
    **dict.fromkeys(
        (
            *("training_comment", "metadata_title", "metadata_author", "metadata_description", "metadata_license"),
            *("metadata_tags", "metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from"),
            *("metadata_trigger_phrase", "metadata_preprocessor", "metadata_is_negative_embedding"),
        ),
        METADATA,
    ),
    **dict.fromkeys(
        (
            *("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token"),
            *("huggingface_repo_visibility", "save_state_to_huggingface", "resume_from_huggingface", "async_upload"),
        ),
        HUB,
    ),
    **dict.fromkeys(
        (
            *("xformers", "sdpa", "mem_eff_attn", "lowram", "highvram", "lowvram", "max_data_loader_n_workers"),
            *("persistent_data_loader_workers", "vae_batch_size", "text_encoder_batch_size", "fused_backward_pass"),
            *("blocks_to_swap", "split_mode", "cpu_offload_checkpointing", "unsloth_offload_checkpointing"),
            *("torch_compile", "dynamo_backend", "dynamo_mode", "attn_mode", "split_attn", "vae_chunk_size"),
            *("vae_disable_cache", "mem_eff_save", "single_blocks_to_swap", "double_blocks_to_swap"),
            *("fused_optimizer_groups", "blockwise_fused_optimizers", "use_flash_attn", "use_sage_attn"),
            *("network_args.bypass_mode", "sample_batch_size"),
        ),
        MEMORY,
    ),
    **dict.fromkeys(
        (
            *("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph", "deepspeed", "zero_stage"),
            *("offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device", "zero3_init_flag"),
            *("offload_param_nvme_path", "zero3_save_16bit_model", "fp16_master_weights_and_gradients"),
            *("config_file", "output_config", "dataset_class", "epoch"),
        ),
        LAUNCH,
    ),
    **dict.fromkeys(
        (
            *("cache_latents", "cache_latents_to_disk", "skip_cache_check", "cache_info"),
            *("skip_latents_validity_check", "cache_text_encoder_outputs_to_disk"),
        ),
        CACHE,
    ),
    **dict.fromkeys(
        (
            *("max_token_length", "t5xxl_max_token_length", "gemma2_max_token_length", "qwen3_max_token_length"),
            "t5_max_token_length",
        ),
        "ComfyUI's text encoders take captions of any length",
    ),
    "stop_text_encoder_training": "that trainer does not read it",
    "noise_offset_type": "the settings of the chosen kind stand beside it",
    "sample_at_first": "Apply LoRA Preview draws with the model as it was",
    "network_args.block_lr_zero_threshold": "for rates by block only",
}  # fmt: skip
"""key -> why it has no effect here"""

BY_BLOCK = "another rank, alpha or learning rate for some blocks; layer_rules in Adapter Options can say the same"
LORAPLUS = "a higher learning rate for the second factor of each LoRA (LoRA+)"
OLD_FILES = "older files would have been deleted; here all are kept"
STATE = "the run's state on disk, to go on from it"
EPOCHS = "counted in epochs; here in steps: in Import Recipe's changes set"
VALIDATION = "a loss on pictures that are kept out of the training"
BIT8 = "the text encoder would have been held in 8 bit, for less memory"
BIT16 = "weights and gradients of the LoRA in 16 bit; here they are always 32 bit"
ANIMA = "a learning rate of its own for some of the model's layers; layer_rules in Adapter Options can say the same"

MISSING: dict[str, tuple] = {
    "dataset_config": ("the pictures' settings are in that file: import it too",),
    "network_args": ("these are no settings of the form name=value",),
    "optimizer_args": ("these are no settings of the form name=value",),
    "network_weights": ("training would have gone on from that LoRA: connect it to Train LoRA",),
    "dim_from_weights": ("rank and alpha would have been those of network_weights",),
    "network_train_text_encoder_only": ("the diffusion model would not have been trained; here it is",),
    "base_weights": ("these LoRAs would have been merged into the model first: load them in the graph",),
    "base_weights_multiplier": ("strength of the LoRAs in base_weights",),
    "scale_weight_norms": ("each layer's LoRA would have been scaled down to at most this norm",),
    "network_multiplier": ("strength of the LoRA while it is trained", 1),
    **{f"network_args.{name}": (BY_BLOCK,) for name in (
        "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "down_lr_weight", "mid_lr_weight",
        "up_lr_weight", "img_attn_dim", "txt_attn_dim", "img_mlp_dim", "txt_mlp_dim", "img_mod_dim", "txt_mod_dim",
        "single_dim", "single_mod_dim", "in_dims", "context_attn_dim", "context_mlp_dim", "context_mod_dim",
        "x_attn_dim", "x_mlp_dim", "x_mod_dim", "emb_dims", "train_block_indices", "train_double_block_indices",
        "train_single_block_indices", "network_reg_dims", "network_reg_lrs", "exclude_patterns", "include_patterns",
    )},
    **{f"network_args.{name}": (LORAPLUS,) for name in (
        "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
    )},
    "network_args.train_blocks": ("only double or only single blocks would have been trained", "all"),
    "network_args.train_t5xxl": ("the T5 text encoder would have been trained too",),
    "network_args.train_llm_adapter": ("the model's text adapter would have been trained too",),
    "network_args.split_qkv": ("query, key and value would have got LoRAs of their own",),
    "network_args.ggpo_beta": ("noise on the weights while training (GGPO)",),
    "network_args.ggpo_sigma": ("noise on the weights while training (GGPO)",),
    "network_args.unit": ("DyLoRA's step between ranks", 1),
    "network_args.block_size": ("DyLoRA's step between ranks", 4),
    "network_args.factor": ("LoKr's factor; this network is another", -1),
    "network_args.train_norm": ("the normalisation layers would have been trained too",),
    "network_args.use_tucker": ("convolutions would have been decomposed once more (Tucker)",),
    "network_args.use_cp": ("convolutions would have been decomposed once more (Tucker)",),
    "network_args.use_conv_cp": ("convolutions would have been decomposed once more (Tucker)",),
    "network_args.disable_conv_cp": ("convolutions would have been decomposed once more (Tucker) if this is False", 1),
    "network_args.use_scalar": ("a further factor for each layer would have been learned",),
    "network_args.rank_dropout_scale": ("what rank_dropout leaves would have been scaled up",),
    "network_args.constraint": ("the limit of OFT's rotation (constrained OFT)",),
    "network_args.constrain": ("the limit of OFT's rotation (constrained OFT)",),
    "network_args.rescaled": ("a factor for each of OFT's outputs would have been learned",),
    "network_args.decompose_both": ("both factors of LoKr would have been decomposed; here the second alone",),
    "network_args.full_matrix": ("LoKr with a whole second factor; this network is another",),
    "network_args.unbalanced_factorization": ("LoKr would have split each side in another way",),
    "network_args.rs_lora": ("the scale alpha / sqrt(rank)",),
    "network_args.algo": ("a network of LyCORIS; network_module names another",),
    "network_args.preset": ("LyCORIS' choice of layers; network_module names another network",),
    "network_args.dora_wd": ("weight decomposition, of LyCORIS' networks",),
    "network_args.wd_on_output": ("weight decomposition, of LyCORIS' networks",),
    "network_args.train_on_input": ("for IA3, which is not offered",),
    "network_args.enable_all_linear": ("for OFT only",),
    "network_args.enable_conv": ("for OFT only",),
    "lr_scheduler_type": ("a scheduler from a library; scheduler counts in its place",),
    "lr_scheduler_args": ("further settings of the scheduler",),
    "lr_scheduler_timescale": ("for inverse_sqrt, which is not offered",),
    "lr_scheduler_min_lr_ratio": ("the learning rate would have ended above zero",),
    "lr_decay_steps": ("for warmup_stable_decay, which is not offered",),
    "full_fp16": (BIT16,),
    "full_bf16": (BIT16,),
    "fp8_vl": (BIT8,),
    "clip_skip": ("put the node CLIP Set Last Layer in front of Train LoRA: stop_at_clip_layer is minus this", 1),
    "adaptive_noise_scale": ("the noise offset would have grown with each picture's own brightness",),
    "scale_v_pred_loss_like_noise_pred": ("the loss of v-prediction would have been weighted like that of noise",),
    "v_pred_like_loss": ("a second loss, as of v-prediction",),
    "weighted_captions": ("words written as (word:1.3) would have counted more; here captions count as they stand",),
    "no_token_padding": ("short captions would not have been filled up",),
    "guidance_scale": ("the guidance that the model is told in training (Flux); here it is the graph's own", 1),
    "apply_t5_attn_mask": ("the filling of short captions would have been hidden from the model",),
    "apply_lg_attn_mask": ("the filling of short captions would have been hidden from the model",),
    "clip_l_dropout_rate": ("CLIP-L alone would have got empty captions at this rate",),
    "clip_g_dropout_rate": ("CLIP-G alone would have got empty captions at this rate",),
    "t5_dropout_rate": ("T5 alone would have got empty captions at this rate",),
    "pos_emb_random_crop_rate": ("positions would have been cut at random (SD3.5 Medium)",),
    "enable_scaled_pos_embed": ("positions would have been scaled by resolution (SD3.5 Medium)",),
    "system_prompt": ("text put before every caption, as caption_prefix in a dataset.toml does",),
    **dict.fromkeys(("llm_adapter_lr", "self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr"), (ANIMA,)),
    "save_every_n_epochs": (f"{EPOCHS} save_every",),
    "save_n_epoch_ratio": (f"{EPOCHS} save_every",),
    "sample_every_n_epochs": (f"{EPOCHS} sample_every",),
    **dict.fromkeys(("save_last_n_epochs", "save_last_n_steps"), (OLD_FILES,)),
    **dict.fromkeys(
        ("save_state", "save_state_on_train_end", "save_last_n_epochs_state", "save_last_n_steps_state", "resume",
         "skip_until_initial_step", "initial_epoch", "initial_step"), (STATE,),
    ),
    "save_model_as": ("another kind of file; here it is always .safetensors", "safetensors"),
    "no_metadata": ("the file would have had no metadata; Save LoRA writes it",),
    "conditioning_data_dir": ("masks from a folder of their own; here they lie beside the pictures, as name_mask.png",),
    "class_tokens": ("the caption of pictures without one; Caption Images can write them",),
    "color_aug": ("colours would have been changed a little each time",),
    "face_crop_aug_range": ("pictures would have been cut around faces",),
    "bucket_no_upscale": ("small pictures would not have been enlarged; Load Dataset says which are",),
    "resize_interpolation": ("how pictures are scaled",),
    "caption_separator": ("what stands between tags; here a comma", ","),
    "keep_tokens_separator": ("a mark in captions before which tags stay in place; keep_tokens counts them",),
    "secondary_separator": ("a mark in captions that joins tags into one",),
    "enable_wildcard": ("words chosen at random from {a|b} in captions",),
    "token_warmup_min": ("captions would have begun with few tags", 1),
    "token_warmup_step": ("captions would have begun with few tags",),
    "caption_dropout_every_n_epochs": ("all captions of each nth epoch would have been empty",),
    "custom_attributes": ("notes for extensions of that trainer",),
    "train_inpainting": ("a model for inpainting would have been trained",),
    **dict.fromkeys(
        ("validation_seed", "validation_split", "validate_every_n_steps", "validate_every_n_epochs",
         "max_validation_steps"), (VALIDATION,),
    ),
}  # fmt: skip
"""key -> (its effect in that trainer, values besides 0, false and empty that have no effect)"""

CARRIED = (
    *("network_module", "network_dim", "network_alpha", "network_dropout", "network_train_unet_only"),
    *("optimizer_type", "use_8bit_adam", "use_lion_optimizer", "learning_rate", "unet_lr", "text_encoder_lr"),
    *("cache_text_encoder_outputs", "lr_scheduler", "lr_warmup_steps", "lr_scheduler_num_cycles", "lr_scheduler_power"),
    *(
        "max_train_steps",
        "max_train_epochs",
        "train_batch_size",
        "gradient_accumulation_steps",
        "max_grad_norm",
        "seed",
    ),
    *("fp8_base", "fp8_base_unet", "fp8_scaled"),
    *("gradient_checkpointing", "mixed_precision", "min_snr_gamma", "debiased_estimation_loss", "loss_type"),
    *("huber_c", "huber_schedule", "huber_scale", "noise_offset", "noise_offset_random_strength", "ip_noise_gamma"),
    *("ip_noise_gamma_random_strength", "multires_noise_iterations", "multires_noise_discount", "zero_terminal_snr"),
    *("min_timestep", "max_timestep", "timestep_sampling", "sigmoid_scale", "discrete_flow_shift", "training_shift"),
    *("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "model_prediction_type", "save_precision"),
    *("save_every_n_steps", "sample_every_n_steps", "sample_prompts", "sample_sampler", "resolution", "enable_bucket"),
    *("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "flip_aug", "random_crop", "shuffle_caption"),
    *("keep_tokens", "caption_dropout_rate", "caption_tag_dropout_rate", "caption_prefix", "caption_suffix"),
    *("dataset_repeats", "prior_loss_weight", "masked_loss", "alpha_mask", "caption_extension"),
)

KNOWN = {*IGNORED, *MISSING, *CARRIED}

SHARED = {
    *("learning_rate", "unet_lr", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "max_train_steps"),
    *("train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "max_grad_norm", "mixed_precision"),
    *("seed", "resolution", "random_crop", "noise_offset", "loss_type", "huber_c", "guidance_scale", "sample_prompts"),
    *("pretrained_model_name_or_path", "vae", "text_encoder", "clip_l", "t5xxl", "ae", "model_type", "epoch"),
    *("output_dir", "output_name", "logging_dir", "log_with", "resume", "xformers", "deepspeed", "image_dir"),
    *("blocks_to_swap", "torch_compile", "dynamo_backend", "dynamo_mode", "attn_mode", "system_prompt"),
    *("caption_prefix", "caption_suffix", "trigger_word", "weighting_scheme", "logit_mean", "logit_std", "mode_scale"),
    *("validation_seed", "save_every_n_epochs", "save_every_n_steps", "wandb_api_key", "wandb_run_name"),
}
"""those that other trainers have too, so that they say nothing about whose file it is"""
