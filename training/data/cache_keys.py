"""Keys of the cache: each is a digest of all that its value depends on."""

import hashlib
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from .. import host
from .buckets import Fit
from .cache import Cache
from .dataset import Dataset, Picture


class CacheKeys:
    """The keys of a dataset's latents, masks and text embeddings; None for a value that must not be cached.

    Args:
        cache: None = nothing is cached.
        together: latents are encoded several at once, which changes their last bits: they have keys of their own.
    """

    def __init__(self, dataset: Dataset, clip: Any, vae: Any, cache: Cache | None, together: bool):
        self._dataset = dataset
        self._cache = cache
        self._latent_kind = "latent of several" if together else "latent"
        self._clip_fingerprint = host.model_fingerprint(clip) if cache else None
        self._vae_fingerprint = host.model_fingerprint(vae) if cache else None
        self._contents: dict[tuple[int, bool], str] = {}
        self._readings: dict[tuple[int, bool], str] = {}

    def text(self, text: str, is_prompt: bool) -> str | None:
        """Of a text's embedding; a text that names an embedding file is not cached, as the file may change."""
        if self._clip_fingerprint is None or "embedding:" in text:
            return None
        return _key("text", self._clip_fingerprint, text, is_prompt)

    def latent(self, index: int, fit: Fit, flipped: bool) -> str | None:
        """Of a picture's latent."""
        if self._vae_fingerprint is None:
            return None
        content = self._content(index, is_mask=False) + self._reading(index, is_mask=False)
        return _key(self._latent_kind, self._vae_fingerprint, content, astuple(fit), flipped)

    def mask(self, index: int, fit: Fit, flipped: bool) -> str | None:
        """Of a picture's mask in the size of its latent."""
        if self._vae_fingerprint is None:
            return None
        is_mask_file = self._dataset.pictures[index].mask_path is not None  # else the picture's own transparency
        content = self._content(index, is_mask=True) + self._reading(index, is_mask=True)
        return _key("mask", self._vae_fingerprint, is_mask_file, content, astuple(fit), flipped)

    def is_unchanged(self, index: int, is_mask: bool) -> bool:
        """False if the file of a picture or mask changed since its key was first asked for."""
        if self._cache is None:
            return True
        now = content_digest(self._dataset.pictures[index], is_mask, self._cache)
        return self._content(index, is_mask) == now

    def _reading(self, index: int, is_mask: bool) -> str:
        """How a file's colours are read; "" = as earlier versions did, whose cached values still count."""
        place = (index, is_mask)
        if place not in self._readings:
            path = _file(self._dataset.pictures[index], is_mask)
            self._readings[place] = self._cache.picture_facts(path).reading if self._cache and path else ""
        return self._readings[place]

    def _content(self, index: int, is_mask: bool) -> str:
        place = (index, is_mask)
        if place not in self._contents:
            self._contents[place] = content_digest(self._dataset.pictures[index], is_mask, self._cache)
        return self._contents[place]


def content_digest(picture: Picture, is_mask: bool, cache: Cache | None) -> str:
    """SHA-256 of a picture's or its mask's content, "" where it has none; the cache remembers those of files."""
    path = _file(picture, is_mask)
    pixels = picture.mask_pixels if is_mask else picture.pixels
    if path is not None:
        return cache.picture_facts(path).digest if cache else hashlib.sha256(path.read_bytes()).hexdigest()
    return "" if pixels is None else _pixels_digest(pixels)


def _file(picture: Picture, is_mask: bool) -> Path | None:
    return (picture.mask_path or picture.path) if is_mask else picture.path


def _key(kind: str, *parts: Any) -> str:
    return f"{kind} 1 {hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def _pixels_digest(pixels: torch.Tensor) -> str:
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()
