"""Captioners of the Hugging Face hub: downloaded by its library from a small hub of our own, or refused in words."""

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import comfy.model_management
import folder_paths
import huggingface_hub.constants
import pytest
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data import captioner, hub
from lora_kiln.training.data.captioner import FOLDER, CaptionSettings, caption_images
from lora_kiln.training.host import Interrupted
from PIL import Image

from training.data.test_captioner import blip

MODEL, COMMIT = "kiln/tiny-blip", "1" * 40


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and no models of one's own."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(tmp_path / FOLDER)], set()))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node showed."""
    texts: list[str] = []
    monkeypatch.setattr(captioner.host, "show_text", texts.append)
    return texts


@contextlib.contextmanager
def small_hub(files: Path) -> Iterator[str]:
    """As much of the hub as serves one model. Gives its address."""
    paths = {path.name: path for path in files.iterdir()}

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, content: bytes, **headers: str) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self) -> None:
            route = self.path.partition("?")[0]
            if route.startswith(f"/{MODEL}/resolve/"):
                content = paths[route.rpartition("/")[2]].read_bytes()
                self.answer(content, ETag=f'"{hash(content):x}"', X_Repo_Commit=COMMIT)
            elif "/tree/" in route:
                listed = [{"type": "file", "path": name, "size": path.stat().st_size, "oid": name}
                          for name, path in paths.items()]  # fmt: skip
                self.answer(json.dumps(listed).encode(), Content_Type="application/json")
            elif route.startswith(f"/api/models/{MODEL}"):
                siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in paths.items()]
                self.answer(json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}).encode())
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """One that takes calls and never answers, as behind a firewall. Gives where the calls come in."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def caption() -> list[str]:
    settings = CaptionSettings(max_new_tokens=4, num_beams=1)
    return caption_images(MODEL, [lambda: Image.new("RGB", (40, 40))], [False], settings, lambda *_: None)


def test_a_model_is_downloaded_once_and_then_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
):
    blip(tmp_path / "files")
    (tmp_path / "files" / "pytorch_model.bin").write_bytes(b"pickled")
    with small_hub(tmp_path / "files") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        first = caption()
    assert any(text.startswith(f"asking the Hugging Face hub for {MODEL}") for text in said)
    assert said[-1].startswith("loading the model")
    assert not list((tmp_path / "cache").rglob("*.bin"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert caption() == first


def test_without_a_network_it_says_at_once_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    place = tmp_path / FOLDER / MODEL
    since = time.monotonic()
    with pytest.raises(InputError, match=f"could not be downloaded: .*Connect to the network .* into {place}; or"):
        caption()
    assert time.monotonic() - since < 15


def test_a_hub_that_does_not_answer_is_not_waited_for_long(silent_hub: socket.socket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 1.0)
    with pytest.raises(InputError, match="the hub does not answer within 1 s"):
        caption()


def test_the_download_is_stopped_at_once(silent_hub: socket.socket, said: list[str]):
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.monotonic())
        comfy.model_management.interrupt_current_processing(True)

    threading.Timer(1.0, stop).start()
    with pytest.raises(Interrupted):
        caption()
    assert time.monotonic() - stopped[0] < 1.0
    assert said[0] == f"asking the Hugging Face hub for {MODEL}, 0 s"


LOAD_HUB = f"""
import importlib.util, subprocess, sys
spec = importlib.util.spec_from_file_location("hub", {str(hub.__file__)!r})
hub = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub)
"""
"""The module alone, in a Python that has neither ComfyUI nor the pack."""


def portable_python(folder: Path) -> Path:
    """A Python with a path file beside it, as in ComfyUI's portable build: isolated, and with no package installed."""
    folder.mkdir()
    python = Path(shutil.copy(Path(sys.executable).resolve(), folder / "python"))
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED"), "import site"]
    python.with_name("python._pth").write_text("\n".join(paths), "utf-8")
    return python


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python reads no path file")
def test_a_portable_python_downloads_with_the_packages_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = portable_python(tmp_path / "portable")
    ask = [python, "-c", "import sys, importlib.util as u; print(sys.flags.isolated, u.find_spec('huggingface_hub'))"]
    assert subprocess.run(ask, capture_output=True, text=True).stdout.split() == ["1", "None"]
    files = tmp_path / "Bücher 書"
    snapshots = files / "cache" / "models--kiln--tiny-blip" / "snapshots"
    files.mkdir()
    (files / "config.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(files / "cache"))
    monkeypatch.setattr(sys, "executable", str(python))
    with small_hub(files) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert hub.download_model(MODEL, lambda _: None) == snapshots / COMMIT


@pytest.mark.parametrize("flags", [["-s"], ["-E", "-Xutf8"], ["-I", "-S"], []], ids=" ".join)
def test_the_download_is_as_isolated_as_this_process(flags: list[str]):
    show = "print(*(getattr(sys.flags, name) for name in hub.PYTHON_FLAGS), flush=True)"
    again = "subprocess.run([sys.executable, *hub.python_flags(), '-c', sys.argv[1]])"
    command = [sys.executable, *flags, "-c", f"{LOAD_HUB}{show}\n{again}", LOAD_HUB + show]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    first, second = subprocess.run(command, capture_output=True, text=True, env=environ).stdout.splitlines()
    assert first == second and first.count("1") >= len(flags)


def call_about_the_model(server: socket.socket) -> socket.socket:
    """Its connection, unanswered; the library's other questions are answered with 404."""
    server.settimeout(60)
    while MODEL.encode() not in (call := server.accept()[0]).recv(4096):
        with call:
            call.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    return call


def test_the_download_ends_when_this_process_was_killed(silent_hub: socket.socket):
    code = f"{LOAD_HUB}hub.download_model({MODEL!r}, lambda _: None)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        call = call_about_the_model(silent_hub)
    finally:
        parent.kill()
        parent.wait()
    with call:
        call.settimeout(6)  # the download itself would wait for the hub 10 s
        assert call.recv(4096) == b""


def test_a_python_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InputError, match=r"could not be downloaded: Python could not be started for it \(.*nowhere"):
        caption()


def test_a_download_that_was_stopped_is_not_taken_for_whole(tmp_path: Path):
    folder = tmp_path / "cache" / "models--kiln--tiny-blip"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert hub.cached_model(MODEL) is None
    (snapshot / "model.safetensors").write_bytes(b"")
    assert hub.cached_model(MODEL) == snapshot
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001.safetensors"}}')
    assert hub.cached_model(MODEL) is None


@pytest.mark.parametrize("name", ["a/b--c", "a/b..c", "a/b.git", "a/b-"])
def test_an_id_that_the_hub_has_not_is_no_model(name: str) -> None:
    assert hub.cached_model(name) is None


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert hub.cached_model(MODEL) is None


def test_what_a_library_prints_is_passed_over() -> None:
    assert [hub._fact(line) for line in (b"Warning: hello", b"3", b'{"bytes": 5}')] == [{}, {}, {"bytes": 5}]
