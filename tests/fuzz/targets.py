"""What is fuzzed: every reader of a file, or text, that a stranger may have written.

A target gets bytes and reads them as the product does. Only the errors that the reader documents may come out.
"""

from __future__ import annotations

import atexit
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lora_kiln.training import recipes
from lora_kiln.training.adapters.layer_rules import parse_layer_rules
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.basics.paths import PathRefused, check_parts, resolve
from lora_kiln.training.config import LoRAConfig, OptimizationConfig
from lora_kiln.training.data.buckets import Fit
from lora_kiln.training.data.captions import CaptionFileError, read_metadata, read_text
from lora_kiln.training.data.dataset import DatasetSettings
from lora_kiln.training.data.folder_settings import read_folder_settings
from lora_kiln.training.data.pictures import PictureError, load_alpha, load_mask, load_picture, picture_facts
from lora_kiln.training.host import LayerNames
from lora_kiln.training.learning.engine import EagerEngine
from lora_kiln.training.learning.loss_scale import LossScale
from lora_kiln.training.learning.optimizers import check_optimizer, make_optimizer
from lora_kiln.training.learning.picture_losses import PictureLosses
from lora_kiln.training.learning.step import Step
from lora_kiln.training.lora.describe import describe_lora
from lora_kiln.training.lora.export import FORMATS, as_format
from lora_kiln.training.lora.files import for_host, read_adapters, read_lora_file
from lora_kiln.training.lora.header import read_header
from lora_kiln.training.lora.keys import ENDINGS
from lora_kiln.training.lora.merge import Part, merge_loras
from lora_kiln.training.model.learner import Learner, Networks
from lora_kiln.training.run import checkpoints
from lora_kiln.training.run.history import stored_history
from lora_kiln.training.run.progress import Progress
from PIL import Image
from safetensors.torch import save
from torch import nn

from foreign_recipes import EASY, GUI, JOB, METADATA, MUSUBI, ONE_TRAINER, PIPE, PIPE_DATA, SIMPLE_TUNER, TOML

MEMORY = Path("/dev/shm")
SCRATCH = Path(tempfile.mkdtemp(prefix="lora-kiln-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
_owner = os.getpid()  # the fuzzer's forks end before it
atexit.register(lambda: os.getpid() == _owner and shutil.rmtree(SCRATCH, ignore_errors=True))


@dataclass(frozen=True)
class Target:
    """A reader under fire."""

    run: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    """what may come out: the errors that the reader documents"""
    seeds: Sequence[bytes]
    words: Sequence[str] = ()
    """what the format knows, for the fuzzer to put in"""

    def __call__(self, data: bytes) -> None:
        try:
            self.run(data)
        except self.allowed:
            pass


def of_file(
    name: str, read: Callable[[Path], object], allowed: tuple[type[Exception], ...], seeds: Sequence[bytes], **more: Any
) -> Target:
    """A target that writes the bytes into a file of this name and reads that."""

    def run(data: bytes) -> None:
        path = SCRATCH / name
        path.write_bytes(data)
        read(path)

    return Target(run, allowed, seeds, **more)


# ---------------------------------------------------------------- text


def as_text(data: bytes) -> str:
    """Any text that a page may send: broken characters come as halves."""
    return data.decode("utf-8", "surrogateescape")


def lora_metadata(data: bytes) -> None:
    """Metadata as the header's reader gives it: text to text."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = {"ss_network_dim": as_text(data), "ss_network_args": as_text(data), "ss_optimizer": as_text(data)}
    if isinstance(content, dict):
        recipes.read_metadata({key: str(value) for key, value in content.items()}, ["lora_unet_a.lora_down.weight"])


def fields(data: bytes) -> None:
    """The text fields of the nodes that have a grammar."""
    text = as_text(data[1:])
    kind = data[0] % 4 if data else 0
    if kind == 0:
        recipes.parse_changes(text)
    elif kind == 1:
        parse_layer_rules(text)
    elif kind == 2:
        check_optimizer(OptimizationConfig(optimizer_args=text), [1e-4])
    else:
        DatasetSettings(extra_resolutions=text).resolutions()


def folder_settings(path: Path) -> None:
    own, problems = read_folder_settings(path.parent, path.name)
    assert all(isinstance(problem, str) for problem in problems)
    DatasetSettings().of_folder(own)


def metadata_lines(path: Path) -> None:
    captions, problems = read_metadata(path.parent)
    assert all(isinstance(text, str) for text in (*captions, *captions.values(), *problems))


def names(data: bytes) -> None:
    """A name that is taken lies in its folder, whatever it is."""
    name = as_text(data)
    try:
        path = resolve("/".join(check_parts(name)), [SCRATCH])
    finally:
        path_of_any_form = resolve(name, [SCRATCH, Path("/data/pictures")])
    assert path.is_relative_to(SCRATCH) and ".." not in path.parts
    assert os.path.abspath(path_of_any_form) == str(path_of_any_form)


# ---------------------------------------------------------------- LoRA files

LAYERS = {
    f"diffusion_model.{path}.weight": LayerNames(
        f"lora_unet_{path.replace('.', '_')}", f"diffusion_model.{path}", parts, shape
    )
    for path, parts, shape in (
        ("a", (("unet.a", 0, 8),), (8, 8)),
        ("b.qkv", (("transformer.b.to_q", 0, 4), ("transformer.b.to_k", 4, 4)), (8, 6)),
        ("c", (), (4, 4, 3, 3)),
    )
}
SPELLINGS = [
    *(
        name
        for layer in LAYERS.values()
        for name in (layer.kohya, layer.comfy, *(path for path, _, _ in layer.diffusers))
    ),
    "lora_te_x",
    "nobody",
    "",
]
DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32),
    *(torch.uint8, torch.bool, torch.float8_e4m3fn),
)
SIDES = (0, 1, 2, 3, 4, 6, 8, 16)


def framed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def header(path: Path) -> None:
    """The first byte says whether the rest is a whole file, or a header that is put into a file that fits it."""
    data = path.read_bytes()
    if data[:1] == b"H":
        path.write_bytes(framed(data[1:], bytes(256)))
    else:
        path.write_bytes(data[1:])
    read_header(path)
    describe_lora(read_lora_file(path))


class Draw:
    """Choices out of bytes; zeros when they are used up."""

    def __init__(self, data: bytes):
        self.data = io.BytesIO(data)

    def below(self, count: int) -> int:
        return int.from_bytes(self.data.read(1), "little") % count

    def pick(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]


def shape_of(entry: str, shape: tuple[int, ...], rank: int) -> list[int]:
    """What an entry of an adapter of a layer has in a sound file."""
    out, into, *kernel = shape
    factors = {
        "lora_down.weight": [rank, into, *kernel],
        "lora_up.weight": [out, rank, *(1 for _ in kernel)],
        "alpha": [],
        "lora_mid.weight": [rank, rank, *kernel],
        "dora_scale": [1, into],
        "lora_magnitude_vector": [out],
        "hada_w1_a": [out, rank],
        "hada_w2_a": [out, rank],
        "hada_w1_b": [rank, into * math.prod(kernel)],
        "hada_w2_b": [rank, into * math.prod(kernel)],
        "lokr_w1": [2, 2],
        "lokr_w2": [out // 2, into // 2, *kernel],
        "lokr_w1_a": [2, rank],
        "lokr_w1_b": [rank, 2],
        "lokr_w2_a": [out // 2, rank],
        "lokr_w2_b": [rank, into // 2 * math.prod(kernel)],
        "oft_blocks": [out // 2, 2, 2],
        "diff": list(shape),
        "set_weight": list(shape),
        "diff_b": [out],
        "b_norm": [out],
        "w_norm": [out],
    }
    return factors.get(entry, [rank, rank])


KINDS = (
    (".lora_down.weight", ".lora_up.weight", ".alpha"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight", ".dora_scale"),
    (".lora_down.weight", ".lora_up.weight", ".diff_b"),
    (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".alpha"),
    (".lokr_w1", ".lokr_w2"),
    (".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".alpha"),
    (".oft_blocks", ".alpha"),
    (".diff", ".diff_b"),
    (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"),
    (".set_weight",),
    (".w_norm", ".b_norm"),
)
"""The ends of the keys that one layer has in a sound file."""


def some_lora(draw: Draw) -> bytes:
    """A file of adapters, sound but for what the bytes say: other shapes, kinds of numbers, keys and metadata."""
    tensors = {}
    for _ in range(1 + draw.below(4)):
        layer, rank, dtype = draw.pick(list(LAYERS.values())), draw.pick((1, 2, 4)), draw.pick(DTYPES[:3])
        name = draw.pick([layer.kohya, layer.comfy, *(path for path, _, _ in layer.diffusers), *SPELLINGS])
        for ending in draw.pick(KINDS):
            shape, oddity = shape_of(ENDINGS[ending], layer.shape, rank), draw.below(64)
            if oddity == 1:
                shape = [draw.pick(SIDES) for _ in range(draw.below(6))]
            elif oddity == 2:
                dtype = draw.pick(DTYPES)
            elif oddity == 3:
                ending = draw.pick(list(ENDINGS))
            value = torch.nan if oddity == 4 else draw.pick((1.0, 0.0, -3.0, 1e-30, 60_000.0))
            tensors[name + ending] = torch.full(shape, value).to(dtype)
    settings = draw.data.read().decode("utf-8", "replace")
    return save(tensors, {"lora_adapter_metadata": settings, "ss_network_args": settings} if settings else None)


def lora_tensors(path: Path) -> None:
    """All that is done with a LoRA once it was read; what one of the uses refuses, the next may take."""
    draw = Draw(path.read_bytes())
    path.write_bytes(some_lora(draw))
    lora = read_lora_file(path)
    uses: list[Callable[[], object]] = [
        lambda: describe_lora(lora),
        lambda: [
            adapter.difference() for adapter in read_adapters(lora, LAYERS).adapters.values() if adapter.kind == "lora"
        ],
        lambda: for_host(lora, LAYERS),
        *(lambda form=form: as_format(lora, form, LAYERS, "fp16") for form in FORMATS),
        lambda: merge_loras(
            [Part(lora, 0.5, "lora_1"), Part(lora, 1.0, "lora_2")], 2, LAYERS.values(), torch.device("cpu")
        ),
        lambda: merge_loras([Part(lora, 1.0, "lora_1")], 0, (), torch.device("cpu")),
    ]
    for use in uses:
        try:
            use()
        except InputError:
            pass


def lora_seeds() -> list[bytes]:
    plain = {"lora_unet_a.lora_down.weight": torch.ones(2, 8), "lora_unet_a.lora_up.weight": torch.ones(8, 2)}
    whole = save({**plain, "lora_unet_a.alpha": torch.tensor(2.0)}, METADATA)
    length = int.from_bytes(whole[:8], "little")
    settings = b'{"unet.lora_alpha": 4, "unet.alpha_pattern": {"a": 2}, "unet.use_rslora": true}'
    text = json.loads(whole[8 : 8 + length]) | {"__metadata__": {"lora_adapter_metadata": settings.decode()}}
    return [b"W" + whole, b"H" + whole[8 : 8 + length], b"H" + json.dumps(text).encode()]


# ---------------------------------------------------------------- pictures

FIT = Fit(32, 16, 34, 16, 1, 0)


def picture(path: Path) -> None:
    """All that is done with a picture that was found good."""
    picture_facts(path)
    for read in (load_picture, load_mask, load_alpha):
        read(path, FIT)


def picture_seeds() -> list[bytes]:
    seeds = []
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    for mode, kinds in {
        "RGB": ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"),
        "RGBA": ("PNG", "WEBP"),
        "P": ("PNG", "GIF"),
        "L": ("PNG", "JPEG"),
        "I;16": ("PNG", "TIFF"),
        "CMYK": ("JPEG", "TIFF"),
        "1": ("PNG", "TIFF", "BMP"),
        "F": ("TIFF",),
    }.items():
        for kind in kinds:
            file = io.BytesIO()
            more = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
            Image.new(mode, (18, 17)).save(file, kind, **more)
            seeds.append(file.getvalue())
    return seeds


# ---------------------------------------------------------------- the folder of a run


def run_folder(path: Path) -> None:
    """A run of before as the page shows it: the same bytes as its record and as its losses."""
    (path.parent / "metrics.jsonl").write_bytes(path.read_bytes())
    json.dumps(stored_history(path.parent, path.parent.parent), allow_nan=False)


def checkpoint(path: Path) -> None:
    """What a run goes on from, with the digest that fits, as whoever wrote it would have put it there."""
    tensors = path.with_name(checkpoints.TENSORS)
    tensors.write_bytes(save(PAST.tensors))
    try:
        found = json.loads(path.read_bytes())
        found["digest"] = checkpoints._digest(tensors, found["step"], found["facts"])
        path.write_text(json.dumps(found))
    except (ValueError, LookupError, TypeError, RecursionError):
        pass  # it is read as it came
    state = checkpoints.read_state(path.parent)
    Progress().load_state_dict(state.state_dict())
    small_learner().load(state.tensors, state.facts, same_pictures=True)


def small_learner() -> Learner:
    """One that has made a step."""
    values, config, here = nn.Parameter(torch.ones(2)), LoRAConfig.of(precision="fp16"), torch.device("cpu")
    optimizer = make_optimizer(config.optimization, [{"params": [values], "learning_rate": 1e-4}])
    values.grad = torch.ones(2)
    optimizer.step()
    step = Step(lambda batch: (batch.x_0.mean(), batch.x_0), optimizer, config.optimization, loss_scale=LossScale(here))
    return Learner(
        networks=Networks(None, None, [], {}),
        predict=lambda x_t, sigma, cond: x_t,
        flats=[],
        optimizer=optimizer,
        ema=None,
        picture_losses=PictureLosses(1, here),
        engine=EagerEngine(step),
    )


def past() -> checkpoints.State:
    """The checkpoint of a run after one step."""
    progress = Progress(
        validations=[(1, 0.4)], rate_changes=[(0, 0.5)], sample_prompts=("a",), completed=1,
    )  # fmt: skip
    progress.add_step(0.5, 1e-4)
    tensors, plain = small_learner().state()
    return checkpoints.State.of({**tensors, **plain, **progress.state_dict()})


PAST = past()


RUN = {
    "format": 1, "workflow_id": "w", "prompt_id": "p", "node_id": "5", "name": "anna", "message": "", "state": "failed",
    "steps": 9, "epochs": 1, "elapsed": 2.5, "started_at": 1.0, "notes": ["a"], "step": 1, "loss": 0.5,
    "learning_rate": 1e-4, "validation_loss": 0.4, "mark": "note", "text": "b",
    "sample": {"step": 1, "prompt": "a", "prompt_index": 0, "filename": "a.png", "subfolder": "b"},
}  # fmt: skip

# ---------------------------------------------------------------- all of them

RECIPES = [
    *(TOML, json.dumps(GUI), yaml.safe_dump(JOB), json.dumps(JOB), json.dumps(METADATA)),
    *(EASY, MUSUBI, PIPE, PIPE_DATA, json.dumps(ONE_TRAINER), json.dumps(SIMPLE_TUNER)),
]
TARGETS: dict[str, Target] = {
    "recipe": Target(
        lambda data: recipes.read(as_text(data), "x.toml"), (InputError,), [text.encode() for text in RECIPES]
    ),
    "lora_metadata": Target(lora_metadata, (InputError,), [json.dumps(METADATA).encode()], words=list(METADATA)),
    "fields": Target(
        fields,
        (InputError,),
        [
            b'\0steps=2000 seed=7 targets="all linear"',
            b"\1out.* rank=8 alpha=4 lr=0.5 # x",
            b"\2betas=0.9,0.99 eps=1e-8",
            b"\x03768, 1024",
        ],
    ),
    "caption": of_file("a.txt", read_text, (CaptionFileError,), [b"a cat, sitting", "\ufeffa cat".encode("utf-16")]),
    "metadata": of_file(
        "metadata.jsonl",
        metadata_lines,
        (),
        [b'{"file_name": "a.png", "text": "a cat"}\n\n{"file_name": "b.png", "prompt": "b"}', b'{"text": [1e400, -1]}'],
        words=["file_name", "text", "caption", "prompt", "Infinity", "NaN", "\\ud800"],
    ),
    "settings": of_file(
        "dataset.toml",
        folder_settings,
        (InputError,),
        [
            b'repeats = 4\ntrigger_word = "ohwx"\nflip = true\ncaption_dropout = 0.05\nloss_weight = 1\n',
            b"a.b.c = 1979-05-27",
        ],
        words=[
            "repeats",
            "regularisation",
            "keep_tokens",
            "loss_weight",
            "masked_loss",
            "inf",
            "nan",
            "0x",
            "[[",
            '"""',
        ],
    ),
    "names": Target(
        names, (PathRefused,), [b"people/anna", b"../x", "．．/／".encode(), b"CON.txt", str(SCRATCH).encode() + b"/a"]
    ),
    "header": of_file(
        "x.safetensors",
        header,
        (InputError,),
        lora_seeds(),
        words=["__metadata__", "dtype", "shape", "data_offsets", "F32", "BF16", "I64", *ENDINGS],
    ),
    "lora": of_file("y.safetensors", lora_tensors, (InputError,), [bytes(range(k, 256, 3)) for k in range(12)]),
    "run": of_file("run.json", run_folder, (), [json.dumps(RUN).encode()], words=[*RUN, "NaN", "1e999"]),
    "checkpoint": of_file(
        "state.json",
        checkpoint,
        (checkpoints.Damaged,),
        [json.dumps({"format": checkpoints.FORMAT, "step": 1, "digest": "", "facts": PAST.facts}).encode()],
        words=[*PAST.facts, *PAST.facts["optimizer"], "NaN", "1e999"],
    ),
    "picture": of_file("p.png", picture, (PictureError,), picture_seeds()),
}
"""By name. A new reader of a stranger's file needs one line here."""
