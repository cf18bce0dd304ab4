"""Pictures held out of training, for validation."""

from dataclasses import replace

from ..basics.errors import raise_if_any
from ..basics.randomness import derive_seed
from ..config import LoRAConfig
from .dataset import Dataset

MOST = 64
"""pictures held out, whatever their share: more would cost time and tell little"""


def hold_out(dataset: Dataset, config: LoRAConfig) -> tuple[Dataset, Dataset | None]:
    """(what is trained on, what is held out); a picture's lot depends on the seed and its name alone.

    Regularisation pictures are never held out.

    Raises:
        InputError: there are too few pictures to hold any out.
    """
    if not config.run.validation_share:
        return dataset, None
    own = [index for index, picture in enumerate(dataset.pictures) if not picture.is_regularisation]
    if len(own) < 2:
        problem = f"validation_share is {config.run.validation_share:g}, but there is no picture to spare: set it to 0."
        raise_if_any("LoRA Config", [problem])
    count = min(MOST, len(own) - 1, max(1, round(config.run.validation_share * len(own))))
    lots = sorted(own, key=lambda index: derive_seed(config.run.seed, dataset.pictures[index].name, index, "held out"))
    held = set(lots[:count])
    pictures = dataset.pictures
    return (
        replace(dataset, pictures=tuple(each for index, each in enumerate(pictures) if index not in held)),
        replace(dataset, pictures=tuple(each for index, each in enumerate(pictures) if index in held)),
    )
