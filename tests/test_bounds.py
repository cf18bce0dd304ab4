"""What is too large, too deep or of another kind is refused before it costs anything, and no file is ever run."""

from __future__ import annotations

import ast
import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_kiln.training import recipes
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data.captions import (
    LARGEST_CAPTION,
    LARGEST_METADATA,
    MOST_PROBLEMS,
    CaptionFileError,
    read_metadata,
    read_text,
)
from lora_kiln.training.data.folder_settings import LARGEST, read_folder_settings
from lora_kiln.training.data.pictures import PictureError, picture_facts, picture_size
from lora_kiln.training.lora.files import read_lora_file
from lora_kiln.training.lora.header import LARGEST_HEADER, read_header
from PIL import Image
from safetensors.torch import save_file

from host import PACK

# ---------------------------------------------------------------- captions and settings


def test_a_caption_file_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * LARGEST_CAPTION)
    assert len(read_text(tmp_path / "a.txt")) == LARGEST_CAPTION
    (tmp_path / "a.txt").write_text("x" * (LARGEST_CAPTION + 1))
    with pytest.raises(CaptionFileError, match=r"a.txt is larger than 100,000 bytes: shorten it"):
        read_text(tmp_path / "a.txt")


def test_metadata_has_an_end(tmp_path: Path) -> None:
    with (tmp_path / "metadata.jsonl").open("wb") as file:
        file.truncate(LARGEST_METADATA + 1)
    captions, problems = read_metadata(tmp_path)
    assert not captions and len(problems) == 1 and "metadata.jsonl is larger than" in problems[0]


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "1" * 5000,
        '{"file_name": ' + "1" * 5000 + "}",
        '{"file_name": "a", "text": 1e999}',
        '{"file_name": ["a"], "text": "b"}',
        "[1]",
        "null",
        '{"file_name": "a", "text": "' + "x" * LARGEST_CAPTION + '"}',
    ],
    ids=lambda line: line[:12],
)
def test_a_strange_line_costs_only_itself(tmp_path: Path, line: str) -> None:
    good = json.dumps({"file_name": "b.png", "text": "a cat"})
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n{good}")
    captions, problems = read_metadata(tmp_path)
    assert captions == {"b.png": "a cat"} and len(problems) == 1 and "line 1 is not an object" in problems[0]


def test_many_bad_lines_are_said_once(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("x\n" * 50_000)
    problems = read_metadata(tmp_path)[1]
    assert len(problems) == MOST_PROBLEMS + 1 and problems[-1] == "metadata.jsonl has 49980 more such lines."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# " + "x" * LARGEST, "larger than"),
        ("repeats = " + "1" * 5000, "is not TOML"),
        ("a = " + "[" * 4000, "nested"),
        (".".join("a" * 3000) + " = 1", "not known"),
        ("repeats = inf", "whole number"),
        ("loss_weight = nan", ""),
    ],
    ids=lambda value: value[:12],
)
def test_strange_settings_are_a_problem_in_words(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "dataset.toml").write_text(text)
    own, problems = read_folder_settings(tmp_path, "dataset.toml")
    assert (problem in problems[0]) if problem else own.set_values()


# ---------------------------------------------------------------- LoRA files


def file_of(path: Path, header: bytes, length: int | None = None, body: bytes = b"") -> Path:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + body)
    return path


def entry(**changes: object) -> bytes:
    return json.dumps(
        {"a.lora_down.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}
    ).encode()


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 2**63),
        (b"{}", 2**40),
        (b" " * 100, 1),
        (b"[" * 100_000, None),
        (b'{"a":' * 50_000, None),
        (b"[]", None),
        (b'{"a": ' + b"1" * 5000 + b"}", None),
        (entry(data_offsets=[0, 1e400]), None),
        (entry(data_offsets=[0, "x"]), None),
        (entry(shape=4), None),
        (entry(dtype="F32", data_offsets=[0]), None),
        (b'{"__metadata__": []}', None),
        (b'{"__metadata__": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}", None),
        (b"\xff\xfe{}", None),
        (entry(dtype="C64"), None),
        (entry(shape=[2**62, 2**62]), None),
        (entry(data_offsets=[4, 0]), None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_strange_header_is_refused(tmp_path: Path, header: bytes, length: int | None) -> None:
    with pytest.raises(InputError, match="x.safetensors"):
        read_lora_file(file_of(tmp_path / "x.safetensors", header, length, bytes(4)))


def test_a_giant_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(LARGEST_HEADER + 100)
    with pytest.raises(InputError, match="no safetensors file"):
        read_header(path)


DOWN, UP = "lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lora_unet_a.alpha": torch.ones(3)}, "an alpha is one"),
        ({"lora_unet_a.alpha": torch.tensor(torch.nan)}, "not finite"),
        ({DOWN: torch.full((2, 4), torch.inf)}, "not finite"),
        ({DOWN: torch.tensor(1.0)}, "which no factor has"),
        ({DOWN: torch.ones(0, 4)}, "holds no number"),
        ({"lora_unet_a.diff": torch.ones(0, 4)}, "holds no number"),
        ({UP: torch.ones(2, 2, 1, 1, 1, 1)}, "which no factor has"),
        ({"lora_unet_a.hada_w1_a": torch.ones(4)}, "which no factor has"),
    ],
)
def test_a_lora_of_impossible_numbers_is_refused(tmp_path: Path, changes: dict, problem: str) -> None:
    save_file({DOWN: torch.ones(2, 4), UP: torch.ones(4, 2), **changes}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=f"x.safetensors is broken: .*{problem}"):
        read_lora_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        "[" * 100_000,
        '{"unet.lora_alpha": 1e400}',
        '{"unet.lora_alpha": ' + "9" * 400 + "}",
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": 2, "unet.alpha_pattern": [1]}',
        '{"unet.lora_alpha": 2, "unet.alpha_pattern": {"a": null}}',
    ],
    ids=lambda text: text[-30:],
)
def test_strange_alphas_in_the_metadata_do_not_matter(tmp_path: Path, settings: str) -> None:
    tensors = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": settings})
    assert set(tensors) <= set(read_lora_file(tmp_path / "x.safetensors"))


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("read", [read_lora_file, read_header])
def test_a_pickle_is_not_opened(tmp_path: Path, read: Callable[[Path], object]) -> None:
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    for name in ("x", "y"):
        with pytest.raises(InputError):
            read(tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch ran']", "a: !!python/name:os.system", "a: &a [*a]"]
)
def test_a_recipe_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="YAML"):
        recipes.read(text)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A grey PNG that claims to be of this size; its pixels are few."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return start + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(13_100, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (16, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png(*size))
    with pytest.raises(PictureError, match="a.png (has too many pixels|is .* pixels: more than 170 million)"):
        picture_size(tmp_path / "a.png")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(ran) (w) file closefile\nshowpage\n"


def test_a_file_that_starts_a_program_stays_shut(tmp_path: Path) -> None:
    """Pillow reads PostScript by running Ghostscript, whatever the file's name."""
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    assert Image.open(tmp_path / "a.png").format == "EPS"
    with pytest.raises(PictureError, match="a.png is not a picture Pillow can read"):
        picture_facts(tmp_path / "a.png")


@pytest.mark.parametrize("packing", [1, 2])
def test_a_packed_bmp_is_not_decoded(tmp_path: Path, packing: int) -> None:
    """Pillow unpacks it in Python, pixel by pixel: this one would hold the server up for half a minute."""
    header = struct.pack("<IiiHHIIiiII", 40, 10_000, 10_000, 1, 8 if packing == 1 else 4, packing, 0, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header + bytes(2048))
    with pytest.raises(PictureError, match="a.bmp is a compressed BMP.*: save it as PNG"):
        picture_facts(tmp_path / "a.bmp")


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX", "SGI", "PDF"])
def test_a_picture_of_a_kind_that_is_not_offered_stays_shut(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png", kind)
    with pytest.raises(PictureError, match="is not a picture Pillow can read"):
        picture_facts(tmp_path / "a.png")


# ---------------------------------------------------------------- nothing that a file says is run

RUNS = {"eval", "exec", "compile", "__import__"}
RUNS_IN = {
    *("torch.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"),
    *("os.popen", "subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "numpy.load"),
    *("np.load", "marshal.loads", "shelve.open"),
}


OUR_PROGRAM = (
    "subprocess.Popen([sys.executable, *python_flags(), str(DOWNLOAD), json.dumps(sys.path), model_id, *FILES], "
    "stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ, "
    "creationflags=getattr(subprocess, 'CREATE_NO_WINDOW', 0))"
)
"""The one program that is started: our own, without a shell, with an id that `captioner.HUB_ID` has let through."""


def risky_calls(source: str) -> list[str]:
    """Calls that run, or may run, what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        is_template = isinstance(node.func, ast.Attribute) and node.func.attr in (
            "format",
            "format_map",
            "safe_substitute",
        )
        trusts = any(word.arg == "trust_remote_code" and ast.unparse(word.value) != "False" for word in node.keywords)
        if name in RUNS | RUNS_IN or trusts or (is_template and not isinstance(node.func.value, ast.Constant)):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", [p for r in ("nodes", "training") for p in sorted((PACK / r).rglob("*.py"))], ids=str)
def test_the_pack_runs_nothing_that_a_file_says(path: Path) -> None:
    allowed = [OUR_PROGRAM] if path == PACK / "training" / "data" / "hub" / "__init__.py" else []
    assert risky_calls(path.read_text("utf-8")) == allowed


@pytest.mark.parametrize(
    "source",
    ["eval(x)", "torch.load(p, weights_only=True)", "f(trust_remote_code=x)", "text.format(a=1)", "yaml.load(t)"],
)
def test_a_risky_call_is_seen(source: str) -> None:
    assert risky_calls(source)
