"""The tests' ground: the real host on the path, the pack under a fixed name, real servers and real pages.

`python3 dev.py test` sets LORA_KILN_HOST_DIR and LORA_KILN_KIT_DIR and starts pytest. Importing this file
makes the pack importable as `lora_kiln`: ComfyUI loads it by path, so it has no name of its own, and its root
must never be on sys.path, where its nodes/ would hide the host's nodes.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from host import Server, has_cuda, import_pack
from systems import below_tests, lacking
from windows_files import WindowsFiles

CI = os.environ.get("CI", "").lower() == "true"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _host_dir() -> Path:
    folder = os.environ.get("LORA_KILN_HOST_DIR", "")
    if not folder or not (Path(folder) / "main.py").exists():
        raise pytest.UsageError("LORA_KILN_HOST_DIR does not name ComfyUI's source: start with `python3 dev.py test`.")
    return Path(folder)


def host_version() -> str:
    """ComfyUI's own version, once it is on the path."""
    from comfyui_version import __version__

    return __version__


def _import_host(host_dir: Path, base: Path) -> None:
    """Puts the host on sys.path, on the CPU where there is no CUDA, with `base` as its base directory."""
    sys.path.insert(0, str(host_dir))
    from comfy.cli_args import args

    args.cpu = not has_cuda()
    args.base_directory = str(base)
    import utils.extra_config  # noqa: F401  (before nodes.py, as main.py does: some hosts' hides it behind comfy/utils.py)


torch.set_num_threads(1)  # the models are small: threads that wait for each other cost more than they give
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor do those of the servers
_base = tempfile.TemporaryDirectory(prefix="lora-kiln-tests-", ignore_cleanup_errors=True)  # gone when the process ends
_import_host(_host_dir(), Path(_base.name))
import_pack()


# ---------------------------------------------------------------- nothing is left out in silence

FIRST = """
    test_soak test_kernels test_leaks test_bench_memory test_bench_speed test_run_controls test_repeat test_workflow
    test_faults test_examples test_trainer test_recorder test_page test_streaming test_without_comfyui test_headless
""".split()
"""files that take long for their few tests: begun first, so that no worker is at one when the others have ended"""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Passes over a file whose tests this system cannot run: it may not even be importable here."""
    name = below_tests(collection_path)
    if not (reason := lacking(name)):
        return None
    config.stash.setdefault(_unread, []).append(f"{reason}: {name}")
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests that cannot be run here, and brings files into the order in which workers get them."""
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.stem not in FIRST, -sizes[item.path]))
    reasons = {item: reason for item in items if (reason := _reason_against(item))}
    config.hook.pytest_deselected(items=list(reasons))
    items[:] = [item for item in items if item not in reasons]
    told = [f"{reason}: {item.nodeid}" for item, reason in reasons.items()]
    config.stash[_left_out] = [*config.stash.get(_unread, []), *told]


def _reason_against(item: pytest.Item) -> str | None:
    if item.get_closest_marker("gpu") and not has_cuda():
        return "no CUDA device here"
    for marker in item.iter_markers("host"):
        if _numbers(host_version()) < _numbers(marker.args[0]):
            return f"host too old ({host_version()}, it needs {marker.args[0]})"
    return lacking(f"{below_tests(item.path)}::{item.name}", getattr(item, "fixturenames", ())) or None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


_left_out, _unread = pytest.StashKey[list[str]](), pytest.StashKey[list[str]]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Takes over what a worker left out; every worker leaves out the same."""
    node.config.stash[_left_out] = node.workeroutput.get("left_out", []) if hasattr(node, "workeroutput") else []


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    for line in config.stash.get(_left_out, []):
        terminalreporter.write_line(f"not run, {line}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test fails the run."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:  # a worker of several: it is said where all comes together
        told["left_out"] = session.config.stash.get(_left_out, [])
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if CI and reporter is not None and reporter.stats.get("skipped") and session.exitstatus == 0:
        reporter.write_line("\nCI=true: tests were skipped, and nothing may be", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def missing(what: str) -> None:
    """Skips the test on a person's machine, fails it in CI."""
    (pytest.fail if CI else pytest.skip)(what)


# ---------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def host_dir() -> Path:
    """ComfyUI's source."""
    return _host_dir()


@pytest.fixture(scope="session")
def kit_dir() -> Path:
    """The built demo kit: checkpoints/kiln-kit.safetensors and captioner/kiln-kit-blip/."""
    folder = os.environ.get("LORA_KILN_KIT_DIR", "")
    if not folder:
        missing("LORA_KILN_KIT_DIR is not set: start with `python3 dev.py test`.")
    return Path(folder)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The in-process host's input, output, temp and user folders, fresh for one test. Gives their parent."""
    import folder_paths

    for name in ("input", "output", "temp", "user"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def windows_files(tmp_path: Path) -> Iterator[WindowsFiles]:
    """Files below the test's folder that are in use stay as they are, as on Windows."""
    with WindowsFiles(tmp_path) as rules:
        yield rules


@pytest.fixture
def host_server() -> Iterator[Any]:
    """The host's server object in this process for one test: it queues messages in its `loop`, and listens nowhere."""
    import asyncio

    from server import PromptServer

    before = getattr(PromptServer, "instance", None)
    loop = asyncio.new_event_loop()
    yield PromptServer(loop)
    loop.close()
    if before is None:
        del PromptServer.instance
    else:
        PromptServer.instance = before


@pytest.fixture
def lora_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The in-process host's one folder of LoRAs, beside those."""
    import folder_paths

    path = folders / "loras"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(path)], {".safetensors"}))
    return path


@pytest.fixture(scope="session")
def server(host_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with the pack, and the kit where there is one, shared by all tests."""
    kit = os.environ.get("LORA_KILN_KIT_DIR")
    with Server(host_dir, tmp_path_factory.mktemp("workspace"), kit=kit) as running:
        # Else the templates open over the page at some moment of the first visit, and take the keys.
        running.client().post("/settings/Comfy.TutorialCompleted", True)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium for the tests of a file: to start one takes seconds.

    Playwright keeps an event loop running in this thread: a test in a file with pages cannot call asyncio.run.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("LORA_KILN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not path:
        missing("There is no Chromium here. Install it, or name it in LORA_KILN_CHROMIUM.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@contextlib.contextmanager
def fresh_page(browser: Any) -> Iterator[Any]:
    """A page that knows nothing of those before, closed afterwards."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield context.new_page()
    context.close()


@pytest.fixture
def page(server: Server, browser: Any) -> Iterator[Any]:
    """A fresh page of a real Chromium. Go to `server.url` and wait for `window.app`."""
    with fresh_page(browser) as page:
        yield page
