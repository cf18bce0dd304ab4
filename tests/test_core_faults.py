"""The measured faults of ComfyUI's own Train LoRA node stay out of ours.

Each check is a function that runs a trainer and asserts what is right. Ours must pass every check; the core's node, run
in its place on the same small models and pictures, must fail it, so that each check is known to bite. The trainers are
watched from outside, where both call the host's UNet.

One fault of the core is not here: its Plot Loss Graph divides by zero when a run has a single step. That is the core's
own node, drawing a LOSS_MAP that is right; there is nothing on our side to mend.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import folder_paths
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_extras.nodes_train import SaveLoRA as CoreSaveLoRA
from comfy_extras.nodes_train import TrainLoraNode
from lora_kiln.nodes.save_lora import SaveLoRA
from lora_kiln.training import host
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.run.trainer import train_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import models
from training_runs import graph_models

pytestmark = pytest.mark.usefixtures("lora_folder")
SQUARE, WIDE, TALL = (72, 72), (96, 48), (48, 96)  # width, height; 81 places in a latent are no layer's width
RANK, ALPHA = 5, 2.0  # no layer is 5 wide


@dataclass
class Job:
    """What a trainer is asked to do."""

    small: models.Small = field(default_factory=models.sd15)
    sizes: tuple[tuple[int, int], ...] = (SQUARE,) * 4
    steps: int = 2
    batch_size: int = 1
    learning_rate: float = 1e-3
    checkpointing: bool = False
    start: Mapping[str, Tensor] | None = None
    seed: int = 3

    def pictures(self) -> list[tuple[Tensor, str]]:
        """(H, W, 3) pixels and a caption each."""
        generator = torch.Generator().manual_seed(5)
        return [
            (torch.rand(height, width, 3, generator=generator), f"picture number {n}")
            for n, (width, height) in enumerate(self.sizes)
        ]


Trainer = Callable[[Job], Mapping[str, Tensor]]


# ---------------------------------------------------------------- the two trainers


def ours(job: Job) -> Mapping[str, Tensor]:
    pictures = [
        Picture(f"{n}", pixels.shape[1], pixels.shape[0], caption, pixels=pixels)
        for n, (pixels, caption) in enumerate(job.pictures())
    ]
    dataset = Dataset(tuple(pictures), DatasetSettings(resolution=72, bucket_step=8, shortest_side=32))
    config = LoRAConfig.of(
        rank=RANK, alpha=ALPHA, targets="all linear and convolution", learning_rate=job.learning_rate,
        steps=job.steps, batch_size=job.batch_size, gradient_checkpointing=job.checkpointing, seed=job.seed,
        scheduler="constant", precision="fp32", save_precision="fp32",
    )  # fmt: skip
    with torch.inference_mode():  # as the host runs nodes
        return train_lora(graph_models(job.small), dataset, config, "test", start=job.start).lora


def core(job: Job) -> Mapping[str, Tensor]:
    """The core's node; pictures of several shapes go in as buckets."""
    with torch.inference_mode():
        return core_nodes(reloadable(job.small.model), job)


def core_without_reload(job: Job) -> Mapping[str, Tensor]:
    """The core's node with the model as it comes from the graph."""
    with torch.inference_mode():
        return core_nodes(job.small.model, job)


def core_nodes(model: Any, job: Job) -> Mapping[str, Tensor]:
    groups: dict[torch.Size, list[tuple[Tensor, Any]]] = {}
    for pixels, caption in job.pictures():
        latent = job.small.vae.encode(pixels[None])
        cond = job.small.clip.encode_from_tokens_scheduled(job.small.clip.tokenize(caption))
        groups.setdefault(latent.shape, []).append((latent, cond))
    if buckets := len(groups) > 1:
        latents = [{"samples": torch.cat([latent for latent, _ in group])} for group in groups.values()]
        positive = [[cond[0] for _, cond in group] for group in groups.values()]
    else:
        latents = [{"samples": latent} for group in groups.values() for latent, _ in group]
        positive = [cond for group in groups.values() for _, cond in group]
    settings = {
        "batch_size": job.batch_size, "steps": job.steps, "grad_accumulation_steps": 1,
        "learning_rate": job.learning_rate, "rank": RANK, "optimizer": "AdamW", "loss_function": "MSE",
        "seed": job.seed, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False,
        "algorithm": "LoRA", "gradient_checkpointing": job.checkpointing, "checkpoint_depth": 1, "offloading": False,
        "existing_lora": existing(job.start), "bucket_mode": buckets, "bypass_mode": False,
    }  # fmt: skip
    lists = {name: [value] for name, value in settings.items()}
    lora, _, _ = TrainLoraNode.execute([model], latents, positive, **lists).args
    return lora


def existing(start: Mapping[str, Tensor] | None) -> str:
    """A LoRA to continue from as the core's node takes it: a file whose name tells its steps."""
    if start is None:
        return "[None]"
    path = Path(folder_paths.get_folder_paths("loras")[0]) / "start_1_steps_.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(start), path)
    return path.name


def reloadable(model: Any) -> Any:
    """A MODEL that the core can load anew, as one from its own Load Checkpoint: here "the disk" is the model itself."""

    def load(disable_dynamic: bool = False) -> Any:
        return comfy.model_patcher.ModelPatcher(fresh_copy(model.model), model.load_device, model.offload_device)

    clone = model.clone()
    clone.cached_patcher_init = (load, ())
    return clone


def fresh_copy(module: nn.Module) -> nn.Module:
    """A copy whose tensors carry gradients, as those that are loaded outside of inference mode."""
    with torch.inference_mode(False):
        memo: dict[int, Any] = {id(module.model_config): module.model_config}
        memo |= {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in module.parameters()}
        memo |= {id(b): b.detach().clone() for b in module.buffers()}
        return copy.deepcopy(module, memo)


# ---------------------------------------------------------------- what is seen of them


@dataclass
class Call:
    """One forward pass of the UNet."""

    x: Tensor
    timesteps: Tensor
    context: Tensor
    y: Tensor | None
    gradients: list[Tensor] = field(default_factory=list)
    """of the loss by the output; filled by the backward pass"""


@contextmanager
def watched(
    monkeypatch: pytest.MonkeyPatch, at_call: Callable[[int], None] = lambda number: None
) -> Iterator[list[Call]]:
    """The UNet's calls while a trainer runs. `at_call` gets each call's number before it is made."""
    calls: list[Call] = []
    inner = UNetModel.forward

    def forward(self: UNetModel, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, *args, **kwargs):
        at_call(len(calls) + 1)
        call = Call(x.detach().clone(), timesteps.detach().clone(), context.detach().clone(), y)
        calls.append(call)
        output = inner(self, x, timesteps, context, y, *args, **kwargs)
        if output.requires_grad:
            output.register_hook(lambda gradient: call.gradients.append(gradient.detach().clone()))
        return output

    with monkeypatch.context() as patch:
        patch.setattr(UNetModel, "forward", forward)
        yield calls


class PeakMemory(TorchDispatchMode):
    """The most bytes that were held at once by what was computed since `begin`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = False
        self.held = self.peak = 0
        self.counted = WeakIdKeyDictionary()

    def begin(self) -> None:
        self.counts = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if self.counts and isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.counted:
            return
        self.counted[storage] = size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size


def rows_of(call: Call) -> int:
    return call.x.shape[0]


# ---------------------------------------------------------------- the checks


@pytest.fixture
def bench(lora_folder: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the checks need of pytest."""
    return SimpleNamespace(monkeypatch=monkeypatch, folder=folders)


def each_picture_has_its_own_caption(trainer: Trainer, bench: SimpleNamespace) -> None:
    with watched(bench.monkeypatch) as calls:
        trainer(Job(batch_size=2))
    rows = sum(rows_of(call) for call in calls)
    assert rows == 2 * 2, f"two steps of batch 2 ran the model on {rows} pairs"
    for call in calls:
        captions = {tuple(row.flatten()[:2000].tolist()) for row in call.context}
        assert len(captions) == rows_of(call), "pictures of a batch share a caption"


def the_noisiest_tenth_has_a_tenth_of_the_weight(trainer: Trainer, bench: SimpleNamespace) -> None:
    """The gradient by the predicted noise, on average over each tenth of the timesteps."""
    with watched(bench.monkeypatch) as calls:
        trainer(Job(steps=80, learning_rate=1e-6))
    tenths: list[list[float]] = [[] for _ in range(10)]
    for call in calls:
        tenths[int(call.timesteps[0] // 100)].append(float(call.gradients[0].norm()))
    weights = [sum(tenth) / len(tenth) for tenth in tenths]
    share = weights[-1] / sum(weights)
    assert 0.05 < share < 0.2, f"the noisiest tenth has {share:.0%} of the weight"


def latents_are_scaled_into_model_space(trainer: Trainer, bench: SimpleNamespace) -> None:
    """Also where pictures have several shapes. x = (x_0 + sigma n) / sqrt(1 + sigma^2), so x tells x_0's deviation."""
    job = Job(sizes=(SQUARE, SQUARE, WIDE, WIDE), steps=24)
    with watched(bench.monkeypatch) as calls:
        trainer(job)
    sampling = job.small.model.get_model_object("model_sampling")
    found = []
    for call in calls:
        sigma = float(sampling.sigma(call.timesteps[0].float()))
        if sigma < 1.0:
            found.append(float(call.x.square().mean()) * (1 + sigma**2) - sigma**2)
    latents = [
        host.to_model_space(job.small.model, host.encode_pixels(job.small.vae, pixels[None]))
        for pixels, _ in job.pictures()
    ]
    wanted = sum(float(latent.square().mean()) for latent in latents) / len(latents)
    ratio = (sum(found) / len(found) / wanted) ** 0.5
    assert 0.8 < ratio < 1.25, f"latents are {ratio:.2f} times as large as the model's"


def each_picture_has_its_own_size(trainer: Trainer, bench: SimpleNamespace) -> None:
    with watched(bench.monkeypatch) as calls:
        trainer(Job(models.sdxl(), sizes=(SQUARE, WIDE, TALL), steps=12))
    shapes = {tuple(call.x.shape[-2:]) for call in calls}
    sizes = {tuple(call.y[0, models.WIDTH :].tolist()) for call in calls if call.y is not None}
    assert len(shapes) == 3, "not every picture was seen"
    assert len(sizes) == 3, f"SDXL was told {len(sizes)} sizes of pictures of three"


def any_loader_will_do(trainer: Trainer, bench: SimpleNamespace) -> None:
    job = Job()
    assert job.small.model.cached_patcher_init is None
    assert any(tensor.any() for key, tensor in trainer(job).items() if "lora_up" in key)


def nothing_is_loaded_again(trainer: Trainer, bench: SimpleNamespace) -> None:
    job = Job()
    loaded = []

    def load(disable_dynamic: bool = False) -> Any:
        loaded.append(1)
        return reloadable(job.small.model).cached_patcher_init[0]()

    job.small.model.cached_patcher_init = (load, ())
    trainer(job)
    assert not loaded, "the model was loaded again"


def no_base_weight_gets_a_gradient(trainer: Trainer, bench: SimpleNamespace) -> None:
    """A tensor of a weight's shape that is kept for the backward pass and wants a gradient is W + BA in full."""
    job = Job(sizes=(SQUARE,), steps=1)
    shapes = {tuple(p.shape) for p in job.small.model.model.diffusion_model.parameters() if p.dim() > 1}
    kept: list[tuple[tuple[int, ...], bool]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append((tuple(tensor.shape), tensor.requires_grad))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer(job)
    assert kept, "nothing was seen"
    full = [shape for shape, wants_gradient in kept if wants_gradient and shape in shapes]
    assert not full, f"{len(full)} gradients have the size of a base weight, as {full[0]}"


def checkpointing_saves_memory(trainer: Trainer, bench: SimpleNamespace) -> None:
    """The most memory of one step; about nine pairs each, since the core makes pairs of all pictures and captions."""
    batch_size = 9 if trainer is ours else 3
    peaks = []
    for checkpointing in (False, True):
        memory = PeakMemory()
        with memory, watched(bench.monkeypatch, lambda number, memory=memory: memory.begin()):
            trainer(Job(sizes=(SQUARE,) * 9, steps=1, batch_size=batch_size, checkpointing=checkpointing))
        peaks.append(memory.peak)
    assert peaks[1] < 0.7 * peaks[0], f"checkpointing takes {peaks[1] / peaks[0]:.0%} of the memory"


def alpha_stays(trainer: Trainer, bench: SimpleNamespace) -> None:
    lora = trainer(Job(steps=3, learning_rate=1e-2))
    alphas = {float(tensor) for key, tensor in lora.items() if key.endswith(".alpha")}
    assert len(alphas) == 1, f"alpha was trained: there are {len(alphas)} values of it"


def the_seed_decides_all(trainer: Trainer, bench: SimpleNamespace) -> None:
    results = []
    for other in (1, 2):
        torch.manual_seed(other)
        results.append(trainer(Job(steps=1)))
    unlike = [key for key in results[0] if not torch.equal(results[0][key], results[1][key])]
    assert not unlike, f"{len(unlike)} tensors depend on more than the seed"


def norms_and_biases_stay(trainer: Trainer, bench: SimpleNamespace) -> None:
    differences = [key for key in trainer(Job()) if key.endswith((".diff", ".diff_b"))]
    assert not differences, f"{len(differences)} norms and biases were trained"


def an_interrupt_keeps_what_was_learned(trainer: Trainer, bench: SimpleNamespace) -> None:
    def stop(number: int) -> None:
        if number == 3:
            comfy.model_management.interrupt_current_processing()

    with (
        watched(bench.monkeypatch, stop),
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        trainer(Job(steps=20))
    files = list(bench.folder.rglob("*.safetensors"))
    assert files, "what was learned is lost"
    assert any(tensor.any() for key, tensor in load_file(files[0]).items() if "lora_up" in key)


def a_continued_lora_begins_where_it_ended(trainer: Trainer, bench: SimpleNamespace) -> None:
    """After one step of next to no learning rate the host makes the same weights of it."""
    job = Job(steps=1, learning_rate=1e-7)
    job.start = start_lora(job.small)
    before, after = applied(job.small, job.start), applied(job.small, trainer(job))
    assert before.keys() <= after.keys(), "layers are lost"
    plain = job.small.model.model.state_dict()
    for key, weight in before.items():
        change = (weight - plain[key]).norm()
        assert (after[key] - weight).norm() < 0.01 * change, f"{key} is another after continuing"


def start_lora(small: models.Small) -> dict[str, Tensor]:
    """LoRA with an alpha, LoHa, and a bias, each on a layer; ComfyUI's key names, which the core needs."""
    generator = torch.Generator().manual_seed(9)
    layers = [key.removesuffix(".weight") for key in host.layer_names(small.model) if "attn1.to_" in key][:2]
    weights = small.model.model.state_dict()
    tensors = {f"{layers[0]}.alpha": torch.tensor(8.0), f"{layers[1]}.alpha": torch.tensor(8.0)}
    out, width = weights[f"{layers[0]}.weight"].shape
    tensors[f"{layers[0]}.lora_up.weight"] = torch.randn(out, RANK, generator=generator)
    tensors[f"{layers[0]}.lora_down.weight"] = torch.randn(RANK, width, generator=generator)
    out, width = weights[f"{layers[1]}.weight"].shape
    for number in (1, 2):
        tensors[f"{layers[1]}.hada_w{number}_a"] = torch.randn(out, RANK, generator=generator)
        tensors[f"{layers[1]}.hada_w{number}_b"] = torch.randn(RANK, width, generator=generator)
    bias = next(key for key in weights if key.endswith("attn1.to_out.0.bias"))
    tensors[f"{bias.removesuffix('.bias')}.diff_b"] = torch.randn(weights[bias].shape, generator=generator)
    return tensors


def applied(small: models.Small, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that the host's loader changes, as it changes them."""
    model, _ = host.with_lora(small.model, None, lora, 1.0)
    weights = model.model.state_dict()
    return {
        key: comfy.lora.calculate_weight(patches, weights[key].clone().float(), key).detach()
        for key, patches in model.patches.items()
    }


def the_file_is_kohyas_and_tells_of_itself(trainer: Trainer, bench: SimpleNamespace) -> None:
    lora = trainer(Job())
    if trainer is ours:
        SaveLoRA.execute(lora, "saved")
    else:
        CoreSaveLoRA.execute(lora, "loras/saved")
    path = next(bench.folder.rglob("saved*.safetensors"))
    with safe_open(path, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata() or {}
    strangers = [key for key in keys if not key.startswith("lora_unet_")]
    assert not strangers, f"{len(strangers)} keys are not kohya's"
    assert metadata["ss_network_dim"] == str(RANK)


CHECKS: dict[Callable[[Trainer, SimpleNamespace], None], tuple[type[BaseException], str]] = {
    each_picture_has_its_own_caption: (AssertionError, "ran the model on 8 pairs"),
    the_noisiest_tenth_has_a_tenth_of_the_weight: (AssertionError, "the noisiest tenth has [4-9].% of the weight"),
    latents_are_scaled_into_model_space: (AssertionError, "times as large as the model's"),
    each_picture_has_its_own_size: (AssertionError, "SDXL was told 1 sizes"),
    any_loader_will_do: (RuntimeError, "Cannot create non-dynamic delegate"),
    nothing_is_loaded_again: (AssertionError, "the model was loaded again"),
    no_base_weight_gets_a_gradient: (AssertionError, "gradients have the size of a base weight"),
    checkpointing_saves_memory: (AssertionError, "of the memory"),
    alpha_stays: (AssertionError, "alpha was trained"),
    the_seed_decides_all: (AssertionError, "depend on more than the seed"),
    norms_and_biases_stay: (AssertionError, "norms and biases were trained"),
    an_interrupt_keeps_what_was_learned: (AssertionError, "what was learned is lost"),
    a_continued_lora_begins_where_it_ended: (AssertionError, "is another after continuing|layers are lost"),
    the_file_is_kohyas_and_tells_of_itself: (AssertionError, "keys are not kohya's"),
}
AS_IT_COMES = {any_loader_will_do, nothing_is_loaded_again}
"""Checks of how a trainer comes by the model."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_ours_has_not_the_cores_fault(check: Callable, bench: SimpleNamespace) -> None:
    check(ours, bench)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_check_finds_the_fault_in_the_core(check: Callable, bench: SimpleNamespace) -> None:
    error, words = CHECKS[check]
    with pytest.raises(error, match=words):
        check(core_without_reload if check in AS_IT_COMES else core, bench)
