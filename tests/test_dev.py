"""The development commands' own parts; their whole is proved by running them."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest

import environment
from host import PACK

spec = importlib.util.spec_from_file_location("dev", PACK / "dev.py")
assert spec is not None and spec.loader is not None
dev = importlib.util.module_from_spec(spec)
sys.modules["dev"] = dev
spec.loader.exec_module(dev)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("LORA_KILN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def test_only_the_hosts_folder_is_unpacked(tmp_path: Path):
    sdist = archive(
        tmp_path / "sdist.tar.gz",
        {
            "pkg-1.0/vendor/ComfyUI/main.py": b"main",
            "pkg-1.0/vendor/ComfyUI/comfy/sd.py": b"sd",
            "pkg-1.0/setup.py": b"no",
            "pkg-1.0/vendor/ComfyUI/../../../../escaped.py": b"no",
            "/vendor/ComfyUI/../absolute.py": b"no",
        },
        links={"pkg-1.0/vendor/ComfyUI/link": "/etc/passwd"},
    )
    environment.extract(sdist, "vendor/ComfyUI", tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"main.py", "comfy/sd.py"}
    assert not list(tmp_path.rglob("escaped.py")) and not list(tmp_path.rglob("absolute.py"))


def test_a_broken_build_does_not_count(tmp_path: Path):
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        environment.build_once(tmp_path / "thing", "thing", fails)
    environment.build_once(tmp_path / "thing", "thing", lambda folder: (folder / "whole").touch())
    assert sorted(path.name for path in (tmp_path / "thing").iterdir()) == ["READY", "whole"]
    environment.build_once(tmp_path / "thing", "thing", fails)  # ready: not built again


def test_two_set_ups_build_once(tmp_path: Path):
    built: list[int] = []
    slow = threading.Event()

    def build(folder: Path) -> None:
        built.append(1)
        slow.wait(0.3)

    threads = [
        threading.Thread(target=environment.build_once, args=(tmp_path / "thing", "thing", build)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_the_kit_is_built_anew_when_what_it_is_made_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "tests" / "kit"
    (source / "weights").mkdir(parents=True)
    (source / "build.py").write_text("import sys\nfrom pathlib import Path\nPath(sys.argv[2], 'built').touch()\n")
    (source / "weights" / "unet.part0").write_bytes(b"1")
    monkeypatch.setattr(environment, "TESTS", tmp_path / "tests")

    def built() -> Path:
        kit = environment.demo_kit(Path(sys.executable), tmp_path)
        assert (kit / "built").exists() and (kit / "READY").exists()
        return kit

    first = built()
    (source / "demo.py").write_text("# uses the kit")
    assert built() == first
    (source / "weights" / "unet.part0").write_bytes(b"2")
    assert built() != first and first.exists()


def test_a_clone_without_a_kit_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "TESTS", tmp_path)
    assert environment.demo_kit(Path(sys.executable), tmp_path) is None


def test_an_unknown_host_is_named_with_the_known_ones():
    with pytest.raises(
        environment.Problem, match=r"ComfyUI 9\.9\.9 is not one of the hosts known here\. Known: 0\.30\.0"
    ):
        environment.host_source("9.9.9")


def test_the_cache_is_where_it_is_said_to_be(cache: Path):
    assert environment.cache_dir() == cache


@pytest.mark.parametrize(
    ("arguments", "rest"),
    [
        (["test", "-x", "-k", "layout and not page", "tests/test_dev.py"], None),
        (["test", "tests/test_dev.py", "-q"], None),
        (["serve", "--port", "9000", "--disable-dynamic-vram", "--preview-method", "none"], 3),
        (["bench", "memory", "--json", "x.json", "--add", "a", "b", "--parts", "scale", "--pictures", "2", "4"], 5),
    ],
)
def test_further_arguments_are_passed_on_in_their_order(arguments: list[str], rest: int | None):
    options, passed_on = dev.parser().parse_known_args(arguments)
    assert passed_on == (arguments[1:] if rest is None else arguments[-rest:])
    assert options.verb == arguments[0]


@pytest.mark.parametrize("verb", ["test", "fuzz", "soak", "leaks", "repeat", "demo", "serve", "bench", "check"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        dev.main([verb, "--help"])
    assert end.value.code == 0 and "--host VERSION" in capsys.readouterr().out


def test_a_module_is_told_where_everything_is(tmp_path: Path):
    host, kit = tmp_path / "host", tmp_path / "kit"
    setup = environment.Setup(tmp_path / "python", host, kit)
    command = setup.module("kit.demo", "--seed", 3)
    assert command[1:] == ["-m", "kit.demo", "--host-dir", str(host), "--kit", str(kit), "--seed", "3"]
    assert setup.environ()["PYTHONPATH"].split(os.pathsep)[0] == str(PACK / "tests")


@pytest.fixture
def portable(tmp_path: Path) -> Path:
    """The path of an embedded Python: one with a path file beside it."""
    folder = tmp_path / "python_embeded"
    folder.mkdir()
    python = folder / "python"
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED") or "", "import site"]
    (folder / "python._pth").write_text("\n".join(paths), "utf-8")
    shutil.copy(Path(sys.executable).resolve(), python)
    return python


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python reads no path file")
def test_a_portable_python_runs_our_programs(portable: Path, tmp_path: Path):
    setup = environment.Setup(portable, tmp_path, None)
    answer = partial(subprocess.run, capture_output=True, text=True, env=setup.environ())
    assert "No module named host" in answer([portable, "-m", "host", "--help"]).stderr
    told = answer(setup.program("host", "--help"))
    assert "--host-dir" in told.stdout and told.returncode == 0, told.stderr


def test_an_embedded_python_makes_no_environment_and_the_person_is_told_what_to_type(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "executable", str(portable))
    monkeypatch.setattr(sys, "argv", ["dev.py", "serve"])
    with pytest.raises(environment.Problem) as told:
        environment.make_venv(tmp_path / "env")
    assert "is an embedded Python, which cannot make a virtual environment" in str(told.value)
    assert f'\n  python_embeded\\python.exe -s "{PACK / "dev.py"}" serve\n' in str(told.value)
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize(
    ("system", "has_nvidia", "advised"),
    [("win32", True, True), ("win32", False, False), ("linux", True, False), ("darwin", False, False)],
)
def test_only_windows_with_an_nvidia_gpu_is_told_of_a_torch_for_it(
    system: str, has_nvidia: bool, advised: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(environment.shutil, "which", lambda name: "nvidia-smi" if has_nvidia else None)
    advice = environment.advice_on_torch("demo")
    assert bool(advice) == advised
    if advice:
        assert '  set "LORA_KILN_PYTHON=%CD%\\python_embeded\\python.exe"\n' in advice
        assert '  set "LORA_KILN_HOST_DIR=%CD%\\ComfyUI"\n' in advice and 'dev.py" demo\n' in advice


def test_a_python_without_its_comfyui_is_not_passed_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LORA_KILN_PYTHON", sys.executable)
    monkeypatch.delenv("LORA_KILN_HOST_DIR")
    with pytest.raises(environment.Problem, match="LORA_KILN_PYTHON is set without LORA_KILN_HOST_DIR"):
        environment.set_up(environment.NEWEST)


def test_a_browser_is_found_where_windows_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    edge = tmp_path / "Microsoft" / "Edge" / "Application" / "msedge.exe"
    edge.parent.mkdir(parents=True)
    edge.touch()
    monkeypatch.delenv("LORA_KILN_CHROMIUM", raising=False)
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    monkeypatch.setenv("ProgramFiles(x86)", str(tmp_path))
    assert environment.find_chromium() == str(edge)


def test_pre_commit_checks_with_the_ruff_of_the_tests():
    (pin,) = [tool for tool in environment.TOOLS if tool.startswith("ruff==")]
    hooks = (PACK / ".pre-commit-config.yaml").read_text("utf-8")
    assert hooks.count(f'["{pin}"]') == hooks.count("additional_dependencies") == 2


def test_every_test_that_ci_names_exists():
    """The oldest host runs a chosen set: a test that was moved would end that part before it begins."""
    text = (PACK / ".ci" / "run").read_text("utf-8")
    named = [word.partition("::") for word in text.split() if word.startswith("tests/")]
    assert named
    assert [path for path, _, _ in named if not (PACK / path).exists()] == []
    assert [test for path, _, test in named if test and f"def {test}(" not in (PACK / path).read_text("utf-8")] == []
