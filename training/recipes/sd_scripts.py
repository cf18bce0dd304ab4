"""kohya-ss/sd-scripts: the arguments of its train_network scripts, as a TOML file holds them.

Names, defaults and meaning are those of github.com/kohya-ss/sd-scripts in 2026 (library/train_util.py,
train_network.py, networks/, library/config_util.py) and of github.com/KohakuBlueleaf/LyCORIS (lycoris/kohya.py).
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import sd_scripts_keys as keys
from .ledger import Entry, Ledger, is_unset, shown, to_number
from .recipe import Recipe
from .techniques import (
    ALGORITHMS,
    PRODIGY,
    WHOLE_FACTOR,
    carry_optimizer,
    carry_precision,
    carry_save_precision,
    carry_scheduler,
    unquoted,
)

SOURCE = "sd-scripts TOML"
DATA_SOURCE = "sd-scripts dataset file"
LISTS = ("network_args", "optimizer_args")
"""Lists of name=value, each of which is a key of its own here."""
RENAMED: dict[str, str] = {
    "batch_size": "train_batch_size",
    "num_repeats": "dataset_repeats",
    "caption_extention": "caption_extension",
}
"""Names in a dataset's tables -> names as arguments."""

NETWORKS = {
    **dict.fromkeys(("networks.lora", "networks.dylora", "networks.lora_fa"), "lora"),
    **{f"networks.lora_{family}": "lora" for family in ("flux", "sd3", "lumina", "anima", "hunyuan_image")},
    "networks.loha": "loha",
    "networks.lokr": "lokr",
    "networks.oft": "oft",
    "networks.oft_flux": "oft",
}
PARTLY = {
    "networks.dylora": "all ranks would have been trained as LoRAs of their own; here the full rank alone",
    "networks.lora_fa": "the first factor of each LoRA would have stayed as it began; here both are trained",
}
PRESETS = {
    "full": ("all linear and convolution", True),
    "unet-only": ("all linear and convolution", False),
    "attn-mlp": ("attention and feed-forward", True),
    "unet-transformer-only": ("attention and feed-forward", False),
    "attn-only": ("attention", True),
}
"""LyCORIS' choices of layers -> our targets, and whether the text encoders are among them."""
WIDE, NARROW, ATTENTION = "all linear and convolution", "attention and feed-forward", "attention"

FREEZE = ("network_train_unet_only", "cache_text_encoder_outputs")
"""Either keeps the text encoders as they are: what is cached cannot learn."""

FLOW = {
    "networks.lora_flux": ("sigma", 3.0, "sigma_scaled"),
    "networks.oft_flux": ("sigma", 3.0, "sigma_scaled"),
    "networks.lora_sd3": ("sigma", 1.0, "raw"),
    "networks.lora_hunyuan_image": ("sigma", 5.0, "raw"),
    "networks.lora_lumina": ("shift", 6.0, "raw"),
    "networks.lora_anima": ("sigmoid", 1.0, "raw"),
}
"""Networks of flow models -> defaults of timestep_sampling, discrete_flow_shift and model_prediction_type."""
FLOW_KEYS = ("timestep_sampling", "discrete_flow_shift", "model_prediction_type", "weighting_scheme", "training_shift")


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table holds keys of sd-scripts."""
    entries, _, _ = _entries(content)
    return any(name in keys.KNOWN or name.startswith(tuple(f"{each}." for each in LISTS)) for name in entries)


def read(content: Mapping[str, Any]) -> Recipe:
    """A file for --config_file or --dataset_config, or both in one."""
    entries, repeated, is_data_only = _entries(content)
    book = Ledger(entries, repeated, has_defaults=not is_data_only)
    carry(book)
    return book.recipe(DATA_SOURCE if is_data_only else SOURCE)


def carry(book: Ledger) -> None:
    """Settles every key of a file that goes by sd-scripts' names."""
    adapter = _network(book)
    optimizer = _optimizer(book)
    _learning_rates(book, optimizer)
    _schedule(book, optimizer)
    _run(book)
    _loss_and_noise(book)
    _flow(book)
    _saving(book)
    _data(book)
    if adapter == "oft":
        book.ignore("network_alpha", "OFT has no scale")
    book.ignore(tuple(name for name in keys.CARRIED if not book.has(name)), "not set")
    book.settle_rest(keys.IGNORED, keys.MISSING)


def argument_entries(name: str, path: str, value: Any) -> dict[str, Entry]:
    """`["a=1", "b=2"]` or "a=1 b=2" -> entries name.a, name.b; as one entry where it is something else."""
    words = value.split() if isinstance(value, str) else value
    if is_unset(value) or not isinstance(words, list) or not words:
        return {name: Entry(path, value)}
    if not all(isinstance(word, str) and "=" in word for word in words):
        return {name: Entry(path, value)}
    pairs = [[part.strip() for part in word.split("=", 1)] for word in words]
    return {f"{name}.{key}": Entry(f"{path}.{key}", unquoted(given)) for key, given in pairs}


# ---------------------------------------------------------------- the file's tables


def _entries(content: Mapping[str, Any]) -> tuple[dict[str, Entry], list[tuple[str, Entry]], bool]:
    """The file's keys by name, further values for the same names, and whether it describes pictures alone."""
    tables = content.get("datasets")
    has_datasets = isinstance(tables, list) and all(isinstance(each, dict) for each in tables)
    found: list[tuple[str, Entry]] = []
    if isinstance(tables, list) and has_datasets:
        found += _dataset_entries(tables)
    general = content.get("general")
    if has_datasets and isinstance(general, dict):
        found += [(_renamed(key), Entry(f"general.{key}", value)) for key, value in general.items()]
    is_data_only = has_datasets and not set(content) - {"datasets", "general"}
    rest = {key: value for key, value in content.items() if not (has_datasets and key in ("datasets", "general"))}
    for path, value in _leaves(rest, ""):
        name = path.rsplit(".", 1)[-1]
        made = argument_entries(name, path, value) if name in LISTS else {name: Entry(path, value)}
        found += made.items()
    entries: dict[str, Entry] = {}
    repeated = []
    for name, entry in found:
        if name in entries:
            repeated.append((name, entry))
        else:
            entries[name] = entry
    return entries, repeated, is_data_only


def _renamed(key: str) -> str:
    return RENAMED.get(key, key)


def _dataset_entries(tables: list[dict[str, Any]]) -> Iterator[tuple[str, Entry]]:
    """Of each subset, then of its dataset; regularisation pictures have names of their own."""
    for number, table in enumerate(tables):
        subsets = table.get("subsets")
        is_list = isinstance(subsets, list) and all(isinstance(each, dict) for each in subsets)
        for inner, subset in enumerate(subsets if isinstance(subsets, list) and is_list else []):
            prefix = "regularisation." if subset.get("is_reg") is True else ""
            for key, value in subset.items():
                yield prefix + _renamed(key), Entry(f"datasets[{number}].subsets[{inner}].{key}", value)
        for key, value in table.items():
            if not (key == "subsets" and is_list):
                yield _renamed(key), Entry(f"datasets[{number}].{key}", value)


def _leaves(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key that holds no table; sd-scripts does not mind the tables' names."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---------------------------------------------------------------- the network


def _network(book: Ledger) -> str:
    """Adapter, rank, alpha, layers. Gives the adapter."""
    module = book.text("network_module", "networks.lora")
    if module.startswith("lycoris"):
        adapter = _lycoris(book)
    else:
        adapter = NETWORKS.get(module, "lora")
        if module not in NETWORKS:
            book.replace("network_module", "this network is not known", adapter=adapter)
        elif module in PARTLY:
            book.replace("network_module", PARTLY[module], adapter=adapter)
        _kohya_layers(book, module, adapter)
    if module == "networks.oft" or module == "networks.oft_flux":
        book.miss("network_dim", "the number of OFT's blocks in each layer; rank here is the largest block")
        book.miss("network_alpha", "the limit of OFT's rotation (constrained OFT)")
    elif book.flag("network_args.full_matrix") and adapter == "lokr":
        book.carry("network_args.full_matrix", "LoKr's second factor is whole", rank=WHOLE_FACTOR, alpha=WHOLE_FACTOR)
        book.ignore(("network_dim", "network_alpha"), "without effect where LoKr's factor is whole")
    else:
        rank = book.whole("network_dim", 4)
        book.carry("network_dim", rank=rank)
        if adapter != "oft":
            alpha = book.number("network_alpha", 1.0)
            book.carry("network_alpha", "0 stands for the rank" if alpha == 0 else "", alpha=alpha or float(rank))
    dropout = "network_args.dropout" if book.has("network_args.dropout") else "network_dropout"
    book.carry(dropout, dropout=book.number(dropout))
    for name in ("rank_dropout", "module_dropout"):
        book.carry(f"network_args.{name}", **{name: book.number(f"network_args.{name}")})
    _own_arguments(book)
    return adapter


def _kohya_layers(book: Ledger, module: str, adapter: str) -> None:
    """sd-scripts' networks take the transformer blocks, and with conv_dim the convolutions."""
    conv_rank = book.whole("network_args.conv_dim") if module not in FLOW else 0
    targets = WIDE if conv_rank else NARROW
    if adapter == "oft":
        targets = NARROW if book.flag("network_args.enable_all_linear") else ATTENTION
        targets = WIDE if book.flag("network_args.enable_conv") else targets
        names = ("network_args.enable_all_linear", "network_args.enable_conv")
        book.carry(tuple(name for name in names if name in book) or names[0], targets=targets)
    book.carry("network_module", adapter=adapter, targets=targets)
    _convolutions(book, conv_rank, 1.0)
    if adapter == "lokr":
        book.carry("network_args.factor", lokr_factor=book.whole("network_args.factor", -1))
    if module in FLOW and adapter == "lora":
        book.note("network_module", "the modulation layers of its blocks would have been trained too")


def _lycoris(book: Ledger) -> str:
    """LyCORIS: the algorithm, and its preset of layers. Gives the adapter."""
    algorithm = book.text("network_args.algo", "lora").lower()
    adapter = ALGORITHMS.get(algorithm, "lora")
    if book.flag("network_args.dora_wd") and adapter == "lora":
        adapter = "dora"
        book.carry("network_args.dora_wd", adapter=adapter)
        by_output = "the weight's norms would have been taken for each output; here for each input, as in the paper"
        book.note_absent("network_args.wd_on_output", True, by_output)
        book.miss("network_args.wd_on_output", by_output)
    else:
        book.miss("network_args.dora_wd", f"weight decomposition, which {adapter} has not here")
        book.ignore("network_args.wd_on_output", "for weight decomposition only, which is off")
    preset = book.text("network_args.preset", "full").lower()
    targets, has_text = PRESETS.get(preset, (WIDE, True))
    conv_rank = book.whole("network_args.conv_dim", book.whole("network_dim", 4))
    if targets == WIDE and conv_rank == 0 and book.has("network_args.conv_dim"):
        targets = NARROW
    if algorithm in ALGORITHMS:
        book.carry("network_args.algo", adapter=adapter)
    else:
        book.replace("network_args.algo", "this algorithm is not offered", adapter=adapter)
    if preset in PRESETS:
        book.carry("network_args.preset", "" if has_text else "and no text encoder", targets=targets)
    else:
        is_linear = preset == "full-lin"
        targets = NARROW if is_linear else targets
        lost = "the other linear layers would have been trained too" if is_linear else "this choice is not offered"
        book.replace("network_args.preset", lost, targets=targets)
    if not has_text:
        book.values["text_encoder_learning_rate"] = 0.0
    book.carry("network_module", adapter=adapter, targets=targets)
    _convolutions(book, conv_rank if targets == WIDE else 0, book.number("network_alpha", 1.0))
    if adapter == "lokr":
        book.carry("network_args.factor", lokr_factor=book.whole("network_args.factor", -1))
    book.carry("network_args.rs_lora", rslora=book.flag("network_args.rs_lora"))
    return adapter


def _convolutions(book: Ledger, conv_rank: int, default_alpha: float) -> None:
    names = ("network_args.conv_dim", "network_args.conv_alpha")
    if not conv_rank:
        book.ignore(names, "no convolutions are trained")
        return
    alpha = book.number(names[1], default_alpha) or float(conv_rank)
    book.carry(names[0], conv_rank=conv_rank)
    book.carry(names[1], conv_alpha=alpha)


def _own_arguments(book: Ledger) -> None:
    """What our own files write beside kohya's arguments."""
    for name in ("targets", "layer_rules"):
        if book.has(f"network_args.{name}"):
            book.carry(f"network_args.{name}", **{name: book.text(f"network_args.{name}")})


# ---------------------------------------------------------------- how it learns


def _optimizer(book: Ledger) -> str:
    """The optimizer, which older files choose by switches. Gives ours."""
    key, name = "optimizer_type", book.text("optimizer_type", "AdamW")
    if not book.has(key):
        switches = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
        key, name = next(((switch, each) for switch, each in switches.items() if book.flag(switch)), (key, name))
    if key != "optimizer_type":
        book.ignore("optimizer_type", f"not set: {key} counts")
    ours = carry_optimizer(book, key, name, "optimizer_args.")
    book.miss(("use_8bit_adam", "use_lion_optimizer"), f"{key} names another optimizer")
    return ours


def _learning_rates(book: Ledger, optimizer: str) -> None:
    """Of the diffusion model and of the text encoders: both learn unless the file says otherwise."""
    base = book.number("learning_rate", 2e-6)
    has_own = book.value("unet_lr") is not None
    rate = book.number("unet_lr", base)
    given = _text_rates(book)
    from_base = {} if has_own else {"learning_rate": rate}
    frozen = [name for name in FREEZE if book.flag(name)]
    if frozen or book.values.get("text_encoder_learning_rate") == 0.0:
        if frozen:
            book.carry(tuple(frozen), "the text encoders are not trained", text_encoder_learning_rate=0.0)
        book.ignore("text_encoder_lr", "the text encoders are not trained")
    elif given:
        one_rate = optimizer == PRODIGY and given[0] != 0
        text_rate, note = (rate, "Prodigy finds one rate for all") if one_rate else (given[0], "")
        book.carry("text_encoder_lr", note, text_encoder_learning_rate=text_rate)
        if len(set(given)) > 1:
            book.note("text_encoder_lr", f"{shown(given[1:])}, rates of their own for the further text encoders")
    else:
        from_base["text_encoder_learning_rate"] = rate if optimizer == PRODIGY else base
    if has_own:
        book.carry("unet_lr", learning_rate=rate)
    if from_base:
        book.carry("learning_rate", **from_base)
    book.ignore("learning_rate", "unet_lr counts, and text_encoder_lr where the text encoders are trained")
    book.ignore(("unet_lr", "text_encoder_lr"), "not set: learning_rate counts")
    book.ignore(FREEZE, "off, as here")


def _text_rates(book: Ledger) -> list[float]:
    value = book.value("text_encoder_lr")
    if value is None:
        return []
    if isinstance(value, str):
        value = [part for part in value.strip("[]() ").replace(",", " ").split() if part != "None"]
    numbers = [to_number(each) for each in (value if isinstance(value, list) else [value])]
    if None in numbers:
        book.problem("text_encoder_lr", "it must be a number, or a list of numbers.")
    return [number for number in numbers if number is not None]


def _schedule(book: Ledger, optimizer: str) -> None:
    names = ("lr_scheduler", "lr_warmup_steps", "lr_scheduler_num_cycles", "lr_scheduler_power")
    if optimizer == "schedule_free" and "network_args.targets" not in book:  # which our own files alone have
        book.values |= {"scheduler": "constant", "warmup": book.values.get("warmup", 0.0)}
        book.ignore(names, "Schedule-Free takes no scheduler")
        return
    scheduler = carry_scheduler(book, "lr_scheduler")
    book.carry("lr_warmup_steps", warmup=book.number("lr_warmup_steps"))
    if scheduler == "cosine_with_restarts":
        book.carry("lr_scheduler_num_cycles", scheduler_cycles=book.whole("lr_scheduler_num_cycles", 1))
    if scheduler == "polynomial":
        book.carry("lr_scheduler_power", scheduler_power=book.number("lr_scheduler_power", 1.0))
    book.ignore("lr_scheduler_num_cycles", "for cosine_with_restarts only")
    book.ignore("lr_scheduler_power", "for polynomial only")


def _run(book: Ledger) -> None:
    epochs = book.whole("max_train_epochs")
    if epochs:
        book.carry("max_train_epochs", epochs=epochs)
        book.ignore("max_train_steps", "max_train_epochs counts")
    else:
        book.ignore("max_train_epochs", "not set: max_train_steps counts")
        book.carry("max_train_steps", steps=book.whole("max_train_steps", 1600))
    book.carry("train_batch_size", batch_size=book.whole("train_batch_size", 1))
    accumulation = book.whole("gradient_accumulation_steps", 1)
    book.carry("gradient_accumulation_steps", gradient_accumulation=accumulation)
    book.carry("max_grad_norm", max_grad_norm=book.number("max_grad_norm", 1.0))
    has_seed = book.value("seed") is not None
    book.carry("seed", "" if has_seed else "one would have been drawn", seed=book.whole("seed"))
    checkpointing = book.flag("gradient_checkpointing")
    book.carry("gradient_checkpointing", gradient_checkpointing=checkpointing)
    carry_precision(book, "mixed_precision", "no")


def _loss_and_noise(book: Ledger) -> None:
    book.carry("min_snr_gamma", min_snr_gamma=book.number("min_snr_gamma"))
    book.carry("debiased_estimation_loss", debiased_estimation=book.flag("debiased_estimation_loss"))
    _loss(book)
    book.carry("noise_offset", noise_offset=book.number("noise_offset"))
    book.carry("ip_noise_gamma", ip_noise_gamma=book.number("ip_noise_gamma"))
    for name, of in (
        ("noise_offset_random_strength", "noise_offset"),
        ("ip_noise_gamma_random_strength", "ip_noise_gamma"),
    ):
        if book.number(of):
            book.miss(name, f"{of} would have been drawn anew for each step, from 0 to its value")
        book.ignore(name, f"{of} is off")
    iterations = book.whole("multires_noise_iterations")
    book.carry("multires_noise_iterations", multires_noise_iterations=iterations)
    if iterations:
        discount = book.number("multires_noise_discount", 0.3)
        book.carry("multires_noise_discount", multires_noise_discount=discount)
    book.ignore("multires_noise_discount", "multires_noise_iterations is off")
    book.carry("zero_terminal_snr", zero_terminal_snr=book.flag("zero_terminal_snr"))
    book.carry("min_timestep", min_timestep=book.whole("min_timestep"))
    book.carry("max_timestep", max_timestep=book.whole("max_timestep", 1000))


def _loss(book: Ledger) -> None:
    loss = book.text("loss_type", "l2")
    if loss not in ("l2", "huber", "smooth_l1"):
        book.replace("loss_type", "this loss is not offered", loss="l2")
    else:
        book.carry("loss_type", loss=loss)
    if loss in ("huber", "smooth_l1"):
        schedule = book.text("huber_schedule", "snr")
        book.carry("huber_schedule", huber_schedule=schedule)
        scale = book.number("huber_scale", 1.0)
        if schedule == "constant" and book.has("huber_scale"):
            book.carry(("huber_c", "huber_scale"), huber_c=book.number("huber_c", 0.1) * scale)
        else:
            book.carry("huber_c", huber_c=book.number("huber_c", 0.1))
            if schedule == "snr":
                book.ignore("huber_scale", "without effect where huber_schedule is snr")
            book.miss("huber_scale", "a factor on the point where the loss turns linear", 1)
    book.ignore(("huber_c", "huber_schedule", "huber_scale"), "for huber and smooth_l1 only")


def _flow(book: Ledger) -> None:
    """The density of a flow model's timesteps."""
    module = book.text("network_module")
    if module not in FLOW and not any(book.has(name) for name in FLOW_KEYS):
        book.ignore(("sigmoid_scale", "logit_mean", "logit_std", "mode_scale"), "for flow models only")
        return
    sampling_default, shift_default, prediction_default = FLOW.get(module, ("sigma", 3.0, "sigma_scaled"))
    is_sd3 = module == "networks.lora_sd3"
    shift_key = "training_shift" if is_sd3 else "discrete_flow_shift"
    sampling, shift = book.text("timestep_sampling", sampling_default), book.number(shift_key, shift_default)
    spread = book.number("sigmoid_scale", 1.0)
    if sampling == "sigma":
        _sigma_sampling(book, shift_key, shift)
    elif sampling in ("sigmoid", "shift", "flux_shift"):
        ours = {"sigmoid": "logit_normal", "shift": "shift", "flux_shift": "resolution_shift"}[sampling]
        book.carry("timestep_sampling", timestep_sampling=ours)
        book.carry("sigmoid_scale", logit_std=spread)
        if sampling == "shift":
            book.carry(shift_key, timestep_shift=shift)
    elif sampling == "uniform":
        book.carry("timestep_sampling", timestep_sampling="uniform")
    else:
        book.miss("timestep_sampling", "this density of timesteps is not offered; timestep_sampling stays auto")
    book.ignore((shift_key, "sigmoid_scale"), f"without effect where timestep_sampling is {sampling}")
    book.miss("discrete_flow_shift", "another shift than training_shift, which counts for SD3", 1, 3)
    scheme = book.text("weighting_scheme", "uniform")
    if scheme in ("sigma_sqrt", "cosmap"):
        book.miss("weighting_scheme", "a weight on the loss that goes with the noise")
    book.ignore(
        ("weighting_scheme", "logit_mean", "logit_std", "mode_scale"),
        f"without effect where it is {scheme} or {sampling}",
    )
    prediction = book.text("model_prediction_type", prediction_default)
    if prediction != "raw":
        lost = "the loss would have been weighted by sigma squared (error of the picture, not of the velocity)"
        book.note_absent("model_prediction_type", prediction, lost)
        book.miss("model_prediction_type", lost)
    book.ignore("model_prediction_type", "as here")


def _sigma_sampling(book: Ledger, shift_key: str, shift: float) -> None:
    """A place in the sampler's shifted table, drawn by weighting_scheme; the table begins with pure noise."""
    scheme = book.text("weighting_scheme", "uniform")
    key = "timestep_sampling" if "timestep_sampling" in book else "weighting_scheme"
    if scheme == "logit_normal":
        book.carry(("weighting_scheme", "timestep_sampling"), timestep_sampling="shift")
        book.carry("logit_mean", "counted from noise to picture", logit_mean=-book.number("logit_mean") or 0.0)
        book.carry("logit_std", logit_std=book.number("logit_std", 1.0))
        book.carry(shift_key, timestep_shift=shift)
        return
    if scheme == "mode":
        book.miss(("weighting_scheme", "mode_scale"), "SD3's density with heavy tails; the density is uniform instead")
    book.carry(key, timestep_sampling="uniform")
    book.ignore("timestep_sampling", "with this weighting_scheme uniform")
    lost = "the uniform density would have been shifted towards noise; shift with a wide logit_std comes near"
    book.miss(shift_key, lost, 1)
    if shift != 1.0:
        book.note_absent(shift_key, shift, lost)


def _saving(book: Ledger) -> None:
    carry_save_precision(book, "save_precision", "float")
    book.carry("save_every_n_steps", save_every=book.whole("save_every_n_steps"))
    prompts, flags = sample_prompts(book)
    every = book.whole("sample_every_n_steps")
    if prompts:
        book.carry("sample_prompts", sample_prompts=prompts)
        if "l" in flags:
            book.values["sample_guidance"] = flags.pop("l")
        if "s" in flags:
            book.values["sample_steps"] = int(flags.pop("s"))
        if flags:
            book.note("sample_prompts", "sizes, seeds and negative prompts of single samples")
        book.carry("sample_every_n_steps", sample_every=every)
        if every:
            book.miss("sample_sampler", "the sampler of sample pictures")
        book.ignore("sample_sampler", "no sample pictures")
    else:
        book.miss("sample_prompts", "the prompts are in that file: write them into LoRA Config")
        book.miss("sample_every_n_steps", "sample pictures need prompts, which this file does not hold")
        book.ignore("sample_sampler", "no sample pictures")


def sample_prompts(book: Ledger) -> tuple[tuple[str, ...], dict[str, float]]:
    """Prompts that stand in the file itself, a line each, and the first numbers of the flags behind (--l 7 --s 20)."""
    value = book.value("sample_prompts")
    if not isinstance(value, str) or re.fullmatch(r"\S[^\n]*\.(txt|toml|json)", value.strip(), re.IGNORECASE):
        return (), {}
    lines = [line.strip() for line in value.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    prompts, flags = [], {}
    for line in lines:
        prompt, *given = re.split(r"\s--(?=[a-z])", f" {line}")
        if prompt.strip():
            prompts.append(prompt.strip())
        for flag, _, text in (each.strip().partition(" ") for each in given):
            number = to_number(text)
            flags.setdefault(flag, 0.0 if number is None else number)
    for flag, lowest in (("l", 0.0), ("s", 1.0)):
        if flag in flags and flags[flag] < lowest:
            del flags[flag]
    return tuple(dict.fromkeys(prompts)), flags


# ---------------------------------------------------------------- the pictures


def _data(book: Ledger) -> None:
    side = _resolution(book)
    if book.flag("enable_bucket"):
        book.ignore("enable_bucket", "as here")
        book.carry_data("min_bucket_reso", shortest_side=book.whole("min_bucket_reso", 256))
        book.carry_data("max_bucket_reso", longest_side=book.whole("max_bucket_reso", 1024))
        book.carry_data("bucket_reso_steps", bucket_step=book.whole("bucket_reso_steps", 64))
    elif side:
        book.carry_data("enable_bucket", "every picture is cut square", shortest_side=side, longest_side=side)
        book.ignore(("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"), "enable_bucket is off")
    else:
        book.miss("enable_bucket", "every picture would have been cut to one shape; here they go into buckets")
        book.ignore(
            ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"), "enable_bucket is off"
        )
    for key, field in (("flip_aug", "flip"), ("random_crop", "random_crop"), ("shuffle_caption", "shuffle_tags")):
        book.carry_data(key, **{field: book.flag(key)})
    book.carry_data("keep_tokens", keep_tokens=book.whole("keep_tokens"))
    book.carry_data("caption_dropout_rate", caption_dropout=book.number("caption_dropout_rate"))
    book.carry_data("caption_tag_dropout_rate", tag_dropout=book.number("caption_tag_dropout_rate"))
    for name in ("trigger_word", "caption_prefix", "caption_suffix"):
        if book.has(name):
            book.carry_data(name, **{name: book.text(name)})
    if book.has("dataset_repeats"):
        book.carry_data("dataset_repeats", repeats=book.whole("dataset_repeats", 1))
    book.carry_data("prior_loss_weight", prior_loss_weight=book.number("prior_loss_weight", 1.0))
    masks = tuple(name for name in ("masked_loss", "alpha_mask") if name in book)
    book.carry_data(masks or "masked_loss", masked_loss=any([book.flag(name) for name in masks]))
    extension = book.text("caption_extension").lower()
    if extension and extension not in (".txt", ".caption"):
        book.miss(
            "caption_extension", "Load Dataset reads captions from .txt, .caption and metadata.jsonl: rename them"
        )
    book.ignore("caption_extension", "Load Dataset looks for .txt and .caption")
    for name in book.names("regularisation."):
        plain = name.removeprefix("regularisation.")
        if plain in ("is_reg", "image_dir", *keys.IGNORED):
            book.ignore(name, "choose the folder as regularisation_folder in Load Dataset")
        else:
            book.miss(
                name, "a setting of the regularisation pictures alone; put it into a settings file in their folder"
            )


def _resolution(book: Ledger) -> int | None:
    """Load Dataset's resolution; None where the file names none, or a shape that is not square."""
    if not book.has("resolution"):
        book.ignore("resolution", "not set")
        return None
    sides = to_sides(book.value("resolution"))
    if not sides:
        book.problem("resolution", "it must be a number of pixels, or a width and a height.")
        return None
    if sides[0] != sides[1]:
        book.carry_data("resolution", "of the same area", resolution=math.isqrt(sides[0] * sides[1]))
        return None
    book.carry_data("resolution", resolution=sides[0])
    further = [each for each in book.repeated("resolution") if each.path.startswith("datasets[")]
    squares = {entry.path: to_sides(entry.value) for entry in further}
    further = [each for each in further if (pair := squares[each.path]) and pair[0] == pair[1] != sides[0]]
    if further:
        extra = dict.fromkeys(squares[entry.path][0] for entry in further)
        book.dataset["extra_resolutions"] = ", ".join(map(str, extra))
        book.carry_repeated("resolution", further, "one of Load Dataset's extra_resolutions")
    return sides[0]


def to_sides(value: Any) -> tuple[int, ...]:
    """512, "512", "512,768", [512, 768] or "(512, 768)" -> (width, height); () where it is none of these."""
    parts = value if isinstance(value, list) else str(value).strip("()[] ").replace(",", " ").split()
    numbers = [to_number(part) for part in parts]
    sides = [int(number) for number in numbers if number is not None and 1 <= number <= 2**20]
    if len(sides) != len(parts) or len(sides) not in (1, 2):
        return ()
    return sides[0], sides[-1]
