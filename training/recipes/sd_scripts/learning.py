"""Optimizer, learning rates, schedule and length of the run."""

from ...config.optimizers import OptimizerKind
from ..ledger import Ledger, shown, to_number
from ..techniques import carry_optimizer, carry_precision, carry_scheduler
from .own import is_own

FREEZE = ("network_train_unet_only", "cache_text_encoder_outputs")
"""Either freezes the text encoders: cached outputs cannot be trained."""
FP8 = ("fp8_base", "fp8_base_unet", "fp8_scaled")


def carry_learning(book: Ledger) -> None:
    """Accounts for the keys of optimizer, learning rates, schedule and length."""
    optimizer = _optimizer(book)
    _learning_rates(book, optimizer)
    _schedule(book, optimizer)
    _run(book)


def _optimizer(book: Ledger) -> OptimizerKind:
    """Carries the optimizer over, which older files choose by switches; returns ours."""
    key, name = "optimizer_type", book.text("optimizer_type", "AdamW")
    if not book.has(key):
        switches = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
        key, name = next(((switch, each) for switch, each in switches.items() if book.flag(switch)), (key, name))
    if key != "optimizer_type":
        book.ignore("optimizer_type", f"not set: {key} counts")
    ours = carry_optimizer(book, key, name, "optimizer_args.")
    book.miss(("use_8bit_adam", "use_lion_optimizer"), f"{key} names another optimizer")
    return ours


def _learning_rates(book: Ledger, optimizer: OptimizerKind) -> None:
    """Those of the diffusion model and of the text encoders; both are trained unless the file says otherwise."""
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
        one_rate = optimizer.finds_rate and given[0] != 0
        text_rate, note = (
            (rate, f"{optimizer.name.capitalize()} finds one rate for all") if one_rate else (given[0], "")
        )
        book.carry("text_encoder_lr", note, text_encoder_learning_rate=text_rate)
        if len(set(given)) > 1:
            book.note("text_encoder_lr", f"{shown(given[1:])}, rates of their own for the further text encoders")
    else:
        from_base["text_encoder_learning_rate"] = rate if optimizer.finds_rate else base
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


def _schedule(book: Ledger, optimizer: OptimizerKind) -> None:
    names = ("lr_scheduler", "lr_warmup_steps", "lr_scheduler_num_cycles", "lr_scheduler_power")
    if optimizer.scheduler and not is_own(book):
        book.values |= {"scheduler": optimizer.scheduler, "warmup": book.values.get("warmup", 0.0)}
        book.ignore(names, f"{optimizer.name} goes with the scheduler {optimizer.scheduler}")
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
    is_on = tuple(name for name in FP8 if book.flag(name))
    if is_on:
        book.carry(is_on, "linear layers, with a scale a row", base_precision="fp8")
        book.ignore(FP8, "off")
    else:
        book.carry(FP8, base_precision="as loaded")
