"""The network_* arguments: adapter, rank, alpha and layers."""

from ...adapters import KINDS
from ..ledger import Ledger
from ..techniques import WHOLE_FACTOR, adapter_named
from .objective import FLOW
from .own import is_own

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
"""LyCORIS' presets of layers -> (our targets, whether the text encoders are trained)"""
WIDE, NARROW, ATTENTION = "all linear and convolution", "attention and feed-forward", "attention"
BLOCKS = "attention, feed-forward and convolutions"


def carry_network(book: Ledger) -> None:
    """Accounts for the keys of the network."""
    module = book.text("network_module", "networks.lora")
    if module.startswith("lycoris"):
        adapter = _lycoris(book)
    else:
        known = adapter_named(module, "kohya")
        adapter = known or "lora"
        if not known:
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
        if KINDS[adapter].has_scale or is_own(book):
            alpha = book.number("network_alpha", 1.0)
            book.carry("network_alpha", "0 stands for the rank" if alpha == 0 else "", alpha=alpha or float(rank))
    dropout = "network_args.dropout" if book.has("network_args.dropout") else "network_dropout"
    book.carry(dropout, dropout=book.number(dropout))
    for name in ("rank_dropout", "module_dropout"):
        book.carry(f"network_args.{name}", **{name: book.number(f"network_args.{name}")})
    if not KINDS[adapter].has_scale:
        book.ignore("network_alpha", f"{KINDS[adapter].names.title} has no scale")


def _kohya_layers(book: Ledger, module: str, adapter: str) -> None:
    """The layers of sd-scripts' own networks: those of transformer blocks and, with conv_dim, convolutions."""
    conv_rank = book.whole("network_args.conv_dim") if module not in FLOW else 0
    targets = BLOCKS if conv_rank else NARROW
    if adapter == "oft":
        targets = NARROW if book.flag("network_args.enable_all_linear") else ATTENTION
        targets = BLOCKS if book.flag("network_args.enable_conv") else targets
        names = ("network_args.enable_all_linear", "network_args.enable_conv")
        book.carry(tuple(name for name in names if name in book) or names[0], targets=targets)
    _carry_module(book, adapter, targets)
    _convolutions(book, conv_rank, 1.0)
    if adapter == "lokr":
        book.carry("network_args.factor", lokr_factor=book.whole("network_args.factor", -1))
    if module in FLOW and adapter == "lora" and not is_own(book):
        book.note("network_module", "the modulation layers of its blocks would have been trained too")


def _lycoris(book: Ledger) -> str:
    """Carries LyCORIS' algorithm and preset of layers over; returns our adapter."""
    algorithm = book.text("network_args.algo", "lora").lower()
    known = adapter_named(algorithm, "lycoris")
    adapter = known or "lora"
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
    if known:
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
    _carry_module(book, adapter, targets)
    _convolutions(book, conv_rank if targets == WIDE else 0, book.number("network_alpha", 1.0))
    if adapter == "lokr":
        book.carry("network_args.factor", lokr_factor=book.whole("network_args.factor", -1))
    book.carry("network_args.rs_lora", rslora=book.flag("network_args.rs_lora"))
    return adapter


def _carry_module(book: Ledger, adapter: str, targets: str) -> None:
    if is_own(book):
        book.carry("network_module", adapter=adapter)
    else:
        book.carry("network_module", adapter=adapter, targets=targets)


def _convolutions(book: Ledger, conv_rank: int, default_alpha: float) -> None:
    names = ("network_args.conv_dim", "network_args.conv_alpha")
    if not conv_rank:
        book.ignore(names, "no convolutions are trained")
        return
    alpha = book.number(names[1], default_alpha) or float(conv_rank)
    book.carry(names[0], conv_rank=conv_rank)
    book.carry(names[1], conv_alpha=alpha)
