"""`dev.py check`: what it reports, that it goes on after a failure, and that its report is nobody's business."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import environment
from check import arithmetic, disk, locks, run, versions
from check.ground import PREFIX, Ground, Removal, find_comfyui
from check.outcome import FAILED, NOT_THERE, PASSED, Check, FailedError, NotThereError, result_of, results
from check.private import Privacy, privacy
from check.table import CHECKS
from host import PACK

WINDOWS = "C:\\Users\\J\u00f6rg Weber"
HOME = Path("/home/J\u00f6rg Weber")


@pytest.fixture
def ground(folders: Path, host_dir: Path) -> Ground:
    return Ground(host_dir, folders / "output", folders)


def raising(error: BaseException):
    def check(ground: Ground) -> str:
        raise error

    return check


def test_a_check_that_raises_has_failed_and_the_others_go_on(ground: Ground):
    tried = [
        Check("a", "one", raising(ZeroDivisionError("by zero\nand more"))),
        Check("a", "two", raising(FailedError("wrong"))),
        Check("a", "three", raising(NotThereError("no GPU"))),
        Check("a", "four", lambda ground: "12 GB"),
    ]
    found = [(each.outcome, each.text) for each in results(tried, ground)]
    assert found == [
        (FAILED, "ZeroDivisionError: by zero"), (FAILED, "wrong"), (NOT_THERE, "no GPU"), (PASSED, "12 GB"),
    ]  # fmt: skip


def test_each_check_has_a_name_of_its_own_and_groups_stand_together():
    names = [(check.group, check.name) for check in CHECKS]
    assert len(set(names)) == len(names)
    groups = [check.group for check in CHECKS]
    assert list(dict.fromkeys(groups)) == [group for group, _ in itertools.groupby(groups)]
    assert not any(": " in check.name for check in CHECKS)


GPU_ALONE = {"GPU", "driver", "GPU memory", "allocator", "a bound holds", "pinned", "cuDNN", "as torch computes"}
MAY_LACK = {*GPU_ALONE, "memory efficient", "flash", "Triton"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.group}-{check.name}")
def test_on_this_machine_every_check_passes_or_says_what_is_lacking(check: Check, ground: Ground, lora_folder: Path):
    result = result_of(check, ground)
    assert result.text and "\n" not in result.text
    assert result.outcome == PASSED or (result.outcome == NOT_THERE and check.name in MAY_LACK), result.line()


def test_what_is_wrong_is_seen(ground: Ground, monkeypatch: pytest.MonkeyPatch):
    import torch
    from filelock import FileLock
    from lora_kiln.training.basics import files

    with monkeypatch.context() as patch:  # a disk that forgets
        patch.setattr(files.os, "replace", lambda source, target: None)
        assert result_of(Check("disk", "replace", disk.replace), ground).outcome == FAILED
    with monkeypatch.context() as patch:  # a system that locks nothing
        patch.setattr(FileLock, "acquire", lambda self, **options: None)
        assert "both processes" in result_of(Check("locks", "two", locks.two_processes), ground).text
    with monkeypatch.context() as patch:  # arithmetic that is a little off
        patch.setattr(torch, "matmul", lambda a, b: (a @ b) * (1.1 if a.dtype == torch.bfloat16 else 1.0))
        assert result_of(Check("precision", "bf16", arithmetic.products("bfloat16")), ground).outcome == FAILED
        assert result_of(Check("precision", "fp16", arithmetic.products("float16")), ground).outcome == PASSED
    with monkeypatch.context() as patch:  # a full disk
        patch.setattr(disk, "LEAST_FREE", 1e18)
        assert "checkpoints need" in result_of(Check("disk", "free", disk.free_space), ground).text
    with monkeypatch.context() as patch:  # a package that is too old
        patch.setattr(versions.importlib.metadata, "version", lambda name: "0.0.1")
        assert "filelock is 0.0.1" in result_of(Check("versions", "packages", versions.packages), ground).text
    with monkeypatch.context() as patch:  # long paths refused, as on Windows
        patch.setattr(disk, "_takes", lambda folder, length: length < 260)
        assert disk.long_path(ground).startswith("259 characters; more are refused")


def test_a_result_that_is_no_number_has_failed():
    import torch

    exact = [torch.ones(3), torch.ones(3)]
    assert arithmetic.near([torch.ones(3), torch.ones(3) * 1.001], exact, 0.01) == "error 1e-03"
    with pytest.raises(FailedError, match="error nan"):
        arithmetic.near([torch.ones(3), torch.full((3,), torch.nan)], exact, 0.01)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"PermissionError: denied: '{HOME}/pics/a.png'", "PermissionError: denied: '<home> .../a.png'"),
        (f"no such file {HOME}/.cache/x.so: gone", "no such file <home> .../x.so: gone"),
        (f"[WinError 32] '{WINDOWS}\\AppData\\Local\\x.bin'", "[WinError 32] '.../x.bin'"),
        (repr(f"{WINDOWS}\\ComfyUI\\output\\run.json"), "'.../run.json'"),
        ("D:\\Anna\\ComfyUI\\main.py failed", ".../main.py failed"),
        ("owned by j\u00f6rg weber on ATTIC-PC", "owned by <user> on <machine>"),
        ("/mnt/anna/x.txt, line 3", ".../x.txt, line 3"),
        ("copied with 12 GB/s and/or 1 / 2", "copied with 12 GB/s and/or 1 / 2"),
        ("two\nlines", "two lines"),
    ],
)  # fmt: skip
def test_names_and_places_are_taken_out(text: str, told: str):
    private = Privacy({"home": HOME}, {"J\u00f6rg Weber": "user", "attic-pc": "machine"})
    assert private.without(text) == told


def test_what_is_private_is_asked_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "Zo\u00eb"))
    for name in ("USER", "USERNAME", "LOGNAME"):
        monkeypatch.setenv(name, "zoe42")
    text = f"zoe42 has {os.environ['HOME']}/a, ZO\u00cb and {sys.prefix}/lib/x.py"
    assert privacy().without(text) == "<user> has <home> .../a, <user> and <python> .../x.py"


@pytest.mark.parametrize(
    ("folder", "environ", "found"),
    [
        ("/home/a/OneDrive - Firma/ComfyUI/output", {}, "OneDrive"),
        ("/clouds/b/ComfyUI", {"OneDriveCommercial": "/clouds/b"}, "OneDrive"),
        ("/Users/a/Library/Mobile Documents/x", {}, "iCloud Drive"),
        ("/home/a/ComfyUI/output", {"OneDrive": "/clouds/b"}, ""),
    ],
)
def test_a_folder_that_is_copied_to_a_cloud_is_named(folder: str, environ: dict[str, str], found: str):
    assert disk.synced_by(Path(folder), environ) == found


def test_comfyui_is_found_where_the_pack_lies_in_it(tmp_path: Path):
    comfyui = tmp_path / "ComfyUI"
    pack = comfyui / "custom_nodes" / "lora-kiln"
    for folder in (pack, comfyui / "comfy", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    (comfyui / "main.py").touch()
    assert find_comfyui(None, pack) == find_comfyui(str(comfyui), tmp_path / "elsewhere") == comfyui
    with pytest.raises(environment.Problem, match="--comfyui"):
        find_comfyui(None, tmp_path / "elsewhere")
    with pytest.raises(environment.Problem, match="has no main.py"):
        find_comfyui(str(tmp_path), pack)


def test_what_cannot_be_removed_is_said():
    assert run.nothing_left(Removal()) == "yes"
    with pytest.raises(FailedError, match="2 files .* such as a.bin"):
        run.nothing_left(Removal([Path("/x/a.bin"), Path("/x/b.bin")]))


SHORT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules["pytest"] = None  # which ComfyUI has not
import environment, check.run, check.outcome
class Table:
    CHECKS = [check.outcome.Check("some", name, run) for name, run in (
        ("folder", lambda ground: f"in {ground.folder} of {ground.comfyui}, {sys.argv[2:]}"),
        ("device", lambda ground: str(ground.device)),
        ("error", lambda ground: open(ground.folder / "gone")),
    )]
sys.modules["check.table"] = Table
from pathlib import Path
raise SystemExit(check.run.main(sys.argv[2], ["--cpu"], Path(sys.argv[1]).parent))
"""


def test_the_report_names_nobody_and_nothing_is_left(host_dir: Path, tmp_path: Path):
    """In a process of its own, isolated as Windows portable's Python is."""
    (tmp_path / "output").mkdir()
    listed = sorted(os.listdir(host_dir))
    command = [sys.executable, "-I", "-X", f"pycache_prefix={os.environ.get('PYTHONPYCACHEPREFIX', tmp_path)}"]
    program = SHORT.replace('["--cpu"]', f'["--cpu", "--output-directory", {str(tmp_path / "output")!r}]')
    done = subprocess.run([*command, "-c", program, str(PACK / "tests"), str(host_dir)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert [line[:9].strip() for line in lines[1:-1]] == ["passed", "passed", "failed", "passed"], done.stdout
    assert "device: cpu" in lines[2] and "FileNotFoundError" in lines[3]
    assert re.fullmatch(r"3 passed, 1 failed, 0 not there, in \d+ s\. Known names .*", lines[-1])
    assert [place for place in (str(tmp_path), str(host_dir), str(Path.home())) if place in done.stdout] == []
    assert PREFIX not in done.stdout
    assert os.listdir(tmp_path / "output") == [] and sorted(os.listdir(host_dir)) == listed
