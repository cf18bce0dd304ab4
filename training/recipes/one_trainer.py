"""Nerogar/OneTrainer: the JSON of a saved config or preset.

Names, defaults and meaning are those of github.com/Nerogar/OneTrainer in 2026 (modules/util/config/TrainConfig.py,
modules/util/create.py, modules/modelSetup/), of config version 11 and of those before.
"""

from collections.abc import Mapping
from typing import Any

from ..config.optimizers import OptimizerKind
from . import one_trainer_keys as keys
from .ledger import Entry, Ledger, leaves
from .one_trainer_data import carry_data, carry_samples
from .one_trainer_keys import Family
from .recipe import Recipe
from .sd_scripts.keys import BIT16
from .techniques import WHOLE_FACTOR, carry_optimizer, in_optimizer_steps, join_betas

SOURCE = "OneTrainer JSON"
MARKS = ("training_method", "concept_file_name", "output_model_destination", "loss_weight_fn", "lora_decompose")
"""keys that only this trainer has"""

ADAPTERS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr", "OFT_2": "oft", "OFT": "oft"}
WIDE, NARROW = "all linear and convolution", "attention and feed-forward"
LAYERS = {"full": WIDE, "attn-mlp": NARROW, "attn-only": "attention"}
"""layer_filter_preset -> our targets"""
FORMATS = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
SCHEDULERS = {
    "CONSTANT": ("constant", ""),
    "LINEAR": ("linear", ""),
    "COSINE": ("cosine", ""),
    "COSINE_WITH_HARD_RESTARTS": ("cosine_with_restarts", ""),
    "COSINE_WITH_RESTARTS": ("cosine_with_restarts", "between its cycles the learning rate would have risen slowly"),
    "REX": ("rex", ""),
    "ADAFACTOR": ("constant", "Adafactor's own falling learning rate"),
}
"""learning_rate_scheduler -> (ours, what is lost)"""
RENAMED = {
    "lora_layers": "layer_filter",
    "lora_layer_preset": "layer_filter_preset",
    "lora_layers_regex": "layer_filter_regex",
    "save_after": "save_every",
    "save_after_unit": "save_every_unit",
}
"""names in older files"""
OPTIMIZER = "optimizer.optimizer"


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table has keys that only this trainer has."""
    return any(mark in content for mark in MARKS) and "network_module" not in content


def read(content: Mapping[str, Any]) -> Recipe:
    """Converts a config."""
    book = Ledger(_entries(content))
    kind = book.text("model_type", "STABLE_DIFFUSION_15").upper()
    family = next(each for start, each in keys.FAMILIES.items() if kind.startswith(start))
    whole = "the whole model or an embedding would have been trained; here it is a LoRA"
    book.note_absent("training_method", "FINE_TUNE", whole)
    if book.text("training_method", "LORA").upper() == "LORA":
        book.ignore("training_method", "as here")
    book.miss("training_method", whole)
    optimizer = _optimizer(book)
    _network(book)
    _learning_rates(book, family, optimizer)
    _schedule(book, optimizer)
    _run(book, family)
    _objective(book, family)
    carry_samples(book)
    carry_data(book, family)
    _parts(book, family)
    for prefix, why in keys.PREFIXES.items():
        book.ignore(tuple(book.names(prefix)), why)
    book.account_for_rest(keys.IGNORED, keys.MISSING)
    return book.recipe(SOURCE)


def _entries(content: Mapping[str, Any]) -> dict[str, Entry]:
    """Every value by its path, such as unet.train; the optimizer's two betas are one argument here."""
    entries = {RENAMED.get(path, path): Entry(path, value) for path, value in leaves(content, "", keys.LISTS)}
    if "optimizer" in entries:  # of version 0, which has no table
        entries[OPTIMIZER] = entries.pop("optimizer")
        for name in [name for name in entries if name.startswith("optimizer_")]:
            entries[f"optimizer.{name.removeprefix('optimizer_')}"] = entries.pop(name)
    join_betas(entries, "optimizer.beta1", "optimizer.beta2", "optimizer.betas")
    return entries


def _optimizer(book: Ledger) -> OptimizerKind:
    for name in book.names("optimizer."):
        if name in keys.IGNORED:
            book.ignore(name, keys.IGNORED[name])
    return carry_optimizer(book, OPTIMIZER, book.text(OPTIMIZER, "ADAMW"), "optimizer.")


def _network(book: Ledger) -> None:
    kind = book.text("peft_type", "LORA").upper()
    adapter = ADAPTERS.get(kind)
    if adapter is None:
        adapter = "lora"
        book.replace("peft_type", "this network is not offered", adapter=adapter)
    elif adapter == "lora" and book.flag("lora_decompose"):
        book.carry(("peft_type", "lora_decompose"), adapter="dora")
    else:
        book.carry("peft_type", adapter=adapter)
    book.ignore("lora_decompose", "off, or for LORA only")
    _sizes(book, adapter)
    for prefix in ("lora", "lokr", "oft"):
        if prefix not in (adapter, "lora" if adapter == "loha" else ""):
            names = [name for name in book.names(f"{prefix}_") if name not in ("lora_model_name", "lora_weight_dtype")]
            book.ignore(tuple(names), f"not for peft_type {kind}")
    book.carry("dropout_probability", dropout=book.number("dropout_probability"))
    _layers(book)


def _sizes(book: Ledger, adapter: str) -> None:
    if adapter == "oft":
        book.carry("oft_block_size", rank=book.whole("oft_block_size", 32))
        return
    if adapter == "lokr" and book.flag("lokr_full_matrix"):
        note = "the second factor is whole"
        book.carry("lokr_full_matrix", note, rank=WHOLE_FACTOR, alpha=float(WHOLE_FACTOR))
        book.ignore(("lokr_dim", "lora_alpha"), "without effect where lokr_full_matrix is on")
    else:
        rank = "lokr_dim" if adapter == "lokr" else "lora_rank"
        book.carry(rank, rank=book.whole(rank, 16))
        book.carry("lora_alpha", alpha=book.number("lora_alpha", 1.0))
    if adapter == "lokr":
        book.carry("lokr_decompose_factor", lokr_factor=book.whole("lokr_decompose_factor", -1))
        book.ignore("lokr_full_matrix", "off")


def _layers(book: Ledger) -> None:
    name = book.text("layer_filter_preset", "full")
    has_own = book.has("layer_filter") and name in ("full", "custom")
    if name in LAYERS and not has_own:
        book.carry("layer_filter_preset", targets=LAYERS[name])
        book.ignore(("layer_filter", "layer_filter_regex"), "layer_filter_preset says the same")
        return
    if has_own:
        lost = "a choice of layers by name; layer_rules in Adapter Options can say the same"
        book.replace("layer_filter", lost, targets=NARROW)
        book.ignore("layer_filter_preset", "layer_filter counts")
    else:
        lost = "all layers of the blocks" if name == "blocks" else "this choice of layers is not offered"
        book.replace("layer_filter_preset", lost, targets=NARROW)
    book.ignore(("layer_filter", "layer_filter_regex"), "how the names in layer_filter are compared")


def _learning_rates(book: Ledger, family: Family, optimizer: OptimizerKind) -> None:
    base = book.number("learning_rate", 3e-6)
    scaler, factor = book.text("learning_rate_scaler", "NONE").upper(), 1.0
    if "BATCH" in scaler or "BOTH" in scaler:
        factor *= max(book.whole("batch_size", 1), 1)
    if "GRADIENT" in scaler or "BOTH" in scaler:
        factor *= max(book.whole("gradient_accumulation_steps", 1), 1)
    scale = factor**0.5
    own = f"{family.model}.learning_rate"
    rate = book.number(own, base) * scale
    note = "" if scale == 1 else f"with the factor of learning_rate_scaler {scaler}"
    encoders = [each for each in family.encoders if _is_trained(book, family, each)]
    rates = [book.number(f"{each}.learning_rate", base) * scale for each in encoders]
    if optimizer.finds_rate:
        rates = [rate] * len(rates)
    book.carry(own if book.has(own) else "learning_rate", note, learning_rate=rate)
    book.ignore(own, "not set: learning_rate counts")
    book.ignore("learning_rate", f"{own} counts")
    book.ignore("learning_rate_scaler", "in the learning rates")
    _text_encoders(book, family, encoders, rates)
    trains_model = book.flag(f"{family.model}.train", True)
    book.ignore(f"{family.model}.train", "as here" if trains_model else "said above")
    if not trains_model:
        book.note(f"{family.model}.train", "the diffusion model would not have been trained; here it is")


def _is_trained(book: Ledger, family: Family, encoder: str) -> bool:
    """Whether a text encoder is trained; one that the file does not have at all goes with the first."""
    first = family.encoders[0]
    if encoder != first and not book.names(f"{encoder}.") and not book.flag(f"{first}.train", True):
        book.note_absent(f"{encoder}.train", True, f"it would have been trained; here it is not, as {first} says")
        return False
    return book.flag(f"{encoder}.train", True) and book.flag(f"{encoder}.include", True)


def _text_encoders(book: Ledger, family: Family, encoders: list[str], rates: list[float]) -> None:
    frozen = [each for each in family.encoders if each not in encoders]
    if not encoders:
        switches = tuple(f"{each}.train" for each in frozen)
        if switches:
            book.carry(switches, "the text encoders are not trained", text_encoder_learning_rate=0.0)
        else:
            book.values["text_encoder_learning_rate"] = 0.0
    for each, rate in list(zip(encoders, rates, strict=True))[:1]:
        book.carry(f"{each}.train", text_encoder_learning_rate=rate)
        if book.has(f"{each}.learning_rate"):
            book.carry(f"{each}.learning_rate", text_encoder_learning_rate=rate)
    for each, rate in list(zip(encoders, rates, strict=True))[1:]:
        if rate != rates[0]:
            book.note(f"{each}.learning_rate", "a rate of its own; here the text encoders have one")
        book.ignore((f"{each}.train", f"{each}.learning_rate"), f"as {encoders[0]}")
    if encoders and frozen:
        book.note(f"{frozen[0]}.train", "it would not have been trained; here all text encoders are, or none")
    for each in encoders:
        after, unit = f"{each}.stop_training_after", book.text(f"{each}.stop_training_after_unit", "EPOCH").upper()
        lost = "the text encoder would have stopped learning after so many epochs"
        if unit == "EPOCH" and book.value(after, 30) and book.number(after, 30) < book.whole("epochs", 100):
            book.miss(after, lost)
            book.note_absent(after, 30, lost)
    for each in family.others:
        book.miss(f"{each}.train", "this text encoder, if the model has it, is not trained here")


def _schedule(book: Ledger, optimizer: OptimizerKind) -> None:
    name = book.text("learning_rate_scheduler", "CONSTANT").upper()
    scheduler, lost = SCHEDULERS.get(name, ("constant", "this scheduler is not offered"))
    steps = ("learning_rate_warmup_steps", "learning_rate_scheduler", "learning_rate_cycles")
    if optimizer.scheduler:
        book.values |= {"scheduler": optimizer.scheduler, "warmup": 0.0}
        book.ignore(steps, f"{optimizer.name} goes with the scheduler {optimizer.scheduler}")
        return
    if lost:
        book.replace("learning_rate_scheduler", lost, scheduler=scheduler)
    else:
        book.carry("learning_rate_scheduler", scheduler=scheduler)
    if scheduler == "cosine_with_restarts":
        book.carry("learning_rate_cycles", scheduler_cycles=max(1, round(book.number("learning_rate_cycles", 1.0))))
    book.ignore("learning_rate_cycles", "for restarts only")
    warmup, per_step = book.number("learning_rate_warmup_steps", 200.0), book.whole("gradient_accumulation_steps", 1)
    if warmup > 1:
        note = "that trainer counts forward passes" if per_step > 1 else ""
        book.carry(steps[0], note, warmup=float(in_optimizer_steps(int(warmup), per_step)))
    else:
        book.carry(steps[0], warmup=min(max(warmup, 0.0), 0.999))


def _run(book: Ledger, family: Family) -> None:
    book.carry("epochs", epochs=book.whole("epochs", 100))
    book.carry("batch_size", batch_size=book.whole("batch_size", 1))
    accumulation = book.whole("gradient_accumulation_steps", 1)
    book.carry("gradient_accumulation_steps", gradient_accumulation=accumulation)
    clipped = "clip_grad_norm" not in book or book.has("clip_grad_norm")
    book.carry("clip_grad_norm", max_grad_norm=book.number("clip_grad_norm", 1.0) if clipped else 0.0)
    own, older = f"{family.model}.gradient_checkpointing", "gradient_checkpointing"
    key = older if book.has(older) else own
    is_on = str(book.value(key, True)).upper() not in ("OFF", "FALSE", "0")
    book.carry(key, gradient_checkpointing=is_on)
    name = book.text("train_dtype", "FLOAT_16").upper()
    if name in FORMATS:
        book.carry("train_dtype", precision=FORMATS[name])
    else:
        book.replace("train_dtype", "this arithmetic is not offered", precision="auto")
    name = book.text("output_dtype", "FLOAT_32").upper()
    if name in FORMATS:
        book.carry("output_dtype", save_precision=FORMATS[name])
    else:
        book.replace("output_dtype", "this number format is not offered", save_precision="fp16")
    key = f"{family.model}.weight_dtype"
    weights = book.text(key, "FLOAT_32").upper()
    if weights in FORMATS or weights == "NONE":
        book.carry(key, base_precision="as loaded")
    else:
        book.carry(key, "" if weights == "FLOAT_8" else f"not the format {weights}", base_precision="fp8")
    book.miss("lora_weight_dtype", BIT16, "FLOAT_32")
    _ema(book)


def _ema(book: Ledger) -> None:
    if book.text("ema", "OFF").upper() == "OFF":
        book.carry("ema", ema_decay=0.0)
        book.ignore(("ema_decay", "ema_update_step_interval"), "ema is off")
        return
    every = max(book.whole("ema_update_step_interval", 5), 1)
    note = f"a step's share of that trainer's decay for {every} steps" if every > 1 else ""
    decay = round(book.number("ema_decay", 0.999) ** (1 / every), 6)
    book.carry(("ema", "ema_decay", "ema_update_step_interval"), note, ema_decay=decay)


def _objective(book: Ledger, family: Family) -> None:
    _loss(book)
    book.carry("offset_noise_weight", noise_offset=book.number("offset_noise_weight"))
    zero_snr = "rescale_noise_scheduler_to_zero_terminal_snr"
    book.carry(zero_snr, zero_terminal_snr=book.flag(zero_snr))
    _timesteps(book, family)


def _loss(book: Ledger) -> None:
    square, huber = book.number("mse_strength", 1.0), book.number("huber_strength")
    if huber and not square:
        note = "a little smoother than that trainer's"
        loss = {"loss": "huber", "huber_c": book.number("huber_delta", 1.0), "huber_schedule": "constant"}
        book.carry(("huber_strength", "huber_delta"), note, **loss)
        book.ignore("mse_strength", "0")
    else:
        book.carry("mse_strength", loss="l2")
        book.miss("huber_strength", keys.STRENGTH)
        book.ignore("huber_delta", "huber_strength is 0, or says what is lost")
        if square not in (0.0, 1.0):
            book.note("mse_strength", "a factor on the loss")
    weight, strength = book.text("loss_weight_fn", "CONSTANT").upper(), book.number("loss_weight_strength", 5.0)
    old = book.number("min_snr_gamma")
    if weight == "MIN_SNR_GAMMA":
        book.carry(("loss_weight_fn", "loss_weight_strength"), min_snr_gamma=strength)
    elif weight == "DEBIASED_ESTIMATION":
        book.carry("loss_weight_fn", debiased_estimation=True)
    elif old:
        book.carry("min_snr_gamma", min_snr_gamma=old)
    elif weight == "CONSTANT":
        book.carry("loss_weight_fn", min_snr_gamma=0.0)
    else:
        book.replace("loss_weight_fn", "a weight on the loss by noise level", min_snr_gamma=0.0)
    book.ignore(("loss_weight_strength", "min_snr_gamma", "loss_weight_fn"), "without effect beside the others")


def _timesteps(book: Ledger, family: Family) -> None:
    name, shift = book.text("timestep_distribution", "UNIFORM").upper(), book.number("timestep_shift", 1.0)
    dynamic = family.is_flow and book.flag("dynamic_timestep_shifting")
    is_shifted = dynamic or shift != 1.0
    key = "timestep_distribution"
    if name == "UNIFORM":
        book.carry(key, timestep_sampling="uniform")
        if is_shifted:
            lost = "the uniform density would have been shifted towards noise; shift with a wide logit_std comes near"
            book.note("dynamic_timestep_shifting" if dynamic else "timestep_shift", lost)
    elif name == "LOGIT_NORMAL":
        sampling = "resolution_shift" if dynamic else "shift" if is_shifted and family.is_flow else "logit_normal"
        book.carry(key, timestep_sampling=sampling)
        book.carry("noising_bias", logit_mean=book.number("noising_bias"))
        book.carry("noising_weight", "1 more", logit_std=book.number("noising_weight") + 1.0)
        if sampling == "shift":
            book.carry("timestep_shift", timestep_shift=shift)
        if dynamic:
            book.carry("dynamic_timestep_shifting", timestep_sampling=sampling)
    else:
        book.replace(key, "this density of timesteps is not offered", timestep_sampling="uniform")
    unused = ("noising_bias", "noising_weight", "timestep_shift", "dynamic_timestep_shifting")
    book.ignore(unused, "without effect here, or said beside timestep_distribution")
    first, last = "min_noising_strength", "max_noising_strength"
    if is_shifted and (book.number(first) or book.number(last, 1.0) != 1.0):
        book.miss((first, last), "a part of the timesteps, before the shift; min_timestep counts after it", 1)
    else:
        book.carry(first, min_timestep=int(1000 * book.number(first)))
        book.carry(last, max_timestep=int(1000 * book.number(last, 1.0)))


def _parts(book: Ledger, family: Family) -> None:
    """Accounts for what is left of the tables of the model's parts."""
    for part in keys.PARTS:
        is_used = part in (family.model, *family.encoders)
        for name in book.names(f"{part}."):
            setting = name.removeprefix(f"{part}.")
            if is_used and setting == "guidance_scale":
                book.miss(name, "the guidance that the model is told in training; here it is the graph's own", 1)
            elif setting in keys.OF_A_PART:
                book.ignore(name, keys.OF_A_PART[setting])
