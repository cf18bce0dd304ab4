"""Pictures held out of training, for validation."""

from dataclasses import replace

from ..basics.errors import raise_if_any
from ..basics.randomness import derive_seed
from .dataset import Dataset

LARGEST_HOLD_OUT = 64
"""most pictures held out: more would take time and add little accuracy"""


def hold_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """(dataset to train on, dataset held out or None); the choice is a function of the seed, names and indices.

    Regularisation pictures are never held out.

    Args:
        share: of the pictures to hold out, the recipe's validation_share; 0 = none.

    Raises:
        InputError: there are too few pictures to hold any out.
    """
    if not share:
        return dataset, None
    eligible = [index for index, picture in enumerate(dataset.pictures) if not picture.is_regularisation]
    if len(eligible) < 2:
        problem = f"validation_share is {share:g}, but there is no picture to spare: set it to 0."
        raise_if_any("LoRA Config", [problem])
    count = min(LARGEST_HOLD_OUT, len(eligible) - 1, max(1, round(share * len(eligible))))
    shuffled = sorted(eligible, key=lambda index: derive_seed(seed, dataset.pictures[index].name, index, "held out"))
    held = set(shuffled[:count])
    pictures = dataset.pictures
    return (
        replace(dataset, pictures=tuple(each for index, each in enumerate(pictures) if index not in held)),
        replace(dataset, pictures=tuple(each for index, each in enumerate(pictures) if index in held)),
    )
