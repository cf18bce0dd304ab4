"""bmaltais/kohya_ss: the JSON file in which its GUI saves the settings of a LoRA.

The GUI passes most settings to sd-scripts under other names; see kohya_gui/lora_gui.py in
github.com/bmaltais/kohya_ss, 2026.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import sd_scripts
from .ledger import Entry, Ledger, is_off, is_unset, to_number
from .recipe import Recipe
from .sd_scripts import keys

SOURCE = "kohya_ss GUI JSON"
MARKS = ("LoRA_type", "max_resolution", "lr_warmup", "sdxl_cache_text_encoder_outputs")
"""keys of the GUI alone, by which its files are recognised"""

RENAMED = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sdxl_no_half_vae": "no_half_vae",
    "lora_network_weights": "network_weights",
}

DEFAULTS: dict[str, Any] = {
    "optimizer_type": "AdamW8bit",
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 0.1,
    "learning_rate": 1e-4,
    "unet_lr": 1e-4,
    "text_encoder_lr": 1e-4,
    "network_dim": 8,
    "mixed_precision": "fp16",
    "save_precision": "fp16",
    "enable_bucket": True,
    "max_bucket_reso": 2048,
    "max_train_epochs": 1,
}
"""the GUI's defaults that differ from those of sd-scripts"""

LYCORIS = (
    *("preset", "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "train_norm", "use_tucker", "use_cp"),
    "rank_dropout_scale",
)
BLOCKS = (
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_dims", "block_alphas"),
    *("conv_block_dims", "conv_block_alphas", "rank_dropout", "module_dropout"),
)
DECOMPOSED = (*LYCORIS, "use_scalar", "bypass_mode", "dora_wd")
FLUX_BLOCKS = (
    *("img_attn_dim", "img_mlp_dim", "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim", "txt_mod_dim"),
    *("single_mod_dim", "in_dims", "train_double_block_indices", "train_single_block_indices", "train_blocks"),
    *("split_qkv", "train_t5xxl", "ggpo_beta", "ggpo_sigma", "rank_dropout", "module_dropout"),
)
CONVOLUTIONS = ("conv_dim", "conv_alpha", "use_tucker", "rank_dropout", "module_dropout")
DROPOUTS = ("rank_dropout", "module_dropout")

TYPES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "Standard": ("networks.lora", "", BLOCKS),
    "Kohya LoCon": ("networks.lora", "", (*BLOCKS, "conv_dim", "conv_alpha")),
    "Kohya DyLoRA": ("networks.dylora", "", (*BLOCKS, "conv_dim", "conv_alpha", "unit")),
    "LoRA-FA": ("networks.lora_fa", "", BLOCKS),
    "Kohya LoHa": ("networks.loha", "", CONVOLUTIONS),
    "Kohya LoKr": ("networks.lokr", "", (*CONVOLUTIONS, "factor")),
    "LoCon": ("lycoris.kohya", "locon", DECOMPOSED),
    "LyCORIS/LoCon": ("lycoris.kohya", "locon", DECOMPOSED),
    "LyCORIS/LoHa": ("lycoris.kohya", "loha", DECOMPOSED),
    "LyCORIS/LoKr": ("lycoris.kohya", "lokr", (*DECOMPOSED, "factor", "decompose_both")),
    "LyCORIS/Diag-OFT": ("lycoris.kohya", "diag-oft", (*LYCORIS, "constrain", "rescaled")),
    "LyCORIS/BOFT": ("lycoris.kohya", "boft", LYCORIS),
    "LyCORIS/DyLoRA": ("lycoris.kohya", "dylora", (*LYCORIS, "unit")),
    "LyCORIS/GLoRA": ("lycoris.kohya", "glora", LYCORIS),
    "LyCORIS/iA3": ("lycoris.kohya", "ia3", ("preset", "conv_dim", "conv_alpha", "train_on_input")),
    "LyCORIS/Native Fine-Tuning": ("lycoris.kohya", "full", ("preset", "train_norm", "rank_dropout_scale", *DROPOUTS)),
    "Flux1": ("networks.lora_flux", "", FLUX_BLOCKS),
    "Flux1 OFT": ("networks.oft_flux", "", ("enable_all_linear",)),
    "HunyuanImage-2.1": ("networks.lora_hunyuan_image", "", DROPOUTS),
    "Anima": ("networks.lora_anima", "", DROPOUTS),
    "Lumina": ("networks.lora_lumina", "", DROPOUTS),
}
"""LoRA_type -> (sd-scripts' network_module, LyCORIS' algorithm, the settings that the GUI passes to it)"""

ARGUMENTS = {*(name for _, _, names in TYPES.values() for name in names)}
LONGEST_COMMAND = 10_000
"""characters of additional_parameters"""
LORAPLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")

FAMILY_SWITCHES = {"hunyuan": "hunyuan_image_checkbox", "anima": "anima_checkbox", "lumina": "lumina_checkbox"}
"""families whose settings have a prefix, as in hunyuan_timestep_sampling -> the key that turns them on"""
FLUX_KEYS = (
    "timestep_sampling",
    "discrete_flow_shift",
    "model_prediction_type",
    "guidance_scale",
    "apply_t5_attn_mask",
)
SD3_KEYS = (
    *("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "clip_g_dropout_rate", "pos_emb_random_crop_rate"),
    *("sd3_clip_l_dropout_rate", "sd3_t5_dropout_rate", "sd3_enable_scaled_pos_embed"),
)
NOISE = {
    "Original": ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"),
    "Multires": ("multires_noise_iterations", "multires_noise_discount"),
}

IGNORED = {
    **dict.fromkeys(("sdxl", "flux1_checkbox", "sd3_checkbox", *FAMILY_SWITCHES.values()), keys.FAMILY),
    **dict.fromkeys(
        (
            *(
                "num_processes",
                "num_machines",
                "multi_gpu",
                "gpu_ids",
                "main_process_port",
                "extra_accelerate_launch_args",
            ),
            *("num_cpu_threads_per_process", "dynamo_use_fullgraph", "dynamo_use_dynamic", "headless", "print_only"),
            "save_as_bool",
        ),
        keys.LAUNCH,
    ),
    **dict.fromkeys(("model_list", "flux1_clip_l", "flux1_t5xxl", "sd3_clip_l", "sd3_t5xxl"), keys.GRAPH),
    **dict.fromkeys(
        ("learning_rate_te", "learning_rate_te1", "learning_rate_te2"), "not for LoRAs: text_encoder_lr counts"
    ),
    **dict.fromkeys(("conv_dims", "conv_alphas", "stop_text_encoder_training_pct"), "that GUI does not read it"),
    **dict.fromkeys(("sd3_text_encoder_batch_size", "sd3_disable_mmap_load_safetensors"), keys.MEMORY),
    **dict.fromkeys(("sd3_fused_backward_pass", "flux_fused_backward_pass"), keys.MEMORY),
    "use_wandb": keys.LOGS,
    "train_lora_ggpo": "the switch of ggpo_beta and ggpo_sigma",
}
MISSING = {
    "t5xxl_lr": ("a learning rate for the T5 text encoder, which is not trained here",),
    "additional_parameters": ("these arguments could not be read as --name value",),
    "stop_text_encoder_training": ("the text encoders would have stopped learning after this share of the run",),
}


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table has keys that only the GUI has; it saves LoRA_type where sd-scripts has network_module."""
    is_for_scripts = "LoRA_type" not in content and sd_scripts.has_network(content, ("network_module",))
    return any(mark in content for mark in MARKS) and not is_for_scripts


@dataclass
class _Settings:
    """The GUI's keys while they are renamed to sd-scripts' names."""

    entries: dict[str, Entry]
    """by sd-scripts' name"""
    defaults: dict[str, Any]
    left: list[tuple[Entry, str]] = field(default_factory=list)
    """(entry, reason) of keys that the GUI does not pass on"""

    def is_on(self, name: str) -> bool:
        return name in self.entries and not is_off(self.entries[name].value)

    def rename(self, old: str, new: str) -> None:
        if old in self.entries and new not in self.entries:
            self.entries[new] = self.entries.pop(old)

    def leave(self, names: Iterable[str], why: str) -> None:
        self.left += [(self.entries.pop(name), why) for name in names if name in self.entries]

    def unset(self, name: str) -> None:
        entry = self.entries[name]
        self.entries[name] = Entry(entry.path, None, entry.value)


def read(content: Mapping[str, Any]) -> Recipe:
    """Converts a saved configuration of the GUI's LoRA tab."""
    settings = _Settings({name: Entry(name, value) for name, value in content.items()}, dict(DEFAULTS))
    _network(settings)
    _families(settings)
    _schedule(settings)
    _noise(settings)
    _learning_rates(settings)
    for name in ("seed", "max_timestep"):
        if name in settings.entries and not settings.is_on(name):
            settings.unset(name)
    for old, new in RENAMED.items():
        settings.rename(old, new)
    for name, why in IGNORED.items():
        settings.leave([name], why)
    for name in sd_scripts.LISTS:
        if name in settings.entries:
            entry = settings.entries.pop(name)
            settings.entries |= sd_scripts.argument_entries(name, entry.path, entry.value)
    _additional(settings)
    book = Ledger(settings.entries, defaults=settings.defaults)
    for entry, why in settings.left:
        book.leave(entry, why)
    if "LoRA_type" not in content:
        book.note_absent(
            "LoRA_type", None, "another tab's file: the whole model or an embedding would have been trained"
        )
    for name, (lost,) in MISSING.items():
        book.miss(name, lost)
    sd_scripts.carry(book)
    return book.recipe(SOURCE)


def _network(settings: _Settings) -> None:
    """LoRA_type decides the network, and which other settings apply to it."""
    entries = settings.entries
    kind = entries.pop("LoRA_type", None)
    name = "Standard" if kind is None else str(kind.value)
    module, algorithm, used = TYPES.get(name, ("unknown", "", ()))
    if settings.is_on("sd3_checkbox") and name in ("Standard", "Kohya LoCon"):
        module = "networks.lora_sd3"
    is_made_up = kind is None or bool(algorithm)
    entries["network_module"] = Entry("LoRA_type", module, name, is_made_up)
    if algorithm:
        entries["network_args.algo"] = Entry("LoRA_type", algorithm, name)
    settings.rename("LyCORIS_preset", "preset")
    if not settings.is_on("train_lora_ggpo"):
        settings.leave(("ggpo_beta", "ggpo_sigma"), "train_lora_ggpo is off")
    settings.leave([each for each in ("preset", *sorted(ARGUMENTS)) if each not in used], f"not for LoRA_type {name}")
    for argument in (*used, *LORAPLUS):
        settings.rename(argument, f"network_args.{argument}")


def _families(settings: _Settings) -> None:
    """Every file has the settings of all flow models; those of the family that is switched on apply."""
    families = {family: settings.is_on(switch) for family, switch in FAMILY_SWITCHES.items()}
    is_flux, is_sd3 = settings.is_on("flux1_checkbox"), settings.is_on("sd3_checkbox")
    if not is_flux:
        settings.leave(FLUX_KEYS, "for Flux, which is switched off")
    if not is_sd3:
        settings.leave(SD3_KEYS, "for SD3, which is switched off")
    for prefix, is_used in {**families, "flux1": is_flux, "sd3": is_sd3}.items():
        cached = [f"{prefix}_cache_text_encoder_outputs", f"{prefix}_image_cache_text_encoder_outputs"]
        for name in cached:
            settings.leave([f"{name}_to_disk"], keys.CACHE)
            if is_used and settings.is_on(name):
                settings.leave(["sdxl_cache_text_encoder_outputs"], f"{name} counts")
                settings.rename(name, "cache_text_encoder_outputs")
            settings.leave([name], "off, or for a family that is switched off")
    for family, is_used in families.items():
        own = [name for name in settings.entries if name.startswith(f"{family}_") and name not in IGNORED]
        if is_used:
            for name in own:
                settings.rename(name, name.removeprefix(f"{family}_"))
        else:
            settings.leave(own, f"for {family} models, which are switched off")
    for name in ("sd3_clip_l_dropout_rate", "sd3_t5_dropout_rate", "sd3_enable_scaled_pos_embed"):
        settings.rename(name, name.removeprefix("sd3_"))


def _schedule(settings: _Settings) -> None:
    """The warm-up is in percent unless it is in steps; without a number of steps, epochs apply."""
    entries = settings.entries
    cycles, epoch = entries.get("lr_scheduler_num_cycles"), entries.get("epoch")
    if cycles is not None and epoch is not None and is_unset(cycles.value):
        entries["lr_scheduler_num_cycles"] = Entry(cycles.path, epoch.value, "")
    if settings.is_on("lr_warmup_steps"):
        settings.leave(["lr_warmup"], "lr_warmup_steps counts")
    elif "lr_warmup" in entries:
        settings.leave(["lr_warmup_steps"], "not set: lr_warmup counts")
        percent = entries.pop("lr_warmup")
        number = to_number(percent.value)
        share = percent.value if number is None else number / 100
        entries["lr_warmup_steps"] = Entry("lr_warmup", share, percent.value)
    if settings.is_on("max_train_epochs"):
        settings.leave(["epoch"], "max_train_epochs counts")
    elif settings.is_on("max_train_steps"):
        settings.leave(["epoch"], "max_train_steps counts")
        del settings.defaults["max_train_epochs"]
    else:
        settings.leave(["max_train_epochs"], "not set: epoch counts")
        settings.rename("epoch", "max_train_epochs")


def _noise(settings: _Settings) -> None:
    """Offset noise or multires noise; the settings of the other one have no effect."""
    kind = settings.entries.get("noise_offset_type")
    if kind is not None and kind.value in NOISE:
        for other in set(NOISE) - {kind.value}:
            settings.leave(NOISE[other], f"noise_offset_type is {kind.value}")


def _learning_rates(settings: _Settings) -> None:
    """A part with rate 0 is not trained if the other has a rate; if both are 0, learning_rate applies to both."""
    entries = settings.entries
    if "unet_lr" not in entries or "text_encoder_lr" not in entries:
        return
    has_text, has_unet = settings.is_on("text_encoder_lr"), settings.is_on("unet_lr")
    if has_unet and not has_text:
        entries["text_encoder_lr"] = Entry("text_encoder_lr", 0.0, entries["text_encoder_lr"].value)
    elif has_text and not has_unet:
        entries["network_train_text_encoder_only"] = Entry("unet_lr", True, entries.pop("unet_lr").value)
        del settings.defaults["unet_lr"]
    elif not has_unet:
        settings.unset("unet_lr")
        settings.unset("text_encoder_lr")


def _additional(settings: _Settings) -> None:
    """additional_parameters: arguments as on a command line, which override the other settings."""
    entry = settings.entries.get("additional_parameters")
    if entry is None or not isinstance(entry.value, str) or not entry.value.strip():
        return
    if len(entry.value) > LONGEST_COMMAND:
        return
    try:
        words = shlex.split(entry.value)
    except ValueError:
        return
    given: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            given[name] = [value] if value else []
        elif given:
            given[next(reversed(given))].append(word)
    if not given or not words[0].startswith("--"):
        return
    del settings.entries["additional_parameters"]
    for name, values in given.items():
        path = f"additional_parameters --{name}"
        value: Any = True if not values else values[0] if len(values) == 1 else values
        made = {name: Entry(path, value)}
        if name in sd_scripts.LISTS:
            made = sd_scripts.argument_entries(name, path, values)
        for key, argument in made.items():
            settings.leave([key], "additional_parameters says it again")
            settings.entries[key] = argument
