"""ostris/ai-toolkit: the YAML (or JSON) file of a training job.

Names, defaults and meaning are those of github.com/ostris/ai-toolkit in 2026 (toolkit/config_modules.py,
toolkit/optimizer.py, toolkit/scheduler.py, jobs/process/BaseSDTrainProcess.py).
"""

import math
from collections.abc import Mapping
from typing import Any

from ..basics.errors import InputError
from ..config.optimizers import OptimizerKind
from . import ai_toolkit_keys as keys
from .ledger import Entry, Ledger, leaves, shown, to_number
from .recipe import Recipe
from .techniques import (
    WHOLE_FACTOR,
    Defaults,
    adapter_named,
    carry_optimizer,
    carry_precision,
    carry_save_precision,
    carry_scheduler,
)

SOURCE = "ai-toolkit job"
FLOW_SCHEDULERS = ("flowmatch", "custom_flowmatch")
ARGUMENTS: Defaults = dict.fromkeys(("adamw", "adamw8bit", "prodigy"), {"eps": "1e-6"})
"""arguments that this trainer sets if the file does not"""
DATA = "datasets[0]."


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table is a job: config.process is a list of tables."""
    return _process(content) is not None


def read(content: Mapping[str, Any]) -> Recipe:
    """Converts a job, of which the first process counts.

    Raises:
        InputError: the job trains nothing; values of the wrong type.
    """
    process = (_process(content) or [{}])[0]
    if not isinstance(process.get("train"), dict) and not isinstance(process.get("network"), dict):
        problem = f"its first process, of type {shown(process.get('type'))}, has no table `train`: it trains nothing."
        raise InputError(SOURCE, [problem])
    book = Ledger(_entries(content))
    if not book.names("network"):
        book.note_absent("network", None, "the whole model would have been trained; here it is a LoRA")
    _network(book)
    _learning(book)
    _loss_and_timesteps(book)
    _saving(book)
    _data(book)
    _further_data(book)
    for name in book.names("process["):
        book.miss(name, "a further process of the job; the first is the recipe")
    for table, (is_lost, what) in keys.TABLES.items():
        for name in [table, *book.names(f"{table}.")]:
            book.miss(name, what) if is_lost else book.ignore(name, what)
    book.ignore(tuple(name for name in book.names() if not book.has(name)), "not set")
    book.account_for_rest(keys.IGNORED, keys.MISSING)
    return book.recipe(SOURCE)


def _process(content: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    config = content.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    is_list = isinstance(processes, list) and bool(processes) and all(isinstance(each, dict) for each in processes)
    return processes if is_list else None


def _entries(content: Mapping[str, Any]) -> dict[str, Entry]:
    """Every value by its path: in the first process, such as train.lr, or in the job, such as config.name."""
    processes = _process(content) or []
    job = {key: value for key, value in content.items() if key != "config"}
    config = {key: value for key, value in content["config"].items() if key != "process"}
    further = {f"process[{number}]": each for number, each in enumerate(processes) if number}
    found = [*leaves(job), *leaves(config, "config."), *further.items(), *leaves(processes[0], "", ("datasets",))]
    entries: dict[str, Entry] = {}
    for path, value in found:
        name = f"job.{path}" if path in entries else path
        entries[name] = Entry(name, value)
    return entries


def _network(book: Ledger) -> None:
    kind = book.text("network.type", "lora").lower()
    known = adapter_named(kind, "ai_toolkit")
    adapter = known or "lora"
    if known:
        book.carry("network.type", adapter=adapter)
    else:
        book.replace("network.type", "this network is not offered", adapter=adapter)
    if adapter == "lokr" and book.flag("network.lokr_full_rank", True):
        book.carry("network.lokr_full_rank", "the second factor is whole", rank=WHOLE_FACTOR, alpha=float(WHOLE_FACTOR))
        unused = ("rank", "linear", "alpha", "linear_alpha", "conv", "conv_alpha")
        book.ignore(tuple(f"network.{name}" for name in unused), "without effect where lokr_full_rank is on")
        book.carry("network.conv", targets="all linear and convolution")
    else:
        _rank(book)
    if adapter == "lokr":
        book.carry("network.lokr_factor", lokr_factor=book.whole("network.lokr_factor", -1))
    book.ignore(("network.lokr_full_rank", "network.lokr_factor"), "for LoKr only")
    book.carry("network.dropout", dropout=book.number("network.dropout"))


def _rank(book: Ledger) -> None:
    rank_key = "network.rank" if book.has("network.rank") else "network.linear"
    book.carry(rank_key, rank=book.whole(rank_key, 4))
    book.ignore("network.linear", "network.rank counts")
    book.ignore("network.rank", "not set: network.linear counts")
    alpha_key = "network.linear_alpha" if book.has("network.linear_alpha") else "network.alpha"
    book.carry(alpha_key, alpha=book.number(alpha_key, 1.0))
    book.ignore(("network.alpha", "network.linear_alpha"), "linear_alpha counts, else alpha")
    conv_rank = book.whole("network.conv")
    if conv_rank:
        book.carry("network.conv", targets="all linear and convolution", conv_rank=conv_rank)
        book.carry("network.conv_alpha", conv_alpha=book.number("network.conv_alpha", float(conv_rank)))
    else:
        book.carry("network.conv", "without convolutions", targets="attention and feed-forward")
        book.note("network.type", "the linear layers outside attention and feed-forward would have been trained too")
    book.ignore("network.conv_alpha", "network.conv is off")


def _learning(book: Ledger) -> None:
    optimizer = carry_optimizer(
        book, "train.optimizer", book.text("train.optimizer", "adamw"), "train.optimizer_params.", ARGUMENTS
    )
    _learning_rates(book, optimizer)
    _schedule(book)
    legacy, usual = book.whole("train.gradient_accumulation_steps", 1), book.whole("train.gradient_accumulation", 1)
    if usual == 1 and legacy == -1:
        book.miss("train.gradient_accumulation_steps", "one optimizer step an epoch")
    key = "train.gradient_accumulation_steps" if usual == 1 and legacy > 1 else "train.gradient_accumulation"
    per_step = legacy if key.endswith("_steps") else 1
    note = "that trainer counts forward passes as steps, so its numbers of steps are divided by this"
    book.carry(key, note if per_step > 1 else "", gradient_accumulation=max(legacy, usual, 1))
    book.ignore(("train.gradient_accumulation_steps", "train.gradient_accumulation"), "1, or the other counts")
    book.carry("train.steps", steps=math.ceil(book.whole("train.steps", 1000) / per_step))
    book.carry("save.save_every", save_every=math.ceil(book.whole("save.save_every", 1000) / per_step))
    _samples(book, per_step)
    book.carry("train.batch_size", batch_size=book.whole("train.batch_size", 1))
    book.carry("train.max_grad_norm", max_grad_norm=book.number("train.max_grad_norm", 1.0))
    checkpointing = book.flag("train.gradient_checkpointing", True)
    book.carry("train.gradient_checkpointing", gradient_checkpointing=checkpointing)
    carry_precision(book, "train.dtype", "fp32")
    is_8bit = "float8" in book.text("model.qtype", "qfloat8")
    if book.flag("model.quantize"):
        book.carry("model.quantize", "" if is_8bit else "not the format of model.qtype", base_precision="fp8")
    else:
        book.carry("model.quantize", base_precision="as loaded")
    if book.flag("train.ema_config.use_ema"):
        book.carry("train.ema_config.use_ema", ema_decay=book.number("train.ema_config.ema_decay", 0.999))
        book.carry("train.ema_config.ema_decay", ema_decay=book.number("train.ema_config.ema_decay", 0.999))
    else:
        book.carry("train.ema_config.use_ema", ema_decay=0.0)
    book.ignore(tuple(book.names("train.ema_config.")), "use_ema is off")
    seed = "training_seed"
    book.carry(seed, "" if book.has(seed) else "one would have been drawn", seed=book.whole(seed))


def _learning_rates(book: Ledger, optimizer: OptimizerKind) -> None:
    base = book.number("train.lr", 1e-6)
    key = "train.unet_lr" if book.has("train.unet_lr") else "train.lr"
    rate, note = book.number("train.unet_lr", base), ""
    if optimizer.finds_rate and rate < 0.1:
        rate, note = 1.0, "as that trainer does where Prodigy's is below 0.1"
    book.carry(key, note, learning_rate=rate)
    text_key = "train.text_encoder_lr"
    if book.flag("train.train_text_encoder"):
        text_rate = rate if optimizer.finds_rate else book.number(text_key, base)
        book.carry("train.train_text_encoder", text_encoder_learning_rate=text_rate)
        if book.has(text_key):
            book.carry(text_key, text_encoder_learning_rate=text_rate)
    else:
        book.carry("train.train_text_encoder", text_encoder_learning_rate=0.0)
    book.ignore(text_key, "not set, or the text encoders are not trained")
    book.ignore(("train.lr", "train.unet_lr"), "the other of lr and unet_lr counts")


def _schedule(book: Ledger) -> None:
    key, prefix = "train.lr_scheduler", "train.lr_scheduler_params."
    name = book.text(key, "constant").lower()
    if name == "linear":
        book.replace(key, "it would have risen from a third of the learning rate to all of it", scheduler="constant")
    else:
        carry_scheduler(book, key)
    if name == "cosine_with_restarts":
        book.carry(key, scheduler_cycles=1)
        book.values["scheduler_cycles"] = 1
    if name in ("constant_with_warmup", "polynomial"):
        default = 1000 if name == "constant_with_warmup" else 0
        warmup = f"{prefix}num_warmup_steps"
        book.carry(warmup, warmup=float(book.whole(warmup, default)))
    if name == "polynomial":
        book.carry(f"{prefix}power", scheduler_power=book.number(f"{prefix}power", 1.0))
    for each in book.names(prefix):
        book.miss(each, "a further setting of the scheduler")


def _loss_and_timesteps(book: Ledger) -> None:
    loss = book.text("train.loss_type", "mse")
    if loss == "mse":
        book.carry("train.loss_type", loss="l2")
    else:
        book.replace("train.loss_type", "this loss is not offered", loss="l2")
    book.carry("train.min_snr_gamma", min_snr_gamma=book.number("train.min_snr_gamma"))
    book.carry("train.noise_offset", noise_offset=book.number("train.noise_offset"))
    is_flow = book.text("train.noise_scheduler", "ddpm") in FLOW_SCHEDULERS
    book.ignore("train.noise_scheduler", "the model's family decides")
    kind = book.text("train.timestep_type", "sigmoid")
    if not is_flow:
        book.values["timestep_sampling"] = "auto"
        book.ignore("train.timestep_type", "for flow models only")
    elif kind == "sigmoid":
        book.carry("train.timestep_type", timestep_sampling="logit_normal")
    elif kind == "linear":
        book.carry("train.timestep_type", timestep_sampling="uniform")
    elif kind == "weighted":
        book.replace("train.timestep_type", "a weight on the loss by timestep", timestep_sampling="uniform")
    elif kind in ("shift", "flux_shift", "lumina2_shift"):
        lost = "the density before the shift would have been uniform; here it is logit-normal"
        book.replace("train.timestep_type", lost, timestep_sampling="resolution_shift")
    else:
        book.replace("train.timestep_type", "this density of timesteps is not offered", timestep_sampling="auto")
    first, last = "train.min_denoising_steps", "train.max_denoising_steps"
    if is_flow and kind != "linear":
        lost = "only a part of the timesteps; here min_timestep and max_timestep count another way"
        book.miss(first, lost)
        book.miss(last, lost, 999, 1000)
    else:
        top, bottom = min(book.whole(last, 999), 999), book.whole(first)
        note = "counted from noise to picture"
        book.carry(last, note, min_timestep=999 - top)
        book.carry(first, note, max_timestep=1000 - bottom)


def _saving(book: Ledger) -> None:
    carry_save_precision(book, "save.dtype", "float16")


def _samples(book: Ledger, per_step: int) -> None:
    every = math.ceil(book.whole("sample.sample_every", 100) / per_step)
    prompts, lost = _prompts(book)
    trigger = book.value("trigger_word")
    if isinstance(trigger, str):
        prompts = [prompt.replace("[trigger]", trigger) for prompt in prompts]
    if book.flag("train.disable_sampling"):
        every = 0
        book.carry("train.disable_sampling", sample_every=0)
    book.ignore("train.disable_sampling", "off")
    keys_of_prompts = tuple(name for name in ("sample.prompts", "sample.samples") if name in book)
    if not prompts:
        book.ignore((*keys_of_prompts, *book.names("sample.")), "no prompts, so no sample pictures")
        return
    book.carry(keys_of_prompts, sample_prompts=tuple(dict.fromkeys(prompts)))
    for key in lost:
        book.note(keys_of_prompts[-1], f"{key} of single samples")
    book.carry("sample.sample_every", sample_every=every)
    book.carry("sample.guidance_scale", sample_guidance=book.number("sample.guidance_scale", 7.0))
    book.carry("sample.sample_steps", sample_steps=book.whole("sample.sample_steps", 20))


def _prompts(book: Ledger) -> tuple[list[str], list[str]]:
    """(prompts in either form, names of further settings of single prompts)."""
    prompts: list[str] = []
    lost: dict[str, None] = {}
    for name in ("sample.prompts", "sample.samples"):
        for each in _listed(book, name):
            prompt = each.get("prompt") if isinstance(each, dict) else each
            if isinstance(prompt, str) and prompt.strip():
                prompts.append(" ".join(prompt.split()))
            elif not isinstance(prompt, str):
                book.problem(name, "it must be a list of prompts.")
                break
            lost |= dict.fromkeys(str(key) for key in each if key != "prompt") if isinstance(each, dict) else {}
    return prompts, list(lost)


def _listed(book: Ledger, name: str) -> list[Any]:
    value = book.value(name, [])
    if isinstance(value, list):
        return value
    book.problem(name, "it must be a list of prompts.")
    return []


def _data(book: Ledger) -> None:
    """Load Dataset gets the settings of the first data set."""
    _resolutions(book)
    for key, setting in (("flip_x", "flip"), ("random_crop", "random_crop"), ("shuffle_tokens", "shuffle_tags")):
        book.carry_data(DATA + key, **{setting: book.flag(DATA + key)})
    book.carry_data(f"{DATA}keep_tokens", keep_tokens=book.whole(f"{DATA}keep_tokens"))
    for key, setting in (("caption_dropout_rate", "caption_dropout"), ("token_dropout_rate", "tag_dropout")):
        book.carry_data(DATA + key, **{setting: book.number(DATA + key)})
    if book.has(f"{DATA}num_repeats"):
        book.carry_data(f"{DATA}num_repeats", repeats=book.whole(f"{DATA}num_repeats", 1))
    weights = [name for name in (f"{DATA}loss_multiplier", f"{DATA}network_weight") if book.has(name)]
    book.miss(f"{DATA}network_weight", "the LoRA's strength while it is trained on these pictures", 1)
    if f"{DATA}loss_multiplier" in weights:
        book.carry_data(f"{DATA}loss_multiplier", loss_weight=book.number(f"{DATA}loss_multiplier", 1.0))
    book.carry_data("train.reg_weight", prior_loss_weight=book.number("train.reg_weight", 1.0))
    masks = tuple(name for name in (f"{DATA}alpha_mask", f"{DATA}mask_path") if book.has(name))
    is_masked = book.flag(f"{DATA}alpha_mask") or book.has(f"{DATA}mask_path")
    note = "masks lie beside the pictures here, as name_mask.png" if book.has(f"{DATA}mask_path") else ""
    book.carry_data(masks or f"{DATA}alpha_mask", note, masked_loss=is_masked)
    if is_masked:
        book.carry_data(f"{DATA}mask_min_value", unmasked_weight=book.number(f"{DATA}mask_min_value"))
    book.ignore((f"{DATA}alpha_mask", f"{DATA}mask_path", f"{DATA}mask_min_value"), "no masks")
    own = f"{DATA}trigger_word"
    key = own if book.has(own) else "trigger_word"
    if book.has(key):
        book.carry_data(key, trigger_word=book.text(key))
    book.ignore(("trigger_word", own), "not set, or the other counts")
    extension = f"{DATA}caption_ext"
    if book.text(extension).strip(".").lower() not in ("", "txt", "caption"):
        book.miss(extension, "Load Dataset reads captions from .txt, .caption and metadata.jsonl: rename them")
    book.ignore(extension, "Load Dataset looks for .txt and .caption")
    book.miss(f"{DATA}is_reg", "these are regularisation pictures: choose their folder as regularisation_folder")
    if book.value(f"{DATA}buckets") is not None and not book.flag(f"{DATA}buckets", True):
        book.miss(f"{DATA}buckets", "every picture would have been cut square; here they go into buckets")
    book.ignore(f"{DATA}buckets", "as here")
    book.carry_data(f"{DATA}bucket_tolerance", bucket_step=book.whole(f"{DATA}bucket_tolerance", 64))


def _resolutions(book: Ledger) -> None:
    """One resolution or several; each picture is trained at all of them."""
    name = f"{DATA}resolution"
    value = book.value(name, 512)
    numbers = [to_number(each) for each in (value if isinstance(value, list) else [value])]
    sides = [int(number) for number in numbers if number is not None and 1 <= number <= 2**20]
    if not sides or len(sides) != len(numbers):
        book.problem(name, "it must be a number of pixels, or a list of them.")
        return
    largest, *extra = sorted(set(sides), reverse=True)
    book.carry_data(name, resolution=largest, extra_resolutions=", ".join(map(str, extra)))


def _further_data(book: Ledger) -> None:
    """Accounts for further data sets, whose other settings are lost: one Load Dataset has one of each."""
    for name in book.names("datasets["):
        if name.startswith(DATA):
            continue
        key = name.partition("].")[2]
        first = book.value(DATA + key)
        if key in ("folder_path", "dataset_path") or DATA + key in keys.IGNORED:
            book.ignore(name, "choose the folder in Load Dataset; a settings file in it can set it apart")
        elif DATA + key in book and book.value(name) == first:
            book.ignore(name, f"as {DATA}{key}")
        else:
            lost = f"one Load Dataset has one setting, and {DATA}{key} counts ({shown(first)})"
            book.miss(name, f"{lost}; a settings file in its folder can set it apart")
