"""A whole run: from the graph's MODEL, CLIP, VAE and data to a LoRA."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from . import host
from .adapters import KINDS, Adapter
from .advice import advice
from .attach import (
    Target,
    adapters_by_rate,
    as_found,
    attached,
    check_dropout,
    clear_dropout,
    draw_dropout,
    find_targets,
    find_text_targets,
    has_dropout,
    is_convolution,
    make_adapters,
    targets_of,
)
from .batches import Batch, Plan, make_batch
from .cache import Cache, open_cache
from .config import LoRAConfig
from .dataset import Dataset
from .determinism import deterministic_kernels
from .ema import EMA
from .encode import Encoded, encode_samples, latent_spread, sized
from .engine import EagerEngine, Engine, GraphEngine, uses_cudas_allocator
from .events import RunEvents
from .export import AS_TRAINED, in_precision, lora_tensors, save_lora
from .fitting import FittingEngine, Placement, free_memory, parts, placements
from .flat import FlatParameters
from .layer_rules import DIFFUSION_MODEL, check_layer_rules, parse_layer_rules, rule_for
from .loop import train
from .lora_files import read_adapters
from .lora_model import LoRAModel
from .metadata import RunFacts, lora_metadata
from .objective import Predict, zero_terminal_sigmas
from .optimizers import check_optimizer, for_use, make_capturable, make_optimizer
from .prefetch import on_device, prefetched
from .problems import raise_if_any
from .randomness import tensor_generator
from .report import data_facts, notes_about, run_report
from .sampling import euler
from .step import Step

OUT_OF_MEMORY = (
    "The GPU's memory is full. In LoRA Config turn gradient_checkpointing on, lower batch_size or choose "
    "fewer targets; or lower resolution in Load Dataset."
)
CUDAS_ALLOCATOR = (
    "ComfyUI uses cudaMallocAsync, with which only SD1.5, SD2 and SDXL without patches are recorded: start it with "
    "--disable-cuda-malloc"
)
MOST_NAMED = 5


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


def train_lora(
    model: Any,
    clip: Any,
    vae: Any,
    dataset: Dataset,
    config: LoRAConfig,
    name: str,
    start: Mapping[str, torch.Tensor] | None = None,
) -> Trained:
    """Trains a LoRA for MODEL on the dataset. MODEL, CLIP and VAE are only read.

    Args:
        name: of the LoRA, used for files written on the way.
        start: a LoRA to train on; its layers, kinds, ranks and alphas stay.

    Raises:
        InputError: MODEL, CLIP, VAE, dataset and config do not go together.
        Diverged: the loss is no longer a number; what was learned before is saved.
        Interrupted: by the user; what was learned is saved.
    """
    if not any(not picture.is_regularisation for picture in dataset.pictures):
        raise_if_any("Train LoRA", ["dataset holds no picture to train on: connect Load Dataset with pictures."])
    with host.training_mode(), deterministic_kernels(config.deterministic), open_cache() or nullcontext() as cache:
        run = _Run(model, clip, vae, dataset, config, name, start)
        with run.kept_on_failure():
            host.check_compatible(run.model, run.clip, vae)
            encoded = run.encode(cache)
            host.make_room(run.device)
            return run.train(encoded)


@dataclass
class _Networks:
    """What is trained on: twins of the graph's models, and the adapters on them."""

    model: Any
    text_encoder: Any | None
    """None where the text encoders are not trained"""
    targets: list[Target]
    adapters: dict[str, Adapter]
    """by state-dict key of the base weight"""


@dataclass
class _Run:
    """One run's parts, from what it was given to what it has made so far."""

    model: Any
    clip: Any
    vae: Any
    dataset: Dataset
    config: LoRAConfig
    name: str
    start: Mapping[str, torch.Tensor] | None = None
    adapters: dict[str, Adapter] = field(default_factory=dict)
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)
    """entries of `start` that stay as they are"""
    samples: list[SamplePicture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    optimizer: Any = None
    ema: EMA | None = None

    def __post_init__(self) -> None:
        self.names = host.layer_names(self.model, self.clip)
        if self.start is not None:
            self._continue(self.start)
        self.trains_text = self.config.text_encoder_learning_rate > 0
        self.family = host.family(self.model)
        self._check_recipe()
        if self.config.zero_terminal_snr:
            self.family = replace(self.family, sigmas=zero_terminal_sigmas(self.family.sigmas))
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
        self.sized = host.wants_size_conditioning(self.model)
        self.started_at = time.time()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.notes += [*self.dataset.problems, *host.warnings_about(self.model)]
        for note in self.notes:
            host.say("%s", note)

    def _continue(self, start: Mapping[str, torch.Tensor]) -> None:
        """Takes over the adapters of a LoRA; what of it is not trained goes into MODEL and CLIP for the run."""
        found = read_adapters(start, self.names)
        adapters, trains_text = found.adapters, self.config.text_encoder_learning_rate > 0
        rules = parse_layer_rules(self.config.layer_rules)
        trained = {
            key: adapter
            for key, adapter in adapters.items()
            if (trains_text or key.startswith(DIFFUSION_MODEL))
            and rule_for(rules, key.removesuffix(".weight")).rank != 0
        }
        still = {key: adapters[key] for key in adapters if key not in trained}
        if not trained:
            problem = "start holds no layer of this model that can be trained: connect another LoRA."
            raise_if_any("Train LoRA", [problem])
        self.adapters = trained
        self.config = as_found(self.config, self._targets(self.model.model, self.clip.cond_stage_model), trained)
        if trains_text and not self.config.text_encoder_learning_rate:
            self.notes.append("start has no text encoder layers: the text encoders are not trained.")
        self.frozen = {**found.kept, **lora_tensors(still, self.names)}
        if self.frozen:
            self.model, self.clip = host.with_lora(self.model, self.clip, self.frozen, 1.0)
            self.notes.append(f"{len(self.frozen)} entries of the LoRA that was continued stay as they are.")
        if found.unknown:
            self.notes.append(f"Not this model's, left out: {', '.join(found.unknown[:MOST_NAMED])}")
        self.notes.append(
            "Continued from a LoRA: adapter, rank, alpha and targets are those of its layers. Of layer_rules, rank=0 "
            "leaves a layer as it is, and lr holds."
        )

    def _check_recipe(self) -> None:
        """Refuses, before anything is encoded, what could not be trained; notes what has no effect."""
        config, rules = self.config, parse_layer_rules(self.config.layer_rules)
        if config.zero_terminal_snr and self.family.prediction != "v":
            problem = (
                f"zero_terminal_snr is on, but the model predicts {self.family.prediction}: "
                "only v-prediction models can start from pure noise. Turn it off."
            )
            raise_if_any("LoRA Config", [problem])
        targets = self._targets(self.model.model, self.clip.cond_stage_model if self.trains_text else None)
        if self.start is None:
            check_layer_rules(rules, [target.name for target in targets])
        check_dropout(self.adapters.values() or [KINDS[config.adapter]], config)
        rates = {config.learning_rate * rule_for(rules, target.name).learning_rate for target in targets}
        check_optimizer(config, sorted(rates | ({config.text_encoder_learning_rate} if self.trains_text else set())))
        self.notes += notes_about(config, self.family.prediction, any(map(is_convolution, targets)))
        self.notes += advice(config, host.base_version(self.model)[0], self.dataset)

    def _targets(self, model: Any, text_encoder: Any | None) -> list[Target]:
        """The layers that are trained: those of the LoRA that is continued, or those the recipe chooses."""
        if self.adapters:
            roots = [model] if text_encoder is None else [model, text_encoder]
            return [target for root in roots for target in targets_of(root, self.adapters)]
        text_targets = [] if text_encoder is None else find_text_targets(text_encoder)
        return [*find_targets(model, self.config.targets), *text_targets]

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

    def encode(self, cache: Cache | None) -> Encoded:
        """Latents and embeddings of all that the run will see."""

        def on_progress(what: str, done: int, total: int) -> None:
            host.raise_if_interrupted()
            self.events.preparing(f"encoding {what} {done + 1} of {total}")

        prompts = ["", *self.config.sample_prompts] if self.config.sample_every else []
        encoded = encode_samples(
            self.dataset, self.plan.all_samples(), prompts, self.model, self.clip, self.vae, on_progress, cache,
            captions=not self.trains_text,
        )  # fmt: skip
        self.notes += cache.notes if cache is not None else []
        spread = latent_spread(encoded)
        if not 0.4 < spread < 2.5:
            self.notes.append(
                f"The latents' standard deviation is {spread:.2f} where about 1 is usual: "
                "do MODEL and VAE come from the same checkpoint?"
            )
        return encoded

    def train(self, encoded: Encoded) -> Trained:
        """Puts adapters on twins of the models, trains them, and takes them off."""
        self.events.preparing("loading the model")
        with ExitStack() as attachments:
            if self.device.type == "cuda":  # graphs, kernels and events belong to the current device
                attachments.enter_context(torch.cuda.device(self.device))
            nets, engine = self._fitted(encoded, attachments)
            attachments.callback(engine.release)
            self._train(nets, engine, encoded)
        lora = self._lora()
        self.events.ended("finished", "")
        return Trained(lora, self.events.losses, self.samples, self._report())

    def _fitted(self, encoded: Encoded, attachments: ExitStack) -> tuple[_Networks, Engine]:
        """The networks and what executes their steps, placed so that the largest batch fits into the memory.

        Args:
            attachments: takes what must be undone after the run.

        Raises:
            torch.OutOfMemoryError: it fits in no way, or the recipe's own does not and no other may be tried.
        """
        config = self.config
        asked = Placement(config.gradient_checkpointing, config.batch_size)
        if self.device.type != "cuda":
            return self._placed(asked, attachments)
        weights = host.weight_bytes(self.model, self.dtype, config.base_precision)
        fits = not config.fit_memory or weights < host.free_bytes(self.device)
        tried = list(placements(asked, not self.trains_text, fits)) if config.fit_memory else [asked]
        for placement in tried:
            with ExitStack() as stack:
                try:
                    nets, engine = self._placed(placement, stack)
                    self._try_out(nets, engine, placement, encoded)
                except torch.OutOfMemoryError:
                    if placement == tried[-1]:
                        raise
                    nets = engine = None
                if engine is not None and nets is not None:
                    attachments.enter_context(stack.pop_all())
                    if placement != asked:
                        words = placement.words(config.batch_size)
                        self._note(f"The recipe does not fit into the GPU's memory as it is; it runs with {words}.")
                    return nets, engine
            free_memory()
        raise AssertionError("there is always a last placement")

    def _placed(self, placement: Placement, stack: ExitStack) -> tuple[_Networks, Engine]:
        nets = self._networks(placement)
        self.adapters = nets.adapters
        engine = self._engine(nets, placement)
        stack.enter_context(attached(nets.targets, nets.adapters))
        stack.enter_context(host.patches_on_device(self.model))
        return nets, engine

    def _try_out(self, nets: _Networks, engine: Engine, placement: Placement, encoded: Encoded) -> None:
        """The largest forward and backward pass, without a move."""
        step, micro = self.plan.largest()
        batch = on_device(self._batch(nets, encoded, step, micro), self.device)
        try:
            first = next(parts(batch, placement.pictures))
            engine.step.accumulate(self._with_live_text(nets, first, step, micro))
        finally:
            engine.step.forget()

    def _train(self, nets: _Networks, engine: Engine, encoded: Encoded) -> None:
        config, steps = self.config, self.plan.steps

        def samples_at(step: int) -> bool:
            return config.sample_every > 0 and (step % config.sample_every == 0 or step == steps)

        def saves_at(step: int) -> bool:
            return config.save_every > 0 and step % config.save_every == 0 and step < steps

        def on_pause(step: int) -> None:
            if saves_at(step):
                self._save(f"step{step:06}")
            if samples_at(step):
                self._sample(nets, engine.step.predict, encoded, step)

        order = ((step, micro) for step in range(steps) for micro in range(config.gradient_accumulation))
        with prefetched(partial(self._batch, nets, encoded), order, self.device) as made_at:
            if config.sample_every:
                self._sample(nets, engine.step.predict, encoded, 0)
            self.events.started()

            def batch_at(step: int, micro: int) -> Batch:
                host.raise_if_interrupted()
                self.progress(len(self.events.losses))
                draw_dropout(nets.adapters, config, step, micro)
                return self._with_live_text(nets, made_at(step, micro), step, micro)

            train(
                engine, batch_at, config, steps, lambda step, loss, rate: self.events.step(loss, rate),
                lambda step: samples_at(step) or saves_at(step), on_pause,
            )  # fmt: skip
        self.progress(steps)

    def _engine(self, nets: _Networks, placement: Placement) -> Engine:
        """The step that is trained, and how it is executed."""
        config = self.config
        flats, groups = self._parameter_groups(nets)
        self.optimizer = make_optimizer(config, groups)
        can_record = self.device.type == "cuda" and make_capturable(self.optimizer)
        if config.ema_decay:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            self.ema = EMA(parameters, config.ema_decay)
        options = host.transformer_options(self.model)

        def predict(x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
            return host.predict(nets.model, options, x_t, sigma, cond)

        step = Step(predict, self.family, config, self.optimizer, tuple(flats), self.ema)
        if self.device.type != "cuda":
            return EagerEngine(step)
        obstacles = [
            *(["text encoders are trained"] if self.trains_text else []),
            *(["dropout is drawn anew each step"] if has_dropout(config) else []),
            *(["weights come from RAM"] if placement.resident < 1.0 else []),
            *([CUDAS_ALLOCATOR] if uses_cudas_allocator() and not host.is_plain_unet(self.model) else []),
            *([] if can_record else [f"the optimizer {config.optimizer} moves from Python"]),
        ]
        if obstacles and config.cuda_graphs:
            self._note(
                f"The step goes op by op, not as a CUDA graph, which is several times slower: {'; '.join(obstacles)}."
            )
        is_eager = obstacles or not config.cuda_graphs
        engine = EagerEngine(step) if is_eager else GraphEngine(step, self._note)
        return FittingEngine(engine, placement.pictures, not self.trains_text, self._note)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            host.say("%s", note)

    def _networks(self, placement: Placement) -> _Networks:
        """Twins of MODEL and, where they are trained, of the text encoders, with fresh or continued adapters."""
        config = self.config
        streams = placement.resident < 1.0
        model = host.trainable_view(self.model, self.dtype, config.base_precision, in_ram=streams)
        if config.zero_terminal_snr:
            host.set_sigmas(model, self.family.sigmas)
        if self.device.type == "cuda" and self.dtype != torch.float32 and (obstacle := host.fuse_layers(model)):
            self._note(f"Norms and gates go without fused kernels, which is slower: Triton does not work ({obstacle}).")
        if streams:
            self._stream(model, placement)
        elif placement.checkpointing and not host.checkpoint_blocks(model):
            self._note("gradient_checkpointing has no effect: this model has no list of blocks.")
        text_encoder = host.trainable_text_encoder(self.clip) if self.trains_text else None
        targets = self._targets(model, text_encoder)
        adapters = self.adapters or make_adapters(targets, config)
        strangers = sorted(set(adapters) - self.names.keys())  # could not be saved after the last step
        if strangers:
            problem = f"layer {strangers[0]} is not the model's own (compiled, or replaced?): take that node out."
            raise_if_any("MODEL", [problem])
        return _Networks(model, text_encoder, targets, adapters)

    def _stream(self, model: Any, placement: Placement) -> None:
        everything = host.weight_bytes(self.model, self.dtype, self.config.base_precision)
        streamed = host.stream_blocks(model, int(placement.resident * everything))
        if not streamed.is_pinned:
            self._note("Weights from RAM come slower than they could: the system gives no pinned memory.")

    def _parameter_groups(self, nets: _Networks) -> tuple[list[FlatParameters], list[dict[str, Any]]]:
        """MODEL's layers and those of the text encoders, each at their own learning rate, side by side in memory."""
        config, rules = self.config, parse_layer_rules(self.config.layer_rules)
        own = {key: each for key, each in self.adapters.items() if key.startswith(DIFFUSION_MODEL)}
        text = {key: each for key, each in self.adapters.items() if key not in own}
        flats, groups = [], []
        # Where the layers compute, not where their weights wait.
        text_device = next(nets.text_encoder.parameters()).device if nets.text_encoder is not None else self.device
        for part, learning_rate, device, dtype in (
            (own, config.learning_rate, self.device, self.dtype),
            (text, config.text_encoder_learning_rate, text_device, torch.float32),
        ):
            for rate, members in adapters_by_rate(part, learning_rate, rules).items():
                flat = FlatParameters(members, device, dtype)
                flats.append(flat)
                parameters = [flat.values] if config.optimizer == "adamw" else flat.parameters
                groups.append({"params": parameters, "learning_rate": rate})
        return flats, groups

    def _batch(self, nets: _Networks, encoded: Encoded, step: int, micro: int) -> Batch:
        """A batch on the CPU; without its condition where the text encoders are trained."""
        samples = self.plan.samples_at(step, micro)

        def conds_for(latents: torch.Tensor) -> Any:
            if nets.text_encoder is not None:
                return None
            conditionings = [encoded.conditioning(self.dataset, sample, self.sized) for sample in samples]
            return host.batch_conds(nets.model, conditionings, latents, host.TRAINING_GUIDANCE)

        return make_batch(
            [encoded.latent(sample) for sample in samples],
            [self.dataset.loss_weight(sample) for sample in samples],
            [encoded.mask(sample) for sample in samples],
            conds_for, self.family, self.config, step, micro,
        )  # fmt: skip

    def _with_live_text(self, nets: _Networks, batch: Batch, step: int, micro: int) -> Batch:
        """The batch with a condition that carries the text encoders' graph, where they are trained."""
        if nets.text_encoder is None:
            return batch
        samples = self.plan.samples_at(step, micro)
        live = [host.encode_text_with(self.clip, nets.text_encoder, sample.caption) for sample in samples]
        conditionings = [
            sized(each, self.dataset, sample, self.sized) for each, sample in zip(live, samples, strict=True)
        ]
        cond = host.batch_conds(nets.model, conditionings, batch.x_0, host.TRAINING_GUIDANCE)
        return replace(batch, cond=cond)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """The adapters as they are used, not as they are trained: averaged, without dropout."""
        with ExitStack() as stack:
            stack.enter_context(for_use(self.optimizer))
            if self.ema is not None:
                stack.enter_context(self.ema.applied())
            yield

    def _sample(self, nets: _Networks, predict: Predict, encoded: Encoded, step: int) -> None:
        """One picture a prompt, with the adapters as they are; the run's randomness is not touched."""
        clear_dropout(nets.adapters)
        config, side = self.config, self.dataset.settings.resolution
        shape = (1, *host.latent_shape(self.model, self.vae, side, side))
        distilled = host.takes_guidance(self.model)

        def prompt_cond(prompt: str) -> Any:
            if nets.text_encoder is None:
                return encoded.prompts[prompt]
            return host.encode_text_with(self.clip, nets.text_encoder, prompt, is_prompt=True)

        for number, prompt in enumerate(config.sample_prompts):
            self.events.preparing(f"drawing sample {number + 1} of {len(config.sample_prompts)}")
            noise = torch.randn(shape, generator=tensor_generator(config.seed, number, "sample")).to(self.device)
            sigmas = host.sampler_sigmas(nets.model, config.sample_steps)
            # A model with distilled guidance is told it, and asked once; others are asked with and without the prompt.
            told, cfg = (config.sample_guidance, 1.0) if distilled else (None, config.sample_guidance)
            with host.sampling_mode(), self._in_use():
                cond = host.batch_conds(nets.model, [prompt_cond(prompt)], noise, told)
                uncond = host.batch_conds(nets.model, [prompt_cond("")], noise, told)
                start = host.start_noise(nets.model, sigmas[0], noise)
                latent = euler(predict, start, sigmas, cond, uncond, cfg)
                pixels = host.decode_latents(self.vae, host.from_model_space(self.model, latent))
            self.samples.append(SamplePicture(step, prompt, pixels[0]))
        self.events.resume_clock()
        self.events.started()

    def _lora(self) -> LoRAModel:
        """The LoRA as it is now."""
        with self._in_use():
            tensors = lora_tensors(self.adapters, self.names)
        version, architecture = host.base_version(self.model)
        step = len(self.events.losses)
        facts = RunFacts(
            self.name, version, architecture, self.family.prediction, step, self.plan.steps,
            self.plan.epoch_of(max(0, step - 1)) + 1, self.plan.epoch_of(self.plan.steps - 1) + 1, self.started_at,
            time.time(), "fp32" if self.dtype == torch.float32 else "bf16",
            clip_skip=host.clip_skip(self.clip),
        )  # fmt: skip
        metadata = lora_metadata(self.config, facts, data_facts(self.dataset))
        layers = {names.kohya: names for names in self.names.values()}
        return LoRAModel({**self.frozen, **tensors}, metadata, self.name, layers, self.config.save_precision)

    def _save(self, suffix: str) -> str:
        lora = in_precision(self._lora(), AS_TRAINED)
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
        base = (
            f"{host.base_version(self.model)[1]}, {self.family.prediction} prediction, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
            f"{', linear weights in fp8' if self.config.base_precision == 'fp8' else ''}"
        )
        return run_report(
            self.name, self.config, self.dataset, self.adapters, self.events.losses, time.time() - self.started_at,
            base, self.device, self.notes,
        )  # fmt: skip
