"""The origin of a LoRA: recipe, data and models. Two runs of the same origin give the same LoRA."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from .. import host
from ..basics.errors import raise_if_any
from ..config import LoRAConfig
from ..data.cache import Cache
from ..data.cache_keys import content_digest
from ..data.dataset import Dataset, unreadable
from ..data.pictures import PictureError
from .prepare import Models

NOT_OF_THE_RESULT = {
    "sample_every", "sample_prompts", "sample_steps", "sample_guidance", "save_every", "cuda_graphs", "fit_memory",
    "checkpoint_minutes", "keep_checkpoints",
}  # fmt: skip
"""Fields of the recipe that do not change the LoRA."""
CLIP, CLIP_IN_USE = "clip", "clip in use"
"""Facts about models: the CLIP's identity, and that without the weights that MODEL does not use."""
TOLD_LATER = {"sampling", CLIP_IN_USE}
"""Facts about models that runs of version 0.1 do not tell."""
NO_GRAPH: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Origin:
    """Recipe, data and models of a run."""

    recipe: LoRAConfig
    dataset: Mapping[str, Any]
    """counts of pictures, and a digest of pictures and captions"""
    models: Mapping[str, str | None]
    """identities of MODEL, its sampling, CLIP and VAE; a digest of the LoRA that is continued, None if there is none"""

    def plain(self) -> dict[str, Any]:
        """As plain JSON."""
        recipe = {key: list(value) if isinstance(value, tuple) else value for key, value in self.recipe.flat().items()}
        return {"recipe": recipe, "dataset": dict(self.dataset), "models": dict(self.models)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two `Origin.plain()` that change the LoRA, one sentence each."""
    found = []
    for part in ("recipe", "dataset", "models"):
        old, new = before.get(part), now[part]
        if not isinstance(old, Mapping):
            found.append(f"{part}: not known of the run before")
            continue
        for key in sorted(old.keys() | new.keys()):
            if (part == "recipe" and key in NOT_OF_THE_RESULT) or old.get(key) == new.get(key):
                continue
            if part == "models" and (key in TOLD_LATER and key not in old or key == CLIP_IN_USE):
                continue
            if part == "models" and key == CLIP and old.get(CLIP_IN_USE) == new.get(CLIP_IN_USE) is not None:
                continue
            if part == "models" and key != "start" and old.get(key) is None:
                found.append(f"{key}: not known of the run before")
            elif part == "recipe":
                found.append(f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}")
            elif isinstance(new.get(key), str) and len(str(new[key])) > 30:
                found.append(f"{key} is another" if part == "models" else "pictures, captions or masks are others")
            else:
                found.append(f"{part} {key} was {_short(old.get(key))}, is {_short(new.get(key))}")
    return found


def origin_of(
    models: Models,
    dataset: Dataset,
    config: LoRAConfig,
    start: Mapping[str, torch.Tensor] | None,
    cache: Cache | None,
    *,
    graph: Mapping[str, str] = NO_GRAPH,
) -> Origin:
    """The origin of a run.

    Args:
        models: with the entries of `start` applied that are not trained.
        dataset, config: as they came into the node.
        start: the LoRA that is continued.
        graph: digests of the graphs that made model, clip and vae, as far as they are known.

    Raises:
        InputError: pictures cannot be read.
    """
    inputs = {"model": models.model, "clip": models.clip, "vae": models.vae}
    identities = {name: host.model_identity(each, graph.get(name, "")) for name, each in inputs.items()}
    unused = None if host.takes_pooled_text(models.model) else host.POOLING
    in_use = host.model_identity(models.clip, graph.get(CLIP, ""), but=unused) if unused else identities[CLIP]
    facts = {
        **identities,
        CLIP_IN_USE: in_use,
        "sampling": host.sampling_identity(models.model, graph.get("model", "")),
        "start": lora_digest(start),
    }
    return Origin(config, dataset_facts(dataset, cache), facts)


def dataset_facts(dataset: Dataset, cache: Cache | None) -> dict[str, Any]:
    """`Origin.dataset`: counts of pictures, and a digest of pictures, masks, captions and settings.

    Raises:
        InputError: it lists all pictures that cannot be read.
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
        "pictures": len(dataset.pictures) - prior,
        "regularisation_pictures": prior,
        "digest": digest.hexdigest(),
    }


def lora_digest(lora: Mapping[str, torch.Tensor] | None) -> str | None:
    """A digest of a LoRA's tensors; None if there is no LoRA."""
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
