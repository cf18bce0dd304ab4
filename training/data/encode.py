"""Latents, masks and text embeddings of a run: each is computed once, before training, and read by the batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import Any

import torch

from .. import host
from ..basics.errors import InputError, raise_if_any
from .buckets import Fit
from .cache import Cache
from .cache_keys import CacheKeys
from .dataset import Dataset, Sample, size_conditioning, unreadable
from .pictures import PictureError
from .store import ValueStore

PIXELS_TOGETHER = 2**20
"""most pixels that go through the VAE at once; a larger picture goes alone"""
SPREAD_LATENTS = 64
"""most latents that `latent_spread` looks at"""

View = tuple[int, Fit, bool]
"""(picture index, fit, flipped): one form in which a picture is trained on"""
Load = Callable[[], torch.Tensor]
"""gives a picture in its bucket: (H, W, 3) in [0, 1]"""
OnProgress = Callable[[str, int, int], None]
"""called with (kind, done, total) for values that must be computed; may raise to interrupt"""


@dataclass(frozen=True)
class Encoders:
    """The graph's models that encode a dataset."""

    model: Any
    """MODEL, for its latent space"""
    clip: Any
    vae: Any


class Encoded:
    """Latents, masks and conditionings of a dataset's samples, on the CPU.

    With a cache, values are on disk and the latest in memory too; without one, all are in memory. A value that has gone
    from the cache (trimmed by another process, damaged) is computed again when it is read, by the thread that created
    this object: only that thread may load the host's models, others get `NotHere`.
    """

    def __init__(
        self, dataset: Dataset, encoders: Encoders, *, cache: Cache | None, has_captions: bool, together: bool
    ):
        self.views: list[View] = []
        """every view of every picture in the run, in order"""
        self.prompts: dict[str, Any] = {}
        """prompt of a sample picture -> CONDITIONING"""
        self._dataset = dataset
        self._encoders = encoders
        self._has_captions = has_captions
        self._pixels_together = PIXELS_TOGETHER if together else 1
        self._store = ValueStore(cache)
        self._keys = CacheKeys(dataset, encoders.clip, encoders.vae, cache, together)

    def latent(self, sample: Sample) -> torch.Tensor:
        """A sample's latent in model space: (C, ...) float32."""
        latent = self._latent(_view_of(sample))
        return host.to_model_space(self._encoders.model, latent[None])[0]

    def mask(self, sample: Sample) -> torch.Tensor | None:
        """The loss weight at each position of a sample's latent: (h, w) float32 in [0, 1]; None = 1 everywhere.

        1 where the mask is white, unmasked_weight where it is black, linear between them.
        """
        if not self._dataset.is_masked(sample.picture):
            return None
        lowest = self._dataset.settings_of(sample.picture).unmasked_weight
        return lowest + (1.0 - lowest) * self._mask(_view_of(sample))

    def conditioning(self, dataset: Dataset, sample: Sample, is_sized: bool) -> Any:
        """A sample's CONDITIONING.

        Args:
            is_sized: the model takes the picture's size and crop.
        """
        if not self._has_captions:
            raise ValueError("captions were not encoded: the text encoders are trained")
        return sized(self._text(sample.caption, is_prompt=False), dataset, sample, is_sized)

    def prompt(self, text: str) -> Any:
        """The CONDITIONING of a sample picture's prompt; encoded now if it was not prepared."""
        if text not in self.prompts:
            with host.sampling_mode():
                self.prompts[text] = self._text(text, is_prompt=True)
        return self.prompts[text]

    def prepare(self, samples: Iterable[Sample], prompts: Iterable[str], on_progress: OnProgress) -> None:
        """Computes the missing values of these samples and prompts."""
        samples = list(samples)
        self.views = sorted(
            {_view_of(sample) for sample in samples}, key=lambda view: (view[0], astuple(view[1]), view[2])
        )
        captions = sorted({sample.caption for sample in samples}) if self._has_captions else []
        self._prepare_captions(captions, on_progress)
        self.prompts = {prompt: self._text(prompt, is_prompt=True) for prompt in prompts}
        self._prepare_latents(on_progress)
        self._prepare_masks(on_progress)

    def _prepare_captions(self, captions: Sequence[str], on_progress: OnProgress) -> None:
        missing = self._store.missing({text: self._keys.text(text, is_prompt=False) for text in captions})
        for done, caption in enumerate(missing):
            on_progress("captions", done, len(missing))
            self._text(caption, is_prompt=False)

    def _prepare_latents(self, on_progress: OnProgress) -> None:
        missing = self._store.missing({view: self._keys.latent(*view) for view in self.views})
        done = 0
        for views, pictures in self._read_ahead(_groups_of_one_size(missing, self._pixels_together)):
            on_progress("pictures", done, len(missing))
            latents = self._encode(views, pictures)
            for view in views:
                self._latent(view, lambda latents=latents, view=view: latents[view])
            done += len(views)

    def _prepare_masks(self, on_progress: OnProgress) -> None:
        masked = [view for view in self.views if self._dataset.is_masked(view[0])]
        missing = self._store.missing({view: self._keys.mask(*view) for view in masked})
        for done, view in enumerate(missing):
            on_progress("masks", done, len(missing))
            self._mask(view)
        own = [view for view in self.views if not self._dataset.pictures[view[0]].is_regularisation]
        if own and not any(self._weighs(view) for view in own):
            problem = (
                "the masks, or the pictures' transparency, leave nothing to learn of any picture's crop: paint white "
                "what is to be learned, set unmasked_weight above 0, or turn masked_loss off."
            )
            raise_if_any("The dataset", [problem])

    def _text(self, text: str, is_prompt: bool) -> Any:
        return self._store.get(
            ("text", text, is_prompt),
            self._keys.text(text, is_prompt),
            lambda: host.encode_text(self._encoders.clip, text, is_prompt=is_prompt),
        )

    def _latent(self, view: View, compute: Callable[[], torch.Tensor] | None = None) -> torch.Tensor:
        """In the VAE's own space."""

        def encode_alone() -> torch.Tensor:
            return self._encode([view], [self._loader(view)])[view]

        return self._store.get(("latent", view), self._keys.latent(*view), compute or encode_alone)

    def _mask(self, view: View) -> torch.Tensor:
        """In the latent's size, white = 1."""
        return self._store.get(("mask", view), self._keys.mask(*view), lambda: self._load_mask(view))

    def _weighs(self, view: View) -> bool:
        """Whether some of a view is learned."""
        mask = self.mask(Sample(*view, ""))
        return mask is None or bool(mask.max() > 0)

    def _encode(self, views: Sequence[View], pictures: Sequence[Load]) -> dict[View, torch.Tensor]:
        """The latents of views of one size.

        Args:
            pictures: for each view, a function that gives its picture.
        """
        pixels = []
        for (index, _, flipped), load in zip(views, pictures, strict=True):
            picture = self._unchanged(index, False, load)
            pixels.append(picture.flip(1) if flipped else picture)
        latents = host.encode_pixels(self._encoders.vae, torch.stack(pixels)).float()
        for latent, (index, _, _) in zip(latents, views, strict=True):
            if not latent.isfinite().all():
                problem = (
                    f"it encodes {self._dataset.pictures[index].name} to values that are no numbers, as half precision "
                    "may: use another VAE, or start ComfyUI with --fp32-vae."
                )
                raise_if_any("VAE", [problem])
        return {view: latent.clone() for view, latent in zip(views, latents, strict=True)}

    def _loader(self, view: View) -> Load:
        index, fit, _ = view
        return lambda: self._dataset.pictures[index].load(fit)

    def _load_mask(self, view: View) -> torch.Tensor:
        index, fit, flipped = view
        mask = self._unchanged(index, True, lambda: self._dataset.pictures[index].load_mask(fit))
        assert mask is not None
        mask = mask.flip(1) if flipped else mask
        size = self._latent(view).shape[-2:]
        return torch.nn.functional.interpolate(mask[None, None], size, mode="area")[0, 0]

    def _read_ahead(self, groups: Iterable[tuple[View, ...]]) -> Iterator[tuple[tuple[View, ...], list[Load]]]:
        """Each group of views with functions that give its pictures; a thread reads the next group's meanwhile."""
        waiting: deque[tuple[tuple[View, ...], list[Future[torch.Tensor]]]] = deque()

        def first() -> tuple[tuple[View, ...], list[Load]]:
            views, pictures = waiting.popleft()
            return views, [picture.result for picture in pictures]

        reader = ThreadPoolExecutor(1, "lora-kiln-pictures")
        try:
            for views in groups:
                waiting.append((views, [reader.submit(self._loader(view)) for view in views]))
                if len(waiting) > 1:
                    yield first()
            while waiting:
                yield first()
        finally:
            reader.shutdown(cancel_futures=True)

    def _unchanged(self, index: int, is_mask: bool, load: Callable[[], Any]) -> Any:
        """The content of a picture's or mask's file, if it is still the content that its cache key stands for.

        Raises:
            InputError: the file was deleted or replaced.
        """
        picture = self._dataset.pictures[index]
        try:
            content = load()
            is_unchanged = self._keys.is_unchanged(index, is_mask)
        except (OSError, PictureError) as error:
            raise InputError("The dataset", [unreadable(picture, error)]) from error
        if not is_unchanged:
            raise InputError("The dataset", [f"{picture.name} was replaced while the run was going on: queue again."])
        return content


def encode_samples(
    dataset: Dataset,
    samples: Iterable[Sample],
    prompts: Iterable[str],
    encoders: Encoders,
    on_progress: OnProgress,
    *,
    cache: Cache | None = None,
    captions: bool = True,
    together: bool = False,
) -> Encoded:
    """Encodes the pictures, masks and texts of a run that are not in the cache.

    Args:
        prompts: of sample pictures.
        captions: encode the samples' captions too.
        together: encode pictures of one size in one pass of the VAE, which is faster on a GPU. The last bits of a
            latent then depend on the other pictures of the pass: not for runs that must be exact.

    Raises:
        InputError: the VAE gives values that are no numbers; a picture was deleted or replaced; masks leave nothing.
    """
    encoded = Encoded(dataset, encoders, cache=cache, has_captions=captions, together=together)
    encoded.prepare(samples, prompts, on_progress)
    if cache is not None:
        cache.trim()
    return encoded


def sized(conditioning: Any, dataset: Dataset, sample: Sample, is_sized: bool = True) -> Any:
    """A CONDITIONING with a sample's size and crop added, if the model takes them."""
    if not is_sized:
        return conditioning
    size = size_conditioning(dataset.pictures[sample.picture], sample.fit, sample.flipped)
    return [[embedding, {**options, **size}] for embedding, options in conditioning]


def latent_spread(encoded: Encoded) -> float:
    """Standard deviation of some of the latents; about 1 if VAE and model belong together."""
    step = -(-len(encoded.views) // SPREAD_LATENTS)
    latents = [encoded.latent(Sample(*view, "")) for view in encoded.views[:: max(1, step)]]
    return float(torch.cat([latent.flatten() for latent in latents]).std())


def _view_of(sample: Sample) -> View:
    return sample.picture, sample.fit, sample.flipped


def _groups_of_one_size(views: Iterable[View], most_pixels: int) -> Iterator[tuple[View, ...]]:
    """The views in groups of one size, each of at most so many pixels or of one view."""
    sizes: dict[tuple[int, int], list[View]] = {}
    for view in views:
        sizes.setdefault((view[1].width, view[1].height), []).append(view)
    for (width, height), members in sizes.items():
        number = max(1, most_pixels // (width * height))
        for start in range(0, len(members), number):
            yield tuple(members[start : start + number])
