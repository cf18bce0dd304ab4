"""Captions by an image-to-text model of the transformers library."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import host
from ..basics.errors import InputError, raise_if_any
from ..basics.folders import files_below
from ..basics.memory import is_memory_full
from ..basics.paths import PathRefused, check_parts
from .captioner_files import problems_of_files
from .captions import with_trigger
from .hub import HubError, cached_model, download_model

FOLDER = "captioners"
"""models/captioners has one folder per model"""
KNOWN_IDS = (
    "Salesforce/blip-image-captioning-base",
    "Salesforce/blip-image-captioning-large",
    "Salesforce/blip2-opt-2.7b",
    "microsoft/git-base-coco",
    "florence-community/Florence-2-base",
    "florence-community/Florence-2-large",
)
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
FLORENCE_TASK = "<DETAILED_CAPTION>"


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are generated and composed."""

    prefix: str = ""
    """prepended to each caption"""
    suffix: str = ""
    """appended to each caption"""
    trigger_word: str = ""
    """prepended to captions without it"""
    prompt: str = ""
    """text that the model continues; for Florence-2 a task such as <CAPTION>"""
    max_new_tokens: int = 60
    """length limit of a caption, in the model's tokens"""
    num_beams: int = 3
    """width of the beam search; 1 = greedy"""

    def compose(self, text: str, is_regularisation: bool = False) -> str:
        """The caption of a picture from the model's text; a regularisation picture gets that text alone."""
        if is_regularisation:
            return text
        return with_trigger(f"{self.prefix}{text}{self.suffix}".strip(), self.trigger_word)


def local_models() -> list[str]:
    """Names of the models in the host's captioners folders."""
    return sorted(
        {
            path.parent.relative_to(root).as_posix()
            for root in host.model_folders(FOLDER)
            if root.is_dir()
            for path in chain(files_below(root), root.glob("*/config.json"))  # a model's folder may be a link
            if path.name == "config.json"
        }
    )


def find_model(name: str) -> str:
    """A model as transformers loads it: the path of its folder in models/captioners, or its Hugging Face hub id.

    Raises:
        InputError: the name is neither.
    """
    try:
        parts = check_parts(name)
    except PathRefused as error:
        raise InputError("Caption Images", [f"captioner is {name!r:.200}, {error}"]) from None
    for root in host.model_folders(FOLDER):
        folder = root.joinpath(*parts)
        if (folder / "config.json").is_file():
            return str(folder)
    if not HUB_ID.fullmatch(name) or os.path.exists(name):
        have = ", ".join(local_models()) or "none"
        problem = (
            f"captioner is {name!r}, which is not here; it must be a folder in models/{FOLDER} (there: {have}) "
            "or a model id such as Salesforce/blip-image-captioning-base. Put it into that folder, or choose another. "
            "If all pictures have captions, bypass this node."
        )
        raise_if_any("Caption Images", [problem])
    return name


def caption_images(
    model_name: str,
    images: Sequence[Callable[[], Image.Image]],
    is_regularisation: Sequence[bool],
    settings: CaptionSettings,
    on_caption: Callable[[int, str], None],
) -> list[str]:
    """A caption for each picture.

    Args:
        images: functions that each open one RGB picture.
        is_regularisation: for each picture; regularisation pictures do not show the subject and get no trigger word.
        on_caption: called with (index, caption) after each picture; may raise to interrupt.

    Raises:
        InputError: the model cannot be loaded or is not an image-to-text model.
    """
    source = _folder_of(find_model(model_name))
    raise_if_any("Caption Images", [f"captioner {model_name}: {each}" for each in problems_of_files(Path(source))])
    processor, model = _load(source)
    captions = []
    with torch.inference_mode(), host.loaded_for_inference(model) as device:
        for index, (open_image, is_prior) in enumerate(zip(images, is_regularisation, strict=True)):
            host.raise_if_interrupted()
            image = open_image()
            with _named(f"captioner {model_name} cannot describe a picture"):
                text = _describe(processor, model, image, settings, device)
            captions.append(settings.compose(text, is_prior))
            on_caption(index, captions[-1])
    return captions


def _folder_of(source: str) -> str:
    """The folder of a model from `find_model`; a hub model is downloaded if it is not in the hub's cache.

    Raises:
        InputError: the download failed.
    """
    if os.path.isdir(source):
        return source
    if folder := cached_model(source):
        return str(folder)

    shown = ""

    def on_wait(text: str) -> None:
        nonlocal shown
        host.raise_if_interrupted()
        if text != shown:
            host.show_text(text)
        shown = text

    host.log("downloading the captioner %s", source)
    try:
        return str(download_model(source, on_wait))
    except HubError as error:
        host.show_text("")  # removes the progress of the download
        place = host.model_folders(FOLDER)[0] / source
        problem = (
            f"captioner is {source!r}, which is not on this computer and could not be downloaded: {error}. Connect to "
            f"the network and queue again; or put the model's files (config.json, model.safetensors and the rest) into "
            f"{place}; or choose one that is here: {', '.join(local_models()) or 'there is none yet'}. If all pictures "
            "have captions, bypass this node."
        )
        raise InputError("Caption Images", [problem]) from None


def _load(source: str) -> tuple[Any, Any]:
    host.show_text(f"loading the model {Path(source).name}")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype = torch.float16 if host.inference_device().type == "cuda" else torch.float32
    only_here: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with _named(f"captioner {source} could not be loaded as an image-to-text model with safetensors weights"):
        processor = AutoProcessor.from_pretrained(source, **only_here)
        model = AutoModelForImageTextToText.from_pretrained(source, use_safetensors=True, dtype=dtype, **only_here)
    return processor, model.eval()


@contextmanager
def _named(what: str) -> Iterator[None]:
    """An error of the body becomes an `InputError` that begins with `what`; interrupts and full memory pass.

    A model's files may hold anything, and each class of transformers fails in its own way on what it does not expect.
    """
    try:
        yield
    except host.Interrupted:
        raise
    except Exception as error:
        if is_memory_full(error):
            raise
        reason = " ".join(f"{type(error).__name__} {error}".split())
        problem = f"{what}: {reason:.300}. Choose another, or put a complete model into models/{FOLDER}."
        raise InputError("Caption Images", [problem]) from error


def _unless_interrupted(tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    """A stopping criterion of transformers: raises if the user interrupts, never stops by itself."""
    host.raise_if_interrupted()
    return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)


def _describe(processor: Any, model: Any, image: Image.Image, settings: CaptionSettings, device: torch.device) -> str:
    is_florence = "florence" in type(processor).__name__.lower()
    prompt = settings.prompt or (FLORENCE_TASK if is_florence else "")
    inputs = processor(images=image, text=prompt or None, return_tensors="pt").to(device)
    inputs = {
        key: value.to(model.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    tokens = model.generate(
        **inputs,
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        stopping_criteria=[_unless_interrupted],
    )
    if is_florence:
        text = processor.batch_decode(tokens, skip_special_tokens=False)[0]
        parsed = processor.post_process_generation(text, task=prompt, image_size=image.size)
        return " ".join(str(value) for value in parsed.values()).strip()
    text = processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    begins = prompt.strip().lower()
    return text[len(begins) :].strip() if begins and text.lower().startswith(begins) else text
