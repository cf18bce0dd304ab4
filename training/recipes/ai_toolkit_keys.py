"""ai-toolkit's settings that are not carried over: without effect here, or lost."""

LAUNCH = "how that trainer's program is started"
LOGS = "logs of that trainer's own"
GRAPH = "the graph gives the model"
MEMORY = "how memory and time are spent is decided here by itself"
CACHE = "what is cached is decided here by itself"
FOLDERS = "choose the folder in Load Dataset"
NOTES = "notes about the job"

IGNORED: dict[str, str] = {
    **dict.fromkeys(("job", "config.name", "type", "device", "training_folder", "sqlite_db_path", "log_dir"), LAUNCH),
    **dict.fromkeys(("performance_log_every", "torch_profiler", "train.max_loss_debug"), LOGS),
    **{f"model.{name}": GRAPH for name in (
        "name_or_path", "arch", "is_v2", "is_xl", "is_v3", "is_flux", "is_pixart", "is_pixart_sigma", "is_auraflow",
        "is_lumina2", "is_ssd", "is_vega", "is_v_pred", "vae_path", "unet_path", "te_name_or_path", "dtype",
        "vae_dtype", "te_dtype", "extras_name_or_path", "latent_space_version",
        "use_text_encoder_1", "use_text_encoder_2", "experimental_xl", "text_encoder_bits", "unet_sample_size",
        "inference_lora_path",
    )},
    **{f"model.{name}": MEMORY for name in (
        "low_vram", "vae_device", "te_device", "layer_offloading", "auto_memory", "compile", "block_compile",
        "compile_mode", "compile_fullgraph", "compile_dynamic", "cache_size_limit", "split_model_over_gpus",
        "split_model_other_module_param_count_scale", "layer_offloading_transformer_percent",
        "layer_offloading_text_encoder_percent", "qtype", "qtype_te", "attn_masking",
    )},
    **{f"train.{name}": MEMORY for name in ("xformers", "sdp", "attention_backend")},
    **{f"train.{name}": CACHE for name in ("cache_text_embeddings", "unload_text_encoder")},
    **{f"train.{name}": "when sample pictures are drawn is decided here by sample_every alone" for name in (
        "skip_first_sample", "force_first_sample",
    )},
    **{f"train.{name}": "for other things than LoRAs" for name in (
        "refiner_lr", "embedding_lr", "adapter_lr", "train_refiner", "train_turbo", "show_turbo_outputs",
        "adapter_assist_type", "audio_loss_multiplier",
    )},
    "train.max_negative_prompts": "there are none",
    "train.switch_boundary_every": "for models of several stages",
    "train.num_train_timesteps": "1000, as here",
    "train.next_sample_timesteps": "for timestep_type next_sample only",
    "train.signal_amplification_strength": "do_signal_amplification is off",
    **{f"train.{name}": "the switch beside it is off, or says what is lost" for name in (
        "batch_noise_correction_scale", "signal_correction_noise_scale", "diff_output_preservation_multiplier",
        "diff_output_preservation_class", "blank_prompt_preservation_multiplier", "inverted_mask_prior_multiplier",
        "correct_pred_norm_multiplier", "paramiter_swapping_factor", "target_norm_std_value", "cfg_scale",
        "max_cfg_scale", "cfg_rescale", "guidance_loss_target", "guidance_loss_schedule", "unconditional_prompt",
        "differential_guidance_scale", "do_guidance_loss_cfg_zero", "merge_network_on_save_strength",
        "diffusion_feature_extractor_weight", "latent_feature_loss_weight", "do_fft_velocity_equiv_weight",
        "t0_velocity_equiv_weight", "short_and_long_captions_encoder_split",
    )},
    "train.bypass_guidance_embedding": "the graph's model decides",
    "network.transformer_only": "targets says which layers are trained",
    "network.split_multistage_loras": "for models of several stages",
    "network.layer_offloading": MEMORY,
    "network.old_lokr_format": "the file has the form that ComfyUI reads",
    **{f"save.{name}": "uploads are not made here" for name in ("push_to_hub", "hf_repo_id", "hf_private")},
    "save.save_format": "Save LoRA chooses the form of the file",
    **{f"sample.{name}": "sample pictures take the size and the sampler that Train LoRA gives them" for name in (
        "sampler", "width", "height", "format", "num_frames", "fps", "walk_seed", "seed", "sample_start_step",
        "refiner_start_at", "adapter_conditioning_scale", "extra_values",
    )},
    **{f"datasets[0].{name}": FOLDERS for name in ("folder_path", "dataset_path", "type")},
    **{f"datasets[0].{name}": CACHE for name in (
        "cache_latents", "cache_latents_to_disk", "cache_tensors_to_disk", "cache_clip_vision_to_disk",
        "cache_text_embeddings", "load_image_when_caching_latents", "num_workers", "prefetch_factor",
        "cache_latents_num_workers", "fast_image_size", "debug",
    )},
    **{f"datasets[0].{name}": "for films only" for name in (
        "num_frames", "shrink_video_to_frames", "fps", "auto_frame_count", "trim_auto_frame_count_tail", "do_i2v",
        "do_audio", "audio_preserve_pitch", "audio_normalize",
    )},
    **{f"datasets[0].{name}": "for control pictures, which LoRAs here do not take" for name in (
        "control_transparent_color", "full_size_control_images", "replay_transforms", "guidance_type",
        "num_controls_from_same_folder", "random_triggers_max", "extra_values",
    )},
}  # fmt: skip
"""key -> why it has no effect here"""

LAYERS = "a choice of layers by name; layer_rules in Adapter Options can say the same"
BIT8 = "the text encoders would have been held in fewer bits, for less memory"
OTHER = "something else than a LoRA, which is not trained here"
CONTROL = "training on control pictures"
AUGMENT = "pictures would have been changed a little each time"

_EXPERIMENTS: dict[str, tuple] = {
    "content_or_style": ("noisy or clean timesteps would have come more often", "balanced"),
    "snr_gamma": ("another weighting of the loss by SNR than min_snr_gamma",),
    "learnable_snr_gos": ("a learned weighting of the loss by timestep",),
    "train_unet": ("the diffusion model would not have been trained; here it is", 1),
    "weight_jitter": ("noise on the LoRA's weights",),
    "merge_network_on_save": ("the LoRA would have been merged into the model's file",),
    "start_step": ("the count of steps would have begun here",),
    "free_u": ("FreeU in the model while training",),
    "adapter_assist_name_or_path": ("a further adapter in the model while training",),
    "noise_multiplier": ("a factor on the noise", 1),
    "target_noise_multiplier": ("a factor on the noise that is to be predicted", 1),
    "random_noise_multiplier": ("a random factor on the noise",),
    "random_noise_shift": ("a random shift of the noise",),
    "do_signal_correction_noise": ("a correction of the noise by the picture",),
    "do_batch_noise_correction": ("other pictures of the batch in the noise",),
    "do_signal_amplification": ("amplified latents",),
    "img_multiplier": ("a factor on the pictures", 1),
    "noisy_latent_multiplier": ("a factor on the noisy latents", 1),
    "latent_multiplier": ("a factor on the latents", 1),
    "negative_prompt": ("a negative prompt while training",),
    "adaptive_scaling_factor": ("latents scaled by each picture's brightness",),
    "prompt_dropout_prob": ("empty captions, for each text encoder apart; caption_dropout comes near",),
    "match_noise_norm": ("predictions scaled to the noise's norm",),
    "short_and_long_captions": ("every picture with a short and a long caption",),
    "single_item_batching": ("batches one picture at a time",),
    "match_adapter_assist": ("predictions as of a further adapter",),
    "match_adapter_chance": ("predictions as of a further adapter",),
    "loss_target": ("another target than noise or velocity", "noise"),
    "inverted_mask_prior": ("outside the mask, the model's own prediction as the target; unmasked_weight comes near",),
    "diff_output_preservation": ("the class kept as the model knew it; regularisation pictures come near",),
    "blank_prompt_preservation": ("empty prompts kept as the model knew them; regularisation pictures come near",),
    "standardize_images": ("pictures scaled to the mean and spread that the model knows",),
    "standardize_latents": ("latents scaled to the mean and spread that the model knows",),
    "dynamic_noise_offset": ("noise shifted by each picture's brightness",),
    "do_cfg": ("classifier-free guidance while training",),
    "do_random_cfg": ("classifier-free guidance while training",),
    "correct_pred_norm": ("predictions corrected in mean and spread",),
    "t0_loss_target": ("the loss on the finished picture",),
    "do_fft_loss": ("a loss on frequencies",),
    "pred_scaler": ("a factor on the predictions", 1),
    "prompt_saturation_chance": ("captions repeated until the text encoder is full",),
    "do_prior_divergence": ("a loss that leads away from the model",),
    "target_norm_std": ("a loss on the spread of predictions",),
    "linear_timesteps": ("a weight on the loss by timestep",),
    "linear_timesteps2": ("a weight on the loss by timestep",),
    "do_paramiter_swapping": ("a part of the weights trained at a time",),
    "latent_feature_extractor_path": ("a loss on features of the latents",),
    "diffusion_feature_extractor_path": ("a loss on features of the latents",),
    "optimal_noise_pairing_samples": ("the noise nearest to the picture", 1),
    "force_consistent_noise": ("the same noise for a picture each time",),
    "blended_blur_noise": ("blurred noise",),
    "do_guidance_loss": ("a loss on guided predictions",),
    "do_differential_guidance": ("a target beyond the picture's",),
    "do_blank_stabilization": ("empty prompts led to empty predictions",),
    "max_loss": ("larger losses cut off",),
}

MISSING: dict[str, tuple] = {
    **{f"train.{name}": lost for name, lost in _EXPERIMENTS.items()},
    "train.optimizer_params": ("these are no settings of the form name: value",),
    "train.lr_scheduler_params": ("these are no settings of the form name: value",),
    "train.ema_config.use_feedback": ("the average would have been fed back into the weights",),
    "train.ema_config.param_multiplier": ("the weights would have been scaled at every step", 1),
    "network.all_layers": ("all other layers would have been trained whole",),
    "network.pretrained_lora_path": ("training would have gone on from that LoRA: connect it to Train LoRA",),
    "model.quantize_te": (BIT8,),
    "model.ignore_if_contains": (LAYERS,),
    "model.only_if_contains": (LAYERS,),
    "model.lora_path": ("this LoRA would have been merged into the model first: load it in the graph",),
    "model.assistant_lora_path": ("a LoRA that helps a distilled model to be trained: load it in the graph",),
    "model.unconditional_lora_path": ("a LoRA for the unconditional part",),
    "model.refiner_name_or_path": ("a refiner would have been trained beside the model",),
    "model.refiner_start_at": ("where the refiner begins", 0.5),
    "model.use_flux_cfg": ("guidance of Flux with two passes",),
    "model.accuracy_recovery_adapter": ("an adapter that mends the model held in fewer bits",),
    "model.in_context": ("training on pairs in one picture",),
    "save.max_step_saves_to_keep": ("older files would have been deleted; here all are kept",),
    "sample.neg": ("a negative prompt for sample pictures",),
    "sample.network_multiplier": ("the LoRA's strength in sample pictures", 1),
    "sample.guidance_rescale": ("rescaled guidance in sample pictures",),
    "sample.do_cfg_norm": ("normed guidance in sample pictures",),
    **{name: (OTHER,) for name in ("do_lorm", "lorm_extract_mode", "lorm_extract_mode_param")},
    "datasets": ("these are no data sets",),
    **{f"datasets[0].{name}": (CONTROL,) for name in (
        "control_path", "control_path_1", "control_path_2", "control_path_3", "control_from_same_folder",
        "inpaint_path", "unconditional_path", "clip_image_path", "clip_image_from_same_folder", "controls",
        "clip_image_augmentations", "clip_image_shuffle_augmentations",
    )},
    **{f"datasets[0].{name}": (AUGMENT,) for name in (
        "augments", "augmentations", "shuffle_augmentations", "random_scale",
    )},
    "datasets[0].flip_y": ("pictures would have been turned upside down half of the time",),
    "datasets[0].scale": ("pictures would have been scaled by this", 1),
    "datasets[0].square_crop": ("every picture would have been cut square; here they go into buckets",),
    "datasets[0].default_caption": ("the caption of pictures without one; Caption Images can write them",),
    "datasets[0].random_triggers": ("a trigger word chosen at random",),
    "datasets[0].invert_mask": ("black and white of the masks exchanged",),
    "datasets[0].use_short_captions": ("short captions from a file that holds long ones too",),
    "datasets[0].replacements": ("words replaced in captions",),
    "datasets[0].prior_reg": ("the model's own prediction as the target of regularisation pictures",),
    "datasets[0].standardize_images": ("pictures scaled to the mean and spread that the model knows",),
    "datasets[0].batch_size": ("a batch size for these pictures alone",),
    "datasets[0].diff_output_preservation": ("the class kept as the model knew it",),
    "datasets[0].diff_output_preservation_class": ("the class kept as the model knew it",),
    "datasets[0].poi": ("pictures would have been cut around a place named in a file",),
}  # fmt: skip
"""key -> (its effect in that trainer, values besides 0, false and empty that have no effect)"""

TABLES: dict[str, tuple[bool, str]] = {
    "meta": (False, NOTES),
    "logging": (False, LOGS),
    "model.model_paths": (False, GRAPH),
    "model.quantize_kwargs": (False, MEMORY),
    "model.model_kwargs": (True, "a setting for this kind of model alone"),
    "network.network_kwargs": (True, LAYERS),
    "network.lorm": (True, "LoRM, which is not offered"),
    "train.validation_config": (True, "a loss on pictures that are kept out of the training"),
    "first_sample": (True, "other settings for the first sample pictures"),
    **dict.fromkeys(("embedding", "adapter", "decorator", "guidance", "slider"), (True, OTHER)),
}
"""tables whose keys all have the same account -> (whether they are lost, their effect or the reason)"""
