"""A whole run: from the graph's MODEL, CLIP, VAE and data to a LoRA."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from . import host
from .attach import Adapter, attached, find_targets, make_adapters
from .batches import Batch, Plan, make_batch
from .config import LoRAConfig
from .dataset import Dataset, bucket_table, upscaled
from .encode import Encoded, encode_samples, latent_spread
from .events import RunEvents
from .export import LoRAModel, lora_metadata, lora_tensors, save_lora
from .loop import train
from .objective import Predict
from .optimizers import make_optimizer
from .problems import raise_if_any
from .randomness import tensor_generator
from .sampling import euler

OUT_OF_MEMORY = (
    "The GPU's memory is full. In LoRA Config turn gradient_checkpointing on, lower batch_size or choose "
    "fewer targets; or lower resolution in Load Dataset."
)


@dataclass(frozen=True)
class SamplePicture:
    """A picture drawn on the way."""

    step: int
    prompt: str
    pixels: torch.Tensor
    """(H, W, 3) in [0, 1]"""


@dataclass(frozen=True)
class Trained:
    """What a run gives."""

    lora: LoRAModel
    losses: list[float]
    samples: list[SamplePicture]
    report: str


def train_lora(model: Any, clip: Any, vae: Any, dataset: Dataset, config: LoRAConfig, name: str) -> Trained:
    """Trains a LoRA for MODEL on the dataset. MODEL, CLIP and VAE are only read.

    Args:
        name: of the LoRA, used for files written on the way.

    Raises:
        InputError: MODEL, CLIP, VAE, dataset and config do not go together.
        Diverged: the loss is no longer a number; what was learned before is saved.
        Interrupted: by the user; what was learned is saved.
    """
    if not any(not picture.is_regularisation for picture in dataset.pictures):
        raise_if_any("Train LoRA", ["dataset holds no picture to train on: connect Load Dataset with pictures."])
    run = _Run(model, clip, vae, dataset, config, name)
    with host.training_mode(), run.kept_on_failure():
        host.check_compatible(model, clip, vae)
        encoded = run.encode()
        host.make_room(run.device)
        return run.train(encoded)


@dataclass
class _Run:
    """One run's parts, from what it was given to what it has made so far."""

    model: Any
    clip: Any
    vae: Any
    dataset: Dataset
    config: LoRAConfig
    name: str
    adapters: dict[str, Adapter] = field(default_factory=dict)
    samples: list[SamplePicture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.family = host.family(self.model)
        self.plan = Plan(self.dataset, self.config)
        if self.config.warmup_steps(self.plan.steps) >= self.plan.steps:
            raise_if_any(
                "LoRA Config",
                [f"warmup is {self.config.warmup:g} of {self.plan.steps} steps: it must end before the run does."],
            )
        self.events = RunEvents(self.plan.steps, self.name)
        self.progress = host.progress_bar(self.plan.steps)
        self.device = host.training_device(self.model)
        self.dtype = host.training_dtype(self.model, self.config.precision)
        self.names = host.kohya_names(self.model)
        self.sized = host.wants_size_conditioning(self.model)
        self.started_at = time.time()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.notes += [*self.dataset.problems, *host.warnings_about(self.model)]

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Writes what was learned when the run ends early, and tells the page how it ended."""
        try:
            yield
        except host.Interrupted:
            self.events.ended("interrupted", self._keep())
            raise
        except torch.OutOfMemoryError:
            self.events.ended("failed", f"{OUT_OF_MEMORY} {self._keep()}")
            raise
        except Exception as error:
            self.events.ended("failed", f"{error} {self._keep()}".strip())
            raise

    def encode(self) -> Encoded:
        """Latents and embeddings of all that the run will see."""

        def on_progress(what: str, done: int, total: int) -> None:
            host.raise_if_interrupted()
            self.events.preparing(f"encoding {what} {done + 1} of {total}")

        prompts = ["", *self.config.sample_prompts] if self.config.sample_every else []
        encoded = encode_samples(
            self.dataset, self.plan.all_samples(), prompts, self.model.model, self.clip, self.vae, on_progress
        )
        spread = latent_spread(encoded)
        if not 0.4 < spread < 2.5:
            self.notes.append(
                f"The latents' standard deviation is {spread:.2f} where about 1 is usual: "
                "do MODEL and VAE come from the same checkpoint?"
            )
        return encoded

    def train(self, encoded: Encoded) -> Trained:
        """Puts adapters on a twin of the model, trains them, and takes them off."""
        config = self.config
        self.events.preparing("loading the model")
        twin = host.trainable_view(self.model, self.dtype)
        if config.gradient_checkpointing:
            host.checkpoint_blocks(twin)
        targets = find_targets(twin, config.targets)
        self._check_names(target.key for target in targets)
        self.adapters = make_adapters(targets, config.rank, config.scale, config.seed)
        parameters = [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]
        optimizer = make_optimizer(config.optimizer, parameters, config.learning_rate, config.weight_decay)
        options = host.transformer_options(self.model)

        def predict(x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
            return host.predict(twin, options, x_t, sigma, cond)

        def batch_at(step: int, micro: int) -> Batch:
            return self._batch(twin, encoded, step, micro)

        def after_step(step: int, loss: float, learning_rate: float) -> None:
            self.events.step(loss, learning_rate)
            if config.save_every and step % config.save_every == 0 and step < self.plan.steps:
                self._save(f"step{step:06}")
            if config.sample_every and (step % config.sample_every == 0 or step == self.plan.steps):
                self._sample(twin, predict, encoded, step)
            self.progress(step)
            host.raise_if_interrupted()

        with attached(targets, self.adapters), host.patches_on_device(self.model):
            if config.sample_every:
                self._sample(twin, predict, encoded, 0)
            self.events.started()
            train(predict, self.family, batch_at, optimizer, config, self.plan.steps, after_step)
        lora = self._lora()
        self.events.ended("finished", "")
        return Trained(lora, self.events.losses, self.samples, self._report())

    def _check_names(self, keys: Iterable[str]) -> None:
        """Refuses before the first step what could not be saved after the last."""
        strangers = sorted(set(keys) - self.names.keys())
        if strangers:
            problem = f"layer {strangers[0]} is not the model's own (compiled, or replaced?): take that node out."
            raise_if_any("MODEL", [problem])

    def _batch(self, twin: Any, encoded: Encoded, step: int, micro: int) -> Batch:
        samples = self.plan.samples_at(step, micro)
        conditionings = [encoded.conditioning(self.dataset, sample, self.sized) for sample in samples]
        return make_batch(
            [encoded.latents[sample.picture, sample.flipped] for sample in samples],
            [self.dataset.loss_weight(sample) for sample in samples],
            lambda latents: host.batch_conds(twin, conditionings, latents),
            self.family, self.config, step, micro, self.device,
        )  # fmt: skip

    def _sample(self, twin: Any, predict: Predict, encoded: Encoded, step: int) -> None:
        """One picture a prompt, with the adapters as they are; the run's randomness is not touched."""
        config, side = self.config, self.dataset.settings.resolution
        shape = (1, *host.latent_shape(self.model, self.vae, side, side))
        for number, prompt in enumerate(config.sample_prompts):
            self.events.preparing(f"drawing sample {number + 1} of {len(config.sample_prompts)}")
            noise = torch.randn(shape, generator=tensor_generator(config.seed, number, "sample")).to(self.device)
            sigmas = host.sampler_sigmas(twin, config.sample_steps)
            with host.sampling_mode():
                cond = host.batch_conds(twin, [encoded.prompts[prompt]], noise)
                uncond = host.batch_conds(twin, [encoded.prompts[""]], noise)
                start = host.start_noise(twin, sigmas[0], noise)
                latent = euler(predict, start, sigmas, cond, uncond, config.sample_guidance)
                pixels = host.decode_latents(self.vae, host.from_model_space(twin, latent))
            self.samples.append(SamplePicture(step, prompt, pixels[0]))
        self.events.resume_clock()
        self.events.started()

    def _lora(self) -> LoRAModel:
        config, dataset = self.config, self.dataset
        tensors = lora_tensors(self.adapters, self.names, config.alpha, config.save_precision)
        version, architecture = host.base_version(self.model)
        trained_on = [p for p in dataset.pictures if not p.is_regularisation]
        captions = [dataset.caption(i) for i, p in enumerate(dataset.pictures) if not p.is_regularisation]
        tags = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
        step = len(self.events.losses)
        metadata = lora_metadata(
            config, name=self.name, base_version=version, architecture=architecture,
            prediction=self.family.prediction, resolution=dataset.settings.resolution, pictures=len(trained_on),
            prior_pictures=len(dataset.pictures) - len(trained_on), buckets=bucket_table(dataset),
            tag_frequency=tags, trigger_word=dataset.settings.trigger_word, dataset_name=dataset.name,
            step=step, epoch=self.plan.epoch_of(max(0, step - 1)) + 1, started_at=self.started_at,
            ended_at=time.time(),
        )  # fmt: skip
        return LoRAModel(tensors, metadata, self.name)

    def _save(self, suffix: str) -> str:
        lora = self._lora()
        path = save_lora(host.lora_folder() / f"{self.name}-{suffix}.safetensors", lora, lora.metadata)
        host.say("wrote %s", path)
        self.events.resume_clock()
        return str(path)

    def _keep(self) -> str:
        steps = len(self.events.losses)
        if steps == 0:
            return "Nothing was learned yet."
        try:
            path = self._save(f"step{steps:06}-partial")
        except Exception as error:  # whatever stopped the run comes first
            return f"What was learned in {steps} steps could not be kept: {error}"
        return f"What was learned in {steps} steps is kept in {path}."

    def _report(self) -> str:
        config, dataset, losses = self.config, self.dataset, self.events.losses
        seconds = time.time() - self.started_at
        parameters = sum(p.numel() for adapter in self.adapters.values() for p in adapter.parameters())
        prior = sum(picture.is_regularisation for picture in dataset.pictures)
        last = losses[-max(1, len(losses) // 10) :]
        buckets = ", ".join(f"{w} x {h}: {count}" for (w, h), count in bucket_table(dataset).items())
        enlarged = upscaled(dataset)
        lines = [
            f"LoRA {self.name}: rank {config.rank}, alpha {config.alpha:g}, {len(self.adapters)} layers, "
            f"{parameters:,} parameters, seed {config.seed}",
            f"Base: {host.base_version(self.model)[1]}, {self.family.prediction} prediction, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
            f"Data: {len(dataset.pictures) - prior} pictures"
            + (f" and {prior} for regularisation" if prior else "")
            + f"; buckets {buckets}",
            f"Steps: {len(losses)} of batch {config.batch_size}"
            + (f" x {config.gradient_accumulation}" if config.gradient_accumulation > 1 else "")
            + f" in {seconds:.0f} s, {len(losses) / max(seconds, 1e-9):.2f} steps a second, preparation included",
            f"Loss: {sum(last) / len(last):.4f} on average over the last {len(last)} steps, "
            f"{sum(losses[: len(last)]) / len(last):.4f} over the first",
        ]
        if self.device.type == "cuda":
            lines.append(f"Peak GPU memory: {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB")
        if config.min_snr_gamma and self.family.prediction == "flow":
            lines.append("Note: min_snr_gamma has no effect on a flow model.")
        if enlarged:
            lines.append(f"Note: enlarged to fit their bucket: {'; '.join(enlarged[:8])}")
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)
