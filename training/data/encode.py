"""Latents, masks and text embeddings of a run, each computed once and read when a batch wants it."""

import hashlib
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple
from typing import Any

import torch

from .. import host
from ..basics.errors import InputError, raise_if_any
from ..learning.prefetch import NotHere
from .buckets import Fit
from .cache import Cache
from .dataset import Dataset, Picture, Sample, size_conditioning
from .pictures import PictureError
from .slabs import Slabs

MEMORY = 512 * 2**20
"""bytes of what lies in a cache that are held in memory too"""
TOGETHER_PIXELS = 2**20
"""that go through the VAE at once, at most (but one picture always does)"""
SPREAD_LATENTS = 64
"""latents that `latent_spread` looks at"""

View = tuple[int, Fit, bool]
"""(picture index, fit, flipped)"""


class Encoded:
    """What the model takes, on the CPU.

    With a cache all lies there, and only what was used last in memory; without one all is in memory. What has gone
    from the cache since (trimmed by another process, damaged) is computed again when it is asked for, by the thread
    that made this: the host's models are no other's to load. Another gets `NotHere`.
    """

    def __init__(
        self, dataset: Dataset, model: Any, clip: Any, vae: Any, cache: Cache | None, captions: bool, together: bool
    ):
        self.views: list[View] = []
        """every picture in every form that the run shows it in"""
        self.prompts: dict[str, Any] = {}
        """prompt of a sample picture -> CONDITIONING"""
        self._dataset = dataset
        self._model = model
        self._clip = clip
        self._vae = vae
        self._with_captions = captions
        self._shelf = _Shelf(cache, MEMORY)
        self._pixels = TOGETHER_PIXELS if together else 1
        self._names = _Names(dataset, clip, vae, cache, together) if cache else None

    def latent(self, sample: Sample) -> torch.Tensor:
        """A sample's latent in model space: (C, ...) float32."""
        latent = self._latent((sample.picture, sample.fit, sample.flipped))
        return host.to_model_space(self._model, latent[None])[0]

    def mask(self, sample: Sample) -> torch.Tensor | None:
        """The weight of each place of a sample's latent: (h, w) float32 in [0, 1]; None = 1 everywhere.

        1 where the mask is white, unmasked_weight where it is black, and between them in between.
        """
        if not self._dataset.is_masked(sample.picture):
            return None
        lowest = self._dataset.settings_of(sample.picture).unmasked_weight
        return lowest + (1.0 - lowest) * self._mask((sample.picture, sample.fit, sample.flipped))

    def conditioning(self, dataset: Dataset, sample: Sample, wanted: bool) -> Any:
        """A sample's CONDITIONING, with its size and crop where the model wants them."""
        if not self._with_captions:
            raise ValueError("captions were not encoded: the text encoders are trained")
        return sized(self._text(sample.caption, is_prompt=False), dataset, sample, wanted)

    def prepare(
        self, samples: Iterable[Sample], prompts: Iterable[str], on_progress: Callable[[str, int, int], None]
    ) -> None:
        """Computes what is not known yet of all that the samples and prompts need."""
        samples = list(samples)
        self.views = sorted(
            {(sample.picture, sample.fit, sample.flipped) for sample in samples},
            key=lambda view: (view[0], astuple(view[1]), view[2]),
        )
        captions = sorted({sample.caption for sample in samples}) if self._with_captions else []
        missing = self._shelf.missing({text: self._names and self._names.text(text, False) for text in captions})
        for done, caption in enumerate(missing):
            on_progress("captions", done, len(missing))
            self._text(caption, is_prompt=False)
        self.prompts = {prompt: self._text(prompt, is_prompt=True) for prompt in prompts}
        missing = self._shelf.missing({view: self._names and self._names.latent(*view) for view in self.views})
        done = 0
        for members, pictures in self._read_ahead(_by_size(missing, self._pixels)):
            on_progress("pictures", done, len(missing))
            latents = self._encoded(members, pictures)
            for view in members:
                self._latent(view, lambda latents=latents, view=view: latents[view])
            done += len(members)
        masked = [view for view in self.views if self._dataset.is_masked(view[0])]
        missing = self._shelf.missing({view: self._names and self._names.mask(*view) for view in masked})
        for done, view in enumerate(missing):
            on_progress("masks", done, len(missing))
            self._mask(view)

    def prompt(self, text: str) -> Any:
        """A sample picture's CONDITIONING, encoded now if it was not before."""
        if text not in self.prompts:
            with host.sampling_mode():
                self.prompts[text] = self._text(text, is_prompt=True)
        return self.prompts[text]

    def _text(self, text: str, is_prompt: bool) -> Any:
        return self._shelf.fetch(
            ("text", text, is_prompt),
            self._names and self._names.text(text, is_prompt),
            lambda: host.encode_text(self._clip, text, is_prompt=is_prompt),
        )

    def _latent(self, view: View, make: Callable[[], torch.Tensor] | None = None) -> torch.Tensor:
        """As the VAE gives it."""
        name = self._names and self._names.latent(*view)
        alone = (view,), (self._loading(view),)
        return self._shelf.fetch(("latent", view), name, make or (lambda: self._encoded(*alone)[view]))

    def _encoded(
        self, members: Sequence[View], pictures: Sequence[Callable[[], torch.Tensor]]
    ) -> dict[View, torch.Tensor]:
        """The latents of views of one size, from what gives their pictures."""
        pixels = [self._read(index, False, picture) for (index, _, _), picture in zip(members, pictures, strict=True)]
        turned = [each.flip(1) if flipped else each for each, (_, _, flipped) in zip(pixels, members, strict=True)]
        latents = host.encode_pixels(self._vae, torch.stack(turned)).float()
        for latent, (index, _, _) in zip(latents, members, strict=True):
            if not latent.isfinite().all():
                problem = (
                    f"it encodes {self._dataset.pictures[index].name} to values that are no numbers, as half precision "
                    "may: use another VAE, or start ComfyUI with --fp32-vae."
                )
                raise_if_any("VAE", [problem])
        return {view: latent.clone() for view, latent in zip(members, latents, strict=True)}

    def _loading(self, view: View) -> Callable[[], torch.Tensor]:
        index, fit, _ = view
        return lambda: self._dataset.pictures[index].load(fit)

    def _read_ahead(
        self, chunks: Iterable[tuple[View, ...]]
    ) -> Iterator[tuple[tuple[View, ...], list[Callable[[], torch.Tensor]]]]:
        """The chunks with what gives their pictures; a thread reads those of the next meanwhile."""
        waiting: deque[tuple[tuple[View, ...], list[Future[torch.Tensor]]]] = deque()
        reader = ThreadPoolExecutor(1, "lora-kiln-pictures")
        try:
            for members in chunks:
                waiting.append((members, [reader.submit(self._loading(view)) for view in members]))
                if len(waiting) > 1:
                    yield _results(*waiting.popleft())
            while waiting:
                yield _results(*waiting.popleft())
        finally:
            reader.shutdown(cancel_futures=True)

    def _read(self, index: int, is_mask: bool, load: Callable[[], Any]) -> Any:
        """What a picture's file holds, if it is still the one whose name in the cache the value will have.

        Raises:
            InputError: it was taken away or replaced.
        """
        picture = self._dataset.pictures[index]
        try:
            found = load()
            is_same = self._names is None or self._names.is_same(index, is_mask)
        except (OSError, PictureError) as error:
            raise InputError("The dataset", [unreadable(picture, error)]) from error
        if not is_same:
            raise InputError("The dataset", [f"{picture.name} was replaced while the run was going on: queue again."])
        return found

    def _mask(self, view: View) -> torch.Tensor:
        """In the latent's size, white = 1."""
        name = self._names and self._names.mask(*view)
        return self._shelf.fetch(("mask", view), name, lambda: self._loaded_mask(view))

    def _loaded_mask(self, view: View) -> torch.Tensor:
        index, fit, flipped = view
        mask = self._read(index, True, lambda: self._dataset.pictures[index].load_mask(fit))
        assert mask is not None
        mask = mask.flip(1) if flipped else mask
        size = self._latent(view).shape[-2:]
        return torch.nn.functional.interpolate(mask[None, None], size, mode="area")[0, 0]


def encode_samples(
    dataset: Dataset,
    samples: Iterable[Sample],
    prompts: Iterable[str],
    model: Any,
    clip: Any,
    vae: Any,
    on_progress: Callable[[str, int, int], None],
    cache: Cache | None = None,
    captions: bool = True,
    together: bool = False,
) -> Encoded:
    """Encodes all pictures and texts that a run needs and the cache does not know.

    Args:
        model: the MODEL, for its latent space.
        prompts: of sample pictures.
        on_progress: called with (what, done, of how many) for what must be computed; may raise to interrupt.
        captions: whether the samples' captions are needed too.
        together: pictures of one size go through the VAE at once: faster on a GPU. A latent's last bits depend then on
            what goes with it, so that such latents are for runs that need not be exact alone.

    Raises:
        InputError: the VAE gives values that are no numbers.
    """
    encoded = Encoded(dataset, model, clip, vae, cache, captions, together)
    encoded.prepare(samples, prompts, on_progress)
    if cache is not None:
        cache.trim()
    return encoded


def sized(conditioning: Any, dataset: Dataset, sample: Sample, wanted: bool = True) -> Any:
    """A CONDITIONING with a sample's size and crop in it, where the model wants them."""
    if not wanted:
        return conditioning
    size = size_conditioning(dataset.pictures[sample.picture], sample.fit, sample.flipped)
    return [[embedding, {**options, **size}] for embedding, options in conditioning]


def latent_spread(encoded: Encoded) -> float:
    """Standard deviation over some of the latents; about 1 where VAE and model belong together."""
    step = -(-len(encoded.views) // SPREAD_LATENTS)
    latents = [encoded.latent(Sample(*view, "")) for view in encoded.views[:: max(1, step)]]
    return float(torch.cat([latent.flatten() for latent in latents]).std())


class _Names:
    """What things are called in the cache: a name says all that their values follow from. None = not to be kept."""

    def __init__(self, dataset: Dataset, clip: Any, vae: Any, cache: Cache, together: bool):
        self._latent_kind = "latent of several" if together else "latent"
        self._dataset = dataset
        self._cache = cache
        self._clip_print = host.model_fingerprint(clip)
        self._vae_print = host.model_fingerprint(vae)
        self._contents: dict[tuple[int, bool], str] = {}

    def text(self, text: str, is_prompt: bool) -> str | None:
        """Of a text's embedding."""
        if self._clip_print is None or "embedding:" in text:  # the latter names a file, which may change
            return None
        return _name("text", self._clip_print, text, is_prompt)

    def latent(self, index: int, fit: Fit, flipped: bool) -> str | None:
        """Of a picture's latent."""
        if self._vae_print is None:
            return None
        return _name(self._latent_kind, self._vae_print, self._content(index, is_mask=False), astuple(fit), flipped)

    def mask(self, index: int, fit: Fit, flipped: bool) -> str | None:
        """Of a picture's mask in the size of its latent."""
        if self._vae_print is None:
            return None
        is_grey = self._dataset.pictures[index].mask_path is not None  # the same file may be a mask or have one
        return _name("mask", self._vae_print, is_grey, self._content(index, is_mask=True), astuple(fit), flipped)

    def is_same(self, index: int, is_mask: bool) -> bool:
        """Whether a picture or its mask is what it was when it was first looked at."""
        now = content_digest(self._dataset.pictures[index], is_mask, self._cache)
        return self._content(index, is_mask) == now

    def _content(self, index: int, is_mask: bool) -> str:
        """A digest of a picture or of its mask."""
        key = (index, is_mask)
        if key not in self._contents:
            self._contents[key] = content_digest(self._dataset.pictures[index], is_mask, self._cache)
        return self._contents[key]


def unreadable(picture: Picture, error: Exception) -> str:
    """What to do about a picture that is not there any more."""
    return f"{picture.name} cannot be read any more ({error}): put it back, or queue again without it."


def content_digest(picture: Picture, is_mask: bool, cache: Cache | None) -> str:
    """A digest of a picture or of its mask; empty where it has none. The cache knows those of files it has seen."""
    path = (picture.mask_path or picture.path) if is_mask else picture.path
    pixels = picture.mask_pixels if is_mask else picture.pixels
    if path is not None:
        return cache.picture_facts(path).digest if cache else hashlib.sha256(path.read_bytes()).hexdigest()
    return "" if pixels is None else _pixels_digest(pixels)


class _Shelf:
    """Values by key: in the cache, the latest in memory too; what has no place there in memory alone.

    Any thread may take what is there; only the one that made the shelf makes what is not.
    """

    def __init__(self, cache: Cache | None, limit: int):
        self._cache = cache
        self._limit = limit
        self._kept: dict[Hashable, Any] = {}
        self._recent: OrderedDict[Hashable, Any] = OrderedDict()
        self._slabs = Slabs()
        self._size = 0
        self._lock = threading.RLock()
        self._maker = threading.get_ident()

    def missing(self, names: dict[Any, str | None]) -> list[Any]:
        """Those of the keys, given with their names in the cache, that lie nowhere yet."""
        known = self._cache.known(name for name in names.values() if name) if self._cache else set()
        return [key for key, name in names.items() if name not in known]

    def fetch(self, key: Hashable, name: str | None, make: Callable[[], Any]) -> Any:
        """The value of a key, made where it is not there.

        Args:
            name: in the cache; None = not to lie there.

        Raises:
            NotHere: it is not there, and this is not the thread that makes things.
        """
        with self._lock:
            return self._fetch(key, name, make)

    def _fetch(self, key: Hashable, name: str | None, make: Callable[[], Any]) -> Any:
        if key in self._kept:
            return self._kept[key]
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        value = self._cache.get(name) if self._cache and name else None
        if value is None:
            if threading.get_ident() != self._maker:
                raise NotHere(f"{key} has gone from the cache")
            value = make()
            if not (self._cache and name and _put(self._cache, name, value)):
                self._kept[key] = value
                return value
        self._recent[key] = value = self._slabs.settled(value)
        self._size += _bytes(value)
        while self._size > self._limit and len(self._recent) > 1:
            self._size -= _bytes(self._recent.popitem(last=False)[1])
        return value


def _by_size(views: Iterable[View], pixels: int) -> Iterator[tuple[View, ...]]:
    """The views in groups of one size that go through the VAE at once, of at most so many pixels or of one view."""
    sizes: dict[tuple[int, int], list[View]] = {}
    for view in views:
        sizes.setdefault((view[1].width, view[1].height), []).append(view)
    for (width, height), members in sizes.items():
        number = max(1, pixels // (width * height))
        for start in range(0, len(members), number):
            yield tuple(members[start : start + number])


def _results(
    members: tuple[View, ...], pictures: list[Future[torch.Tensor]]
) -> tuple[tuple[View, ...], list[Callable[[], torch.Tensor]]]:
    return members, [picture.result for picture in pictures]


def _put(cache: Cache, name: str, value: Any) -> bool:
    """Whether the value is of a kind that can lie there."""
    try:
        cache.put(name, value)
    except TypeError:  # hooks of the host in a CONDITIONING
        return False
    return True


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _name(kind: str, *parts: Any) -> str:
    return f"{kind} 1 {hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def _pixels_digest(pixels: torch.Tensor) -> str:
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()
