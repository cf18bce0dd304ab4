"""bghira/SimpleTuner: config.json, and the file that its lycoris_config names.

Names, defaults and meaning are those of github.com/bghira/SimpleTuner in 2026 (documentation/OPTIONS.md,
helpers/training/, helpers/models/common.py). Keys may begin with --, as on a command line.
"""

from collections.abc import Mapping
from typing import Any

from ..adapters import KINDS
from ..config.optimizers import OptimizerKind
from . import simple_tuner_keys as keys
from .ledger import Entry, Ledger
from .recipe import Recipe
from .sd_scripts.objective import carry_loss
from .techniques import (
    WHOLE_FACTOR,
    adapter_named,
    carry_optimizer,
    carry_precision,
    carry_scheduler,
    join_betas,
)

SOURCE, LYCORIS_SOURCE = "SimpleTuner JSON", "LyCORIS config of SimpleTuner"
MARKS = ("model_family", "data_backend_config")
"""keys that only this trainer has"""
LYCORIS_MARKS = ("apply_preset", "linear_dim", "linear_alpha")
"""likewise, of its lycoris_config"""
NO_FLOW = ("sd1x", "sd2x", "sdxl", "kolors", "deepfloyd", "pixart_sigma", "smoldit")
"""families whose models predict noise"""
RENAMED = {"checkpointing_steps": "checkpoint_step_interval", "validation_steps": "validation_step_interval"}
"""names in older files"""
SWINGING = ("cosine", "cosine_with_restarts", "sine")


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table, or the one that its page saves in a table, has keys that only this trainer has."""
    return any(key.removeprefix("--") in MARKS for key in _settings(content)) and "network_module" not in content


def _settings(content: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = content.get("config")
    return inner if "_metadata" in content and isinstance(inner, dict) else content


def recognises_lycoris(content: Mapping[str, Any]) -> bool:
    """Whether a table is what lycoris_config names."""
    return "algo" in content and any(mark in content for mark in LYCORIS_MARKS)


def read(content: Mapping[str, Any]) -> Recipe:
    """Converts a config."""
    book = Ledger(_entries(content))
    is_flow = book.text("model_family") not in NO_FLOW
    whole = "the whole model would have been trained; here it is a LoRA"
    book.note_absent("model_type", "full", whole)
    if book.text("model_type", "lora") == "lora":
        book.ignore("model_type", "as here")
    book.miss("model_type", whole)
    _network(book)
    optimizer = _optimizer(book)
    _learning_rates(book, optimizer)
    _schedule(book, optimizer)
    _run(book)
    _objective(book)
    _timesteps(book, is_flow)
    _files(book)
    _data(book)
    for beginning in keys.METHODS:
        if not book.flag(f"{beginning}enabled"):
            book.ignore(tuple(book.names(beginning)), "switched off")
        book.miss(tuple(book.names(beginning)), keys.AUX)
    for name in (*keys.IGNORED, *keys.MISSING):
        if name in book:
            book.ignore(name, keys.IGNORED[name]) if name in keys.IGNORED else book.miss(name, *keys.MISSING[name])
    for beginning, why in keys.PREFIXES:
        book.ignore(tuple(book.names(beginning)), why)
    book.account_for_rest({}, {})
    return book.recipe(SOURCE)


def read_lycoris(content: Mapping[str, Any]) -> Recipe:
    """Converts the adapter's settings, which are all that this file has."""
    book = Ledger({name: Entry(name, value) for name, value in content.items()}, has_defaults=False)
    _lycoris(book)
    book.account_for_rest({"bypass_mode": keys.MEMORY}, {})
    return book.recipe(LYCORIS_SOURCE)


def _entries(content: Mapping[str, Any]) -> dict[str, Entry]:
    """Every value by its name; the optimizer's arguments are one text there."""
    entries = {key.removeprefix("--"): Entry(key, value) for key, value in _settings(content).items()}
    if _settings(content) is not content:
        entries |= {key: Entry(key, value) for key, value in content.items() if key != "config"}
    for old, new in RENAMED.items():
        if old in entries and new not in entries:
            entries[new] = entries.pop(old)
    given = entries.get("optimizer_config")
    if given is not None and isinstance(given.value, str) and "=" in given.value:
        del entries["optimizer_config"]
        for part in given.value.split(","):
            name, _, value = part.partition("=")
            entries[f"optimizer_config.{name.strip()}"] = Entry(f"{given.path}.{name.strip()}", value.strip())
    join_betas(entries, "optimizer_beta1", "optimizer_beta2", "optimizer_config.betas")
    return entries


def _network(book: Ledger) -> None:
    sizes = ("lora_rank", "lora_alpha", "lora_dropout", "use_dora")
    kind = book.text("lora_type", "standard").lower()
    if kind == "lycoris":
        lost = "adapter, rank and layers stand in lycoris_config: import that file too, and set them by hand here"
        book.replace("lora_type", lost, adapter="lora", targets="attention and feed-forward")
        book.ignore(sizes, "not for lora_type lycoris")
        return
    book.ignore("lycoris_config", f"not for lora_type {kind}")
    adapter = "dora" if book.flag("use_dora") else "lora"
    if kind == "standard":
        book.carry("lora_type", adapter=adapter, targets="attention")
    else:
        book.replace("lora_type", "this kind of adapter is not offered", adapter=adapter, targets="attention")
    if adapter == "dora":
        book.carry("use_dora", adapter=adapter)
    book.ignore("use_dora", "off, as here")
    rank = book.whole("lora_rank", 16)
    book.carry("lora_rank", rank=rank)
    book.carry("lora_alpha", "" if book.has("lora_alpha") else "as lora_rank", alpha=book.number("lora_alpha", rank))
    book.carry("lora_dropout", dropout=book.number("lora_dropout", 0.1))


def _lycoris(book: Ledger) -> None:
    algorithm = book.text("algo", "lora").lower()
    known = adapter_named(algorithm, "lycoris")
    adapter = known or "lora"
    if book.flag("dora_wd") and adapter == "lora":
        adapter = "dora"
        book.carry("dora_wd", adapter=adapter)
    if known:
        book.carry("algo", adapter=adapter, targets="attention and feed-forward")
    else:
        book.replace("algo", "this algorithm is not offered", adapter=adapter)
    if adapter == "lokr" and book.flag("full_matrix"):
        book.carry("full_matrix", "the second factor is whole", rank=WHOLE_FACTOR, alpha=float(WHOLE_FACTOR))
        book.ignore(("linear_dim", "linear_alpha"), "without effect where LoKr's factor is whole")
    else:
        book.carry("linear_dim", rank=book.whole("linear_dim", 4))
        if KINDS[adapter].has_scale:
            book.carry("linear_alpha", alpha=book.number("linear_alpha", 1.0))
    if adapter == "lokr":
        book.carry("factor", lokr_factor=book.whole("factor", -1))
    book.carry("dropout", dropout=book.number("dropout"))
    book.ignore(("factor", "full_matrix"), "for LoKr only")
    book.ignore("linear_alpha", "this adapter has no scale")
    book.miss("dora_wd", f"weight decomposition, which {adapter} has not here")
    book.miss("multiplier", "the LoRA's strength while it is trained", 1)
    book.miss("apply_preset", keys.LAYERS)


def _optimizer(book: Ledger) -> OptimizerKind:
    name = book.text("optimizer", "adamw_bf16")
    if name == "prodigy":
        name = "prodigyplus"  # which that name means there
    kind = carry_optimizer(book, "optimizer", name, "optimizer_config.")
    old = ("adam_beta1", "adam_beta2", "adam_epsilon", "adam_weight_decay")
    book.ignore(old, "that trainer's optimizers take these from optimizer_config")
    book.miss("optimizer_config", "these are no settings of the form name=value")
    book.ignore(("optimizer_beta1", "optimizer_beta2"), "not set, or one of the two alone")
    return kind


def _learning_rates(book: Ledger, optimizer: OptimizerKind) -> None:
    base = book.number("learning_rate", 4e-7)
    book.carry("learning_rate", learning_rate=base)
    if book.flag("train_text_encoder"):
        rate = base if optimizer.finds_rate else book.number("text_encoder_lr", base)
        book.carry(("train_text_encoder", "text_encoder_lr"), text_encoder_learning_rate=rate)
    else:
        book.carry("train_text_encoder", text_encoder_learning_rate=0.0)
    book.ignore("text_encoder_lr", "the text encoders are not trained")


def _schedule(book: Ledger, optimizer: OptimizerKind) -> None:
    names = ("lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_end")
    if optimizer.scheduler:
        book.values |= {"scheduler": optimizer.scheduler, "warmup": 0.0}
        book.ignore(names, f"{optimizer.name} goes with the scheduler {optimizer.scheduler}")
        return
    name = book.text("lr_scheduler", "constant_with_warmup").lower()
    if name in SWINGING:
        lost = "the learning rate would have swung between lr_end and learning_rate, with lr_warmup_steps as the period"
        book.replace("lr_scheduler", lost, scheduler="cosine", warmup=0.0)
        book.ignore("lr_warmup_steps", "the period of the scheduler, which is not offered")
    else:
        carry_scheduler(book, "lr_scheduler", "constant_with_warmup")
        has_warmup = name != "constant"
        book.carry("lr_warmup_steps", warmup=float(book.whole("lr_warmup_steps")) if has_warmup else 0.0)
    if name == "polynomial":
        book.carry("lr_power", scheduler_power=book.number("lr_power", 0.8))
    book.ignore(("lr_power", "lr_num_cycles"), "not for this scheduler")
    if name != "polynomial":
        book.ignore("lr_end", "not for this scheduler")


def _run(book: Ledger) -> None:
    if book.whole("max_train_steps"):
        book.carry("max_train_steps", steps=book.whole("max_train_steps"))
        book.ignore("num_train_epochs", "max_train_steps counts")
    else:
        book.carry("num_train_epochs", epochs=book.whole("num_train_epochs", 1))
        book.ignore("max_train_steps", "not set: num_train_epochs counts")
    book.carry("train_batch_size", batch_size=book.whole("train_batch_size", 4))
    accumulation = book.whole("gradient_accumulation_steps", 1)
    book.carry("gradient_accumulation_steps", gradient_accumulation=accumulation)
    book.carry("max_grad_norm", max_grad_norm=book.number("max_grad_norm", 2.0))
    method, lost = "grad_clip_method", "each number of the gradient cut off at max_grad_norm; here their norm is"
    if book.value("max_grad_norm", 2.0) and book.text(method, "value") == "value":
        book.note_absent(method, "value", lost)
        book.miss(method, lost)
    book.ignore(method, "as here")
    is_on = book.flag("gradient_checkpointing", True)
    book.carry("gradient_checkpointing", gradient_checkpointing=is_on)
    carry_precision(book, "mixed_precision", "bf16")
    weights = book.text("base_model_precision", "no_change").lower()
    if weights in ("no_change", "bf16", "fp16", "fp32"):
        book.carry("base_model_precision", base_precision="as loaded")
    else:
        book.carry("base_model_precision", "" if "fp8" in weights else "not that format", base_precision="fp8")
    if book.flag("use_ema"):
        book.carry(("use_ema", "ema_decay"), ema_decay=book.number("ema_decay", 0.995))
    else:
        book.carry("use_ema", ema_decay=0.0)
        book.ignore(("ema_decay", "ema_update_interval", "ema_warmup_steps"), "use_ema is off")
    has_seed = book.value("seed") is not None
    book.carry("seed", "" if has_seed else "one would have been drawn", seed=book.whole("seed"))


def _objective(book: Ledger) -> None:
    carry_loss(book)
    book.carry("snr_gamma", min_snr_gamma=book.number("snr_gamma"))
    if book.flag("offset_noise"):
        book.carry(("offset_noise", "noise_offset"), noise_offset=book.number("noise_offset", 0.1))
        lost = "the share of steps with the noise offset"
        book.note_absent("noise_offset_probability", 0.25, lost)
    else:
        book.carry("offset_noise", noise_offset=0.0)
        book.ignore(("noise_offset", "noise_offset_probability"), "offset_noise is off")
    book.carry("input_perturbation", ip_noise_gamma=book.number("input_perturbation"))
    if book.flag("rescale_betas_zero_snr"):
        book.carry("rescale_betas_zero_snr", zero_terminal_snr=True)


def _timesteps(book: Ledger, is_flow: bool) -> None:
    shift, key = book.number("flow_schedule_shift", 3.0), "flow_schedule_shift"
    names = ("flow_sigmoid_scale", key, "flow_schedule_auto_shift", "flow_use_uniform_schedule")
    if not is_flow:
        book.values["timestep_sampling"] = "auto"
        book.ignore((*names, "flow_use_beta_schedule", "flow_cubic_schedule_weights"), "for flow models only")
        return
    is_dynamic = shift <= 0 and book.flag("flow_schedule_auto_shift")
    if book.flag("flow_use_uniform_schedule"):
        book.carry("flow_use_uniform_schedule", timestep_sampling="uniform")
        if is_dynamic or shift > 0:
            lost = "the uniform density would have been shifted towards noise; shift with a wide logit_std comes near"
            book.note_absent(key, shift, lost)
            book.miss(key, lost, 1)
    elif is_dynamic:
        book.carry("flow_schedule_auto_shift", timestep_sampling="resolution_shift")
    elif shift > 0:
        book.carry(key, timestep_sampling="shift", timestep_shift=shift)
    else:
        book.carry(key, timestep_sampling="logit_normal")
    if not book.flag("flow_use_uniform_schedule"):
        book.carry("flow_sigmoid_scale", logit_std=book.number("flow_sigmoid_scale", 1.0))
    book.ignore(names, "without effect beside the others")


def _files(book: Ledger) -> None:
    book.carry("checkpoint_step_interval", save_every=book.whole("checkpoint_step_interval", 500))
    prompt = book.text("validation_prompt")
    if prompt and not book.flag("validation_disable"):
        book.carry("validation_prompt", sample_prompts=(" ".join(prompt.split()),))
        every = book.whole("validation_step_interval", 100)
        book.carry("validation_step_interval", sample_every=every)
        book.carry("validation_guidance", sample_guidance=book.number("validation_guidance", 7.5))
        book.carry("validation_num_inference_steps", sample_steps=book.whole("validation_num_inference_steps", 30))
        book.miss("validation_negative_prompt", "a negative prompt for sample pictures")
    if book.flag("validation_prompt_library"):
        book.miss("validation_prompt_library", "sample pictures of that trainer's own prompts")
    book.miss("user_prompt_library", "the prompts are in that file: write them into Import Recipe's changes")


def _data(book: Ledger) -> None:
    side, kind = book.number("resolution", 1024), book.text("resolution_type", "pixel_area")
    if kind == "area":
        side = (side * 1e6) ** 0.5
        book.carry_data(("resolution", "resolution_type"), "of that many megapixels", resolution=round(side))
    else:
        book.carry_data("resolution", resolution=int(side))
        book.miss("resolution_type", "the shorter side of each picture; here it is the area's root", "pixel_area")
    book.carry_data("aspect_bucket_alignment", bucket_step=book.whole("aspect_bucket_alignment", 64))
    rate = "caption_dropout_probability"
    book.carry_data(rate, caption_dropout=book.number(rate))
    if book.text("instance_prompt") and book.flag("prepend_instance_prompt"):
        book.carry_data(("prepend_instance_prompt", "instance_prompt"), trigger_word=book.text("instance_prompt"))
    lost = "folders, repeats and captions stand in that file; choose the folder in Load Dataset"
    book.miss("data_backend_config", lost)
