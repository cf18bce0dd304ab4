"""tdrussell/diffusion-pipe: the TOML of a run, and the dataset TOML that it names.

Names, defaults and meaning are those of github.com/tdrussell/diffusion-pipe in 2026 (train.py, models/,
utils/dataset.py, docs/supported_models.md).
"""

import math
from collections.abc import Mapping
from typing import Any

from ..config.optimizers import OptimizerKind
from . import sd_scripts
from .ledger import Entry, Ledger, leaves, to_number
from .recipe import Recipe
from .sd_scripts.keys import BIT16, CACHE, FAMILY, FOLDERS, GRAPH, LAUNCH, LOGS, MEMORY, STATE, VALIDATION
from .techniques import (
    adapter_named,
    carry_optimizer,
    carry_precision,
    carry_save_precision,
    carry_scheduler,
)

SOURCE, DATA_SOURCE = "diffusion-pipe TOML", "diffusion-pipe dataset file"
MARKS = ("micro_batch_size_per_gpu", "pipeline_stages")
"""keys that only this trainer has"""
FIRST = "directory[0]."
UNETS = ("sdxl",)
"""values of model.type whose text encoders are trained, and whose model predicts noise"""

IGNORED: dict[str, str] = {
    "dataset": FOLDERS,
    "model.type": FAMILY,
    "model.v_pred": FAMILY,
    **dict.fromkeys(("output_dir", "pipeline_stages", "partition_method", "partition_split", "map_num_proc"), LAUNCH),
    **dict.fromkeys(("resume_from_checkpoint", "checkpoint_every_n_minutes", "checkpoint_every_n_epochs"), STATE),
    **dict.fromkeys(("steps_per_print", "logging_steps", "x_axis_examples"), LOGS),
    **dict.fromkeys(("caching_batch_size", "regenerate_cache"), CACHE),
    **dict.fromkeys(("blocks_to_swap", "compile", "reentrant_activation_checkpointing"), MEMORY),
    **dict.fromkeys(("disable_block_swap_for_eval", "optimizer.gradient_release", "optimizer.kahan_sum"), MEMORY),
    "model.cache_text_embeddings": CACHE,
    "video_clip_mode": "for films only",
    "frame_buckets": "for films only",
    "image_micro_batch_size_per_gpu": "beside films only",
    "model.bypass_guidance_embedding": "the graph's model decides",
    **{
        f"model.{name}": GRAPH
        for name in (
            *("checkpoint_path", "ckpt_path", "diffusers_path", "transformer_path", "vae_path", "llm_path"),
            *("clip_path", "t5_path", "byt5_path", "llama3_path", "llama3_4bit", "text_encoder_path"),
            *("text_encoder", "text_encoders", "single_file_path", "diffusion_model", "vae", "audio_vae"),
            *("llm_adapter_path", "max_sequence_length", "max_llama3_sequence_length", "text_encoder_fp8"),
            *("text_encoder_nf4", "text_encoder_dtype", "all_modules"),
        )
    },
    **dict.fromkeys(("path", "control_path", "default_mask_file"), FOLDERS),
    "skip_empty_caption": "pictures without a caption are trained with an empty one",
    **dict.fromkeys(("min_ar", "max_ar", "num_ar_buckets"), "Load Dataset forms its buckets by bucket_step"),
    "cache_shuffle_delimiter": "for cache_shuffle_num only",
}
"""key -> why it has no effect here"""

OWN_RATE = "a learning rate of its own for some of the model's layers; layer_rules in Adapter Options can say the same"
MISSING: dict[str, tuple] = {
    "force_constant_lr": ("this learning rate throughout; set it as learning_rate, with the scheduler constant",),
    "uncond_fraction": ("the share of empty captions, as caption_dropout in Load Dataset",),
    "eval_datasets": (VALIDATION,),
    "adapter": ("these are no settings of a LoRA",),
    "adapter.init_from_existing": ("training would have gone on from that LoRA: connect it to Train LoRA",),
    "adapter.fuse_adapters": ("these LoRAs would have been merged into the model first: load them in the graph",),
    "adapter.exclude_modules": ("a choice of layers by name; layer_rules in Adapter Options can say the same",),
    "adapter.alpha": ("that trainer refuses it: alpha is the rank",),
    "model.merge_adapters": ("these LoRAs would have been merged into the model first: load them in the graph",),
    "model.guidance": ("the guidance that the model is told in training; here it is the graph's own", 1),
    "model.multiscale_loss_weight": ("a further loss on smaller pictures",),
    "model.image_shift": ("pictures' timesteps shifted in another way than films'",),
    "model.cfg": ("classifier-free guidance while training",),
    "model.first_frame_conditioning_p": ("films that begin with a given picture",),
    **{
        f"model.{name}": (OWN_RATE,) for name in ("llm_adapter_lr", "self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr")
    },
    "optimizer.beta2_half_life": ("the second beta as a half-life",),
    "ar_buckets": ("a list of shapes; Load Dataset forms its buckets itself",),
    "size_buckets": ("a list of sizes; Load Dataset forms its buckets itself",),
    "subsample_ratio": ("a share of the pictures",),
    "online_captions": ("captions read again in each epoch",),
    "shuffle_metadata": ("pictures shuffled before they are cached",),
    "save_every_n_epochs": ("counted in epochs; here in steps: in Import Recipe's changes set save_every",),
    "save_every_n_examples": ("counted in pictures; here in steps: in Import Recipe's changes set save_every",),
}
"""key -> (its effect in that trainer, values besides 0, false and empty that have no effect)"""


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table has keys, or a set of tables, that only this trainer has."""
    return any(mark in content for mark in MARKS) or _is_run(content) or _is_data(content)


def _is_run(content: Mapping[str, Any]) -> bool:
    """Whether the tables are those of a run; an sd-scripts TOML may give its tables the same names."""
    model, optimizer = content.get("model"), content.get("optimizer")
    has_tables = isinstance(model, dict) and "type" in model and isinstance(optimizer, dict)
    return has_tables and isinstance(content.get("dataset"), str) and not sd_scripts.has_network(content)


def _is_data(content: Mapping[str, Any]) -> bool:
    folders = content.get("directory")
    return isinstance(folders, list) and bool(folders) and all(isinstance(each, dict) for each in folders)


def read(content: Mapping[str, Any]) -> Recipe:
    """Converts the file of a run, or that of its pictures."""
    is_data = _is_data(content)
    entries = {path: Entry(path, value) for path, value in leaves(content, "", ("directory",))}
    book = Ledger(entries, has_defaults=not is_data)
    if not is_data:
        _run(book)
    if is_data:
        _data(book)
    for name in book.names("eval_"):
        book.ignore(name, "without eval_datasets nothing is measured, or that is said beside it")
    book.ignore(tuple(book.names("monitoring.")), LOGS)
    book.account_for_rest(IGNORED, MISSING)
    return book.recipe(DATA_SOURCE if is_data else SOURCE)


def _run(book: Ledger) -> None:
    is_unet = book.text("model.type") in UNETS
    _adapter(book, is_unet)
    rate = book.number("optimizer.lr", 1e-4)
    if is_unet and book.has("model.unet_lr"):
        rate = book.number("model.unet_lr")
        book.carry("model.unet_lr", learning_rate=rate)
        book.ignore("optimizer.lr", "model.unet_lr counts")
    else:
        book.carry("optimizer.lr", learning_rate=rate)
    for name in book.names("optimizer."):
        if name in IGNORED:
            book.ignore(name, IGNORED[name])
    optimizer = carry_optimizer(book, "optimizer.type", book.text("optimizer.type", "adamw"), "optimizer.")
    _text_encoders(book, is_unet, optimizer)
    _length(book, optimizer)
    _objective(book, is_unet)
    _timesteps(book, is_unet)
    _formats(book)


def _adapter(book: Ledger, is_unet: bool) -> None:
    if not book.names("adapter"):
        book.note_absent("adapter", None, "the whole model would have been trained; here it is a LoRA")
    kind = book.text("adapter.type", "lora").lower()
    adapter = adapter_named(kind, "lycoris") or "lora"
    note = "the linear layers of its blocks"
    book.carry("adapter.type", note, adapter=adapter, targets="attention and feed-forward")
    if not is_unet:
        book.note(
            "adapter.type", "the modulation layers of its blocks, if they are linear, would have been trained too"
        )
    rank = int(book.number("adapter.rank", 32))
    book.carry("adapter.rank", "alpha is the rank there", rank=rank, alpha=float(min(rank, 10_000)))
    if adapter == "lokr":
        book.carry("adapter.decompose_factor", lokr_factor=book.whole("adapter.decompose_factor", -1))
        book.carry("adapter.rank_dropout", rank_dropout=book.number("adapter.rank_dropout"))
    book.carry("adapter.dropout", dropout=book.number("adapter.dropout"))
    book.miss("adapter.dtype", BIT16, "float32")


def _text_encoders(book: Ledger, is_unet: bool, optimizer: OptimizerKind) -> None:
    """Those of SDXL are trained unless their rate is 0; no others."""
    names = ("model.text_encoder_1_lr", "model.text_encoder_2_lr")
    base = book.number("optimizer.lr", 1e-4)
    rates = [book.number(name, base) for name in names] if is_unet else [0.0]
    rate = book.values["learning_rate"] if optimizer.finds_rate and rates[0] else rates[0]
    if is_unet:
        book.carry(tuple(name for name in names if name in book) or names[0], text_encoder_learning_rate=rate)
        if len(set(rates)) > 1:
            book.note(names[1], "a rate of its own; here the text encoders have one")
    else:
        book.values["text_encoder_learning_rate"] = 0.0
    book.miss((*names, "model.unet_lr"), "for SDXL only")


def _length(book: Ledger, optimizer: OptimizerKind) -> None:
    steps, epochs = book.whole("max_steps"), book.whole("epochs", 1)
    if steps:
        book.carry("max_steps", steps=steps)
        book.miss("epochs", "the run would have ended after so many epochs, if that is before max_steps")
    else:
        book.carry("epochs", epochs=epochs)
    book.ignore("max_steps", "not set: epochs counts")
    if book.has("save_every_n_steps"):
        book.carry("save_every_n_steps", save_every=book.whole("save_every_n_steps"))
    _batch(book)
    accumulation = book.whole("gradient_accumulation_steps", 1)
    book.carry("gradient_accumulation_steps", gradient_accumulation=accumulation)
    book.carry("gradient_clipping", max_grad_norm=book.number("gradient_clipping", 1.0))
    is_on = str(book.value("activation_checkpointing", False)).lower() not in ("false", "0")
    book.carry("activation_checkpointing", gradient_checkpointing=is_on)
    if optimizer.scheduler:
        book.values |= {"scheduler": optimizer.scheduler, "warmup": 0.0}
        book.ignore(("lr_scheduler", "warmup_steps"), f"{optimizer.name} goes with the scheduler {optimizer.scheduler}")
        return
    carry_scheduler(book, "lr_scheduler")
    book.carry("warmup_steps", warmup=float(book.whole("warmup_steps")))


def _batch(book: Ledger) -> None:
    """One number, or one for each resolution."""
    name = "micro_batch_size_per_gpu"
    value = book.value(name, 1)
    if not isinstance(value, list):
        book.carry(name, batch_size=book.whole(name, 1))
        return
    sizes = [to_number(each[-1]) for each in value if isinstance(each, list) and each]
    if not sizes or None in sizes:
        book.problem(name, "it must be a number, or a list of [resolution, number].")
        return
    smallest = int(min(size for size in sizes if size is not None))
    book.replace(name, "a batch size for each resolution; here there is one", batch_size=max(smallest, 1))


def _objective(book: Ledger, is_unet: bool) -> None:
    c = book.number("pseudo_huber_c")
    if c and not is_unet:
        book.carry("pseudo_huber_c", loss="smooth_l1", huber_c=c, huber_schedule="constant")
    else:
        book.carry("pseudo_huber_c", loss="l2")
    snr, debiased = "model.min_snr_gamma", "model.debiased_estimation_loss"
    if is_unet:
        book.carry(snr, min_snr_gamma=book.number(snr))
        book.carry(debiased, debiased_estimation=book.flag(debiased))
    book.miss((snr, debiased), "for SDXL only")


def _timesteps(book: Ledger, is_unet: bool) -> None:
    key, shift = "model.timestep_sample_method", book.number("model.shift")
    dynamic = tuple(name for name in ("model.flux_shift", "model.lumina_shift") if book.flag(name))
    unused = ("model.shift", "model.flux_shift", "model.lumina_shift", "model.sigmoid_scale", key)
    if is_unet:
        book.ignore(unused, "for flow models only")
    elif book.text(key, "logit_normal") == "uniform":
        book.carry(key, timestep_sampling="uniform")
        lost = "the uniform density would have been shifted towards noise; shift with a wide logit_std comes near"
        book.miss(("model.shift", *dynamic), lost, 1)
    else:
        book.carry("model.sigmoid_scale", logit_std=book.number("model.sigmoid_scale", 1.0))
        if shift:
            book.carry((key, "model.shift"), timestep_sampling="shift", timestep_shift=shift)
        elif dynamic:
            book.carry((key, *dynamic), timestep_sampling="resolution_shift")
        else:
            book.carry(key, timestep_sampling="logit_normal")
    book.ignore(unused, "off, or without effect beside the others")
    lost = "a part of the timesteps; min_timestep and max_timestep count after the shift"
    book.miss("model.min_t", lost)
    book.miss("model.max_t", lost, 1)


def _formats(book: Ledger) -> None:
    carry_precision(book, "model.dtype", "bfloat16")
    carry_save_precision(book, "save_dtype", book.text("adapter.dtype", book.text("model.dtype", "bfloat16")))
    keys = ("model.transformer_dtype", "model.diffusion_model_dtype")
    given = tuple(name for name in keys if book.has(name))
    is_8bit = any("float8" in book.text(name) for name in given)
    book.carry(given or keys[0], base_precision="fp8" if is_8bit else "as loaded")
    seed = "" if book.has("seed") else "it is always the same there"
    book.carry("seed", seed, seed=book.whole("seed"))


def _data(book: Ledger) -> None:
    """The settings of the first folder are Load Dataset's, then those of all."""
    name = next((each for each in (f"{FIRST}resolutions", "resolutions") if each in book), "resolutions")
    _resolutions(book, name)
    if book.flag("enable_ar_bucket"):
        book.ignore("enable_ar_bucket", "as here")
    else:
        side = book.dataset.get("resolution", 512)
        book.carry_data("enable_ar_bucket", "every picture is cut square", shortest_side=side, longest_side=side)
    for prefix in (FIRST, ""):
        if book.has(f"{prefix}num_repeats"):
            book.carry_data(f"{prefix}num_repeats", repeats=book.whole(f"{prefix}num_repeats", 1))
        if book.has(f"{prefix}caption_prefix"):
            book.carry_data(f"{prefix}caption_prefix", caption_prefix=book.text(f"{prefix}caption_prefix"))
        shuffled = tuple(n for n in (f"{prefix}shuffle_tags", f"{prefix}cache_shuffle_num") if n in book)
        if shuffled:
            is_on = any([book.flag(n) if n.endswith("tags") else bool(book.whole(n)) for n in shuffled])
            book.carry_data(shuffled, "in each epoch anew", shuffle_tags=is_on)
        if book.has(f"{prefix}mask_path"):
            book.carry_data(
                f"{prefix}mask_path", "masks lie beside the pictures here, as name_mask.png", masked_loss=True
            )
    for each in book.names("directory["):
        setting = each.partition("].")[2]
        if each.startswith(FIRST) and setting in MISSING:
            book.miss(each, *MISSING[setting])
        elif setting in IGNORED or (FIRST + setting in book and book.value(each) == book.value(FIRST + setting)):
            book.ignore(each, IGNORED.get(setting, f"as {FIRST}{setting}"))
        else:
            book.miss(each, "one Load Dataset has one setting; a settings file in its folder can set it apart")


def _resolutions(book: Ledger, name: str) -> None:
    """A list of sides, or of widths and heights; every picture is trained at each."""
    value = book.value(name, [512])
    areas = []
    for each in value if isinstance(value, list) else [value]:
        sides = [to_number(side) for side in (each if isinstance(each, list) else [each])][:2]
        whole = [side for side in sides if side is not None and 1 <= side <= 2**20]
        if not whole or len(whole) != len(sides):
            book.problem(name, "it must be a list of numbers of pixels, or of pairs of them.")
            return
        areas.append(math.isqrt(int(whole[0] * whole[-1])))
    largest, *extra = sorted(dict.fromkeys(areas), reverse=True)
    book.carry_data(name, resolution=largest, extra_resolutions=", ".join(map(str, extra)))
    if name != "resolutions":
        book.ignore("resolutions", f"{name} counts")
