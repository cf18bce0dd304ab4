"""The optimizers, one row each: all that the trainer knows of one but its arithmetic, as plain data.

Another optimizer is another row: config, nodes, training, advice, metadata and imported recipes read the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class LearningRates:
    """The peak learning rates with which an optimizer usually learns."""

    lowest: float
    highest: float
    usual: str
    """one to start from, as text"""
    above: str = "pictures tend to break up"
    """what happens above the highest"""


@dataclass(frozen=True)
class ForeignName:
    """An optimizer's name in another trainer's recipe, in relation to ours."""

    argument: str = ""
    """the `name=value` that makes ours the same"""
    difference: str = ""
    """what ours lacks of it; empty: it is the same"""
    weight_decay: float | None = None
    """its default, where it is another than that of the row"""


@dataclass(frozen=True)
class OptimizerKind:
    """One optimizer: where it comes from, how it is used, and its names elsewhere."""

    name: str
    """in recipes and nodes"""
    module: str
    """the Python module of its class; the first part names the package to install"""
    class_name: str
    paper: str
    rates: LearningRates
    name_in_files: str
    """in ss_optimizer, the metadata of a LoRA file"""
    arguments: tuple[str, ...] = ()
    """arguments of its class that are taken over from another trainer's recipe"""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """arguments that differ from the defaults of its class"""
    argument_names: Mapping[str, str] = field(default_factory=dict)
    """other names that recipes use for its arguments -> the names of its class"""
    weight_decay: float = 0.0
    """default of its class, which a recipe means that sets none"""
    foreign_names: Mapping[str, ForeignName] = field(default_factory=dict)
    """names in other trainers' recipes, in lower case without - and _; * stands for any text"""
    scheduler: str = ""
    """the only learning-rate scheduler that suits it; empty: any"""
    finds_rate: bool = False
    """It estimates one learning rate for all layers; the config's learning_rate multiplies the estimate."""
    averages_weights: bool = False
    """It averages the weights itself, which leaves nothing to an EMA."""
    takes_flat_parameters: bool = False
    """It moves every number by itself, or by sums over all of them, so one flat tensor a learning rate serves it.
    Checkpoints have the parameters in this form."""
    memory: int = 2
    """Tensors as long as all parameters that its first step takes, what it keeps and what it needs for a moment."""
    module_on_device: str = ""
    """Module of `learning` whose class of the same name makes the same steps without waiting for the device."""
    takes_fused: bool = False
    """Its class has the argument `fused`: the whole step as one kernel."""


SAME = ForeignName()
NOT_PAGED = ForeignName(
    difference="the same, but its state is not moved out of the GPU's memory when that is full",
)
STABLE = ForeignName(difference="AdamW, without the bound on each tensor's step of StableAdamW")
OTHER_ADAMW = ForeignName(difference="AdamW; the other's own additions are not offered")
NO_ADEMAMIX = ForeignName(difference="AdamW, without AdEMAMix' second, slower average")
IN_32_BIT = ForeignName(difference="the same in 32 bit")
IN_32_BIT_LION = ("lion8bit", "pagedlion8bit", "bnblion8bit", "bnblion8bitpaged")

ADAMW = OptimizerKind(
    name="adamw",
    module="torch.optim",
    class_name="AdamW",
    paper="Loshchilov and Hutter, arXiv:1711.05101",
    rates=LearningRates(1e-6, 3e-3, "1e-4"),
    name_in_files="AdamW",
    arguments=("betas", "eps", "amsgrad"),
    weight_decay=0.01,
    foreign_names={
        "adamw": SAME,
        "adam": ForeignName(weight_decay=0.0),
        "pagedadamw": NOT_PAGED,
        "pagedadamw32bit": NOT_PAGED,
        "ademamix8bit": NO_ADEMAMIX,
        "pagedademamix8bit": NO_ADEMAMIX,
        "adamwbf16": IN_32_BIT,
        "torchadamw": SAME,
        "bnbadamw": SAME,
        "bnbadamwpaged": NOT_PAGED,
        "torchadam": ForeignName(weight_decay=0.0),
        "bnbadam": ForeignName(weight_decay=0.0),
        "optimiadamw": ForeignName(argument="betas=0.9,0.99", weight_decay=0.0),
        "adamwoptimi": ForeignName(argument="betas=0.9,0.99", weight_decay=0.0),
        "genericoptim": OTHER_ADAMW,
        "adamwadv": OTHER_ADAMW,
        "stableadamw": STABLE,
        "optimistableadamw": STABLE,
    },
    takes_flat_parameters=True,
    takes_fused=True,
)
ADAMW_8BIT = OptimizerKind(
    name="adamw8bit",
    module="bitsandbytes.optim",
    class_name="AdamW8bit",
    paper="Dettmers et al., arXiv:2110.02861",
    rates=LearningRates(1e-6, 3e-3, "1e-4"),
    name_in_files="AdamW8bit",
    arguments=("betas", "eps", "amsgrad", "min_8bit_size", "percentile_clipping", "block_wise", "is_paged"),
    weight_decay=0.01,
    foreign_names={
        "adamw8bit": SAME,
        "adamw8": SAME,
        "pagedadamw8bit": ForeignName(argument="is_paged=True"),
        "adam8bit": ForeignName(weight_decay=0.0),
        "bnbadamw8bit": SAME,
        "aoadamw8bit": SAME,
        "bnbadamw8bitpaged": ForeignName(argument="is_paged=True"),
        "bnbadam8bit": ForeignName(weight_decay=0.0),
        "adamw8bitkahan": ForeignName(difference="the same, without Kahan's sums, which 32-bit adapters do not need"),
    },
)
ADAFACTOR = OptimizerKind(
    name="adafactor",
    module="transformers.optimization",
    class_name="Adafactor",
    paper="Shazeer and Stern, arXiv:1804.04235",
    rates=LearningRates(1e-6, 3e-3, "1e-4"),
    name_in_files="AdaFactor",
    arguments=("eps", "clip_threshold", "decay_rate", "beta1", "scale_parameter", "relative_step", "warmup_init"),
    # By default it scales the rate by the size of the weights, and those of an adapter begin at zero.
    defaults={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    foreign_names={"adafactor": SAME, "torchadafactor": SAME},
    memory=4,
    module_on_device="adafactor",
)
LION = OptimizerKind(
    name="lion",
    module="pytorch_optimizer",
    class_name="Lion",
    paper="Chen et al., arXiv:2302.06675",
    rates=LearningRates(1e-7, 8e-5, "2e-5", above="lion moves every number by the whole rate"),
    name_in_files="Lion",
    arguments=("betas",),
    foreign_names={"lion": SAME, **dict.fromkeys(IN_32_BIT_LION, IN_32_BIT), "bnblion": SAME, "optimilion": SAME},
    takes_flat_parameters=True,
    memory=4,
)
PRODIGY = OptimizerKind(
    name="prodigy",
    module="pytorch_optimizer",
    class_name="Prodigy",
    paper="Mishchenko and Defazio, arXiv:2306.06101",
    rates=LearningRates(0.3, 3.0, "1"),
    name_in_files="Prodigy",
    arguments=(
        *("betas", "beta3", "eps", "d0", "d_coef", "growth_rate", "safeguard_warmup"),
        *("decouple", "weight_decouple", "use_bias_correction", "bias_correction"),
    ),
    argument_names={"decouple": "weight_decouple", "use_bias_correction": "bias_correction"},
    foreign_names={
        "prodigy": SAME,
        "prodigy8bit": IN_32_BIT,
        "prodigyplus*": ForeignName(difference="Prodigy, without the averaging of Schedule-Free and further additions"),
        "prodigyadv": ForeignName(difference="Prodigy; the other's own additions are not offered"),
        "dadapt*": ForeignName(
            difference="D-Adaptation is not offered; its successor takes the same learning rate of 1"
        ),
    },
    finds_rate=True,
    takes_flat_parameters=True,
    memory=8,
    module_on_device="prodigy",
)
SCHEDULE_FREE = OptimizerKind(
    name="schedule_free",
    module="pytorch_optimizer",
    class_name="ScheduleFreeAdamW",
    paper="Defazio et al., arXiv:2405.15682",
    rates=LearningRates(3e-6, 1e-2, "3e-4"),
    name_in_files="AdamWScheduleFree",
    arguments=("betas", "eps", "r", "weight_lr_power"),
    foreign_names={
        "adamwschedulefree": SAME,
        "schedulefreeadamw": SAME,
        "adamwschedulefree+*": SAME,
        "radamschedulefree": ForeignName(difference="Schedule-Free without RAdam's rectified start"),
        "schedulefreesgd": ForeignName(difference="Schedule-Free on AdamW instead of SGD: another learning rate fits"),
        "sgdschedulefree": ForeignName(difference="Schedule-Free on AdamW instead of SGD: another learning rate fits"),
    },
    scheduler="constant",
    averages_weights=True,
    takes_flat_parameters=True,
    memory=6,
)

OPTIMIZERS: dict[str, OptimizerKind] = {
    kind.name: kind for kind in (ADAMW, ADAMW_8BIT, ADAFACTOR, LION, PRODIGY, SCHEDULE_FREE)
}
"""By name. The config accepts every row that is in it when it is asked."""


def optimizer_by_foreign_name(name: str) -> tuple[OptimizerKind, ForeignName] | None:
    """The optimizer that another trainer's recipe names, and how the two differ; None where no row knows the name.

    Args:
        name: in any case, with - and _ or without, with or without the module before it.
    """
    plain = name.split(".")[-1].lower().replace("_", "").replace("-", "")
    for kind in OPTIMIZERS.values():
        for pattern, foreign in kind.foreign_names.items():
            if fnmatchcase(plain, pattern):
                return kind, foreign
    return None
