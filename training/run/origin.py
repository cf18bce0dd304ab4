"""All that a LoRA follows from: two runs of the same origin give the same LoRA."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..basics.errors import raise_if_any
from ..config import LoRAConfig
from ..data.cache import Cache
from ..data.cache_keys import content_digest
from ..data.dataset import Dataset, unreadable
from ..data.pictures import PictureError

NOT_OF_THE_RESULT = {
    "sample_every", "sample_prompts", "sample_steps", "sample_guidance", "save_every", "cuda_graphs", "fit_memory",
    "checkpoint_minutes", "keep_checkpoints",
}  # fmt: skip
"""Fields of the recipe that do not change what is learned."""


@dataclass(frozen=True)
class Origin:
    """All that the LoRA follows from."""

    recipe: LoRAConfig
    dataset: Mapping[str, Any]
    """plain facts of the data, a digest of it among them"""
    models: Mapping[str, str | None]
    """fingerprints of MODEL, CLIP, VAE and of the LoRA that is continued"""

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        recipe = {key: list(value) if isinstance(value, tuple) else value for key, value in self.recipe.flat().items()}
        return {"recipe": recipe, "dataset": dict(self.dataset), "models": dict(self.models)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two `Origin.plain()`, a line each, of what matters to the LoRA."""
    found = []
    for part in ("recipe", "dataset", "models"):
        old, new = before.get(part), now[part]
        if not isinstance(old, Mapping):
            found.append(f"{part}: not known of the run before")
            continue
        for key in sorted(old.keys() | new.keys()):
            if (part == "recipe" and key in NOT_OF_THE_RESULT) or old.get(key) == new.get(key):
                continue
            if part == "recipe":
                found.append(f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}")
            elif isinstance(new.get(key), str) and len(str(new[key])) > 30:
                found.append(f"{key} is another" if part == "models" else "pictures, captions or masks are others")
            else:
                found.append(f"{part} {key} was {_short(old.get(key))}, is {_short(new.get(key))}")
    return found


def dataset_facts(dataset: Dataset, cache: Cache | None) -> dict[str, Any]:
    """What `Origin.dataset` says: how many pictures, and a digest of all that they and their captions are.

    Raises:
        InputError: with all pictures that cannot be read any more.
    """
    problems = []
    digest = hashlib.sha256(repr(dataset.settings).encode())
    for index, picture in enumerate(dataset.pictures):
        try:
            contents = [content_digest(picture, is_mask, cache) for is_mask in (False, True)]
        except (OSError, PictureError) as error:
            problems.append(unreadable(picture, error))
            continue
        about = [picture.name, dataset.caption(index), picture.repeats, picture.is_regularisation]
        digest.update(json.dumps([*about, repr(picture.folder), *contents]).encode())
    raise_if_any("The dataset", problems)
    prior = sum(picture.is_regularisation for picture in dataset.pictures)
    return {
        "pictures": len(dataset.pictures) - prior, "regularisation_pictures": prior, "digest": digest.hexdigest(),
    }  # fmt: skip


def lora_digest(lora: Mapping[str, torch.Tensor] | None) -> str | None:
    """A digest of a LoRA's tensors; None of none."""
    if lora is None:
        return None
    digest = hashlib.sha256()
    for key in sorted(lora):
        tensor = lora[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
