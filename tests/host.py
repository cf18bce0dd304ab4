"""A real ComfyUI server with this pack, for tests, the demo and `dev.py serve`: its workspace, start and end."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from client import Client, HostError

TESTS = Path(__file__).resolve().parent
PACK = TESTS.parent
PACK_NAME = "lora-kiln"


# ---------------------------------------------------------------- the workspace


def link(source: Path, target: Path) -> None:
    """Makes `target` stand for `source`: a symbolic link, else a junction (Windows), else a copy."""
    if target.is_symlink() or target.exists():
        if target.exists() and target.resolve() == source.resolve():
            return
        if target.is_dir() and not target.is_symlink():
            raise HostError(f"{target} is in the way of a link to {source}; move it away.")
        target.unlink()
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        junction = ["cmd", "/c", "mklink", "/J", str(target), str(source)]
        if os.name == "nt" and source.is_dir() and subprocess.run(junction, capture_output=True).returncode == 0:
            return
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


def make_workspace(workspace: Path, host_dir: Path, kit: Path | None = None) -> Path:
    """Lays out a base directory for the host, with this pack and, where given, the demo kit linked in.

    Whatever is in the folder already stays. Gives the folder back.
    """
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/captioners"):
        (workspace / name).mkdir(parents=True, exist_ok=True)
    for folder in (host_dir / "models").iterdir():
        if folder.is_dir():
            (workspace / "models" / folder.name).mkdir(exist_ok=True)
    (workspace / "models" / "checkpoints").mkdir(exist_ok=True)
    (workspace / "models" / "loras").mkdir(exist_ok=True)
    link(PACK, workspace / "custom_nodes" / PACK_NAME)
    for kind, folder in (("checkpoints", "checkpoints"), ("captioner", "captioners")):
        for item in sorted((kit / kind).iterdir()) if kit and (kit / kind).is_dir() else []:
            link(item, workspace / "models" / folder / item.name)
    return workspace


def import_pack() -> None:
    """Makes the clone's root the package `lora_kiln`: ComfyUI loads it by path, so it has no name of its own."""
    if "lora_kiln" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "lora_kiln", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lora_kiln"] = module
    spec.loader.exec_module(module)


# ---------------------------------------------------------------- the server


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def command_line(host_dir: Path, workspace: Path, port: int, args: Sequence[str]) -> list[str]:
    """How the host is started on a workspace: nothing is written into its source."""
    database = (workspace / "user" / "comfyui.db").resolve().as_posix()
    command = [sys.executable, str(host_dir / "main.py"), "--base-directory", str(workspace.resolve())]
    command += ["--port", str(port), "--database-url", f"sqlite:///{database}", "--disable-auto-launch"]
    if "--cpu" not in args and not has_cuda():
        command += ["--cpu", "--fp32-text-enc"]  # the default there, fp16, is four times slower on a processor
    if "--front-end-root" not in args and not importlib.util.find_spec("comfyui_frontend_package"):
        command += ["--front-end-root", str(workspace.resolve() / "user")]  # an API without pages
    return [*command, *args]


def server_environ() -> dict[str, str]:
    """This process's variables as the host needs them: tests/ off its path, its own folder on it."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    paths = [path for path in environ.pop("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != TESTS]
    return environ | {"PYTHONUNBUFFERED": "1"} | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


class Server:
    """A running ComfyUI with this pack, as a context manager.

    Args:
        host_dir: ComfyUI's source.
        workspace: its base directory, laid out by `make_workspace`.
        args: further arguments of its main.py; `--cpu` is added where there is no CUDA device.
        kit: a built demo kit to link in.
        port: the port to listen on; a free one by default.
        start_within: seconds until it must answer.
        through: a command that starts what its further arguments say, in its own process.
    """

    def __init__(
        self,
        host_dir: Path | str,
        workspace: Path | str,
        args: Sequence[str] = (),
        *,
        kit: Path | str | None = None,
        port: int | None = None,
        start_within: float = 180,
        through: Sequence[str] = (),
    ):
        self.host_dir, self.workspace = Path(host_dir), Path(workspace).resolve()
        self.args, self.kit = list(args), Path(kit) if kit else None
        self.port = port or free_port()
        self.start_within, self.through = start_within, list(through)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = self.workspace / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.first_log = ""
        """what it had printed when it first answered: custom nodes are loaded by then"""

    def __enter__(self) -> Server:
        make_workspace(self.workspace, self.host_dir, self.kit)
        command = command_line(self.host_dir, self.workspace, self.port, ["--disable-api-nodes", *self.args])
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.through, *command],
                env=server_environ(),
                cwd=self.workspace,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """All that the server has printed so far."""
        return self.log_file.read_text("utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def client(self) -> Client:
        return Client(self.url)

    def stop(self, patience: float = 20) -> None:
        """Ends the server by its own process id: politely, then not."""
        if self.process is None or not self.running:
            return
        self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends the server at once, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self.start_within
        while time.monotonic() < deadline:
            if not self.running:
                raise HostError(f"ComfyUI ended while starting. The end of its log:\n{self.log[-3000:]}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):
                self.first_log = self.log
                return
            time.sleep(0.25)
        raise HostError(f"ComfyUI did not answer in {self.start_within:.0f} s. Its log:\n{self.log[-3000:]}")


# ---------------------------------------------------------------- python -m host: the server for a person


def lay_out_demo(workspace: Path) -> None:
    """Puts the pictures that the demo's workflow names into the input folder, unless they are there."""
    from kit.concepts import Concept
    from kit.demo import FOLDER, SEED, write_data

    if not (workspace / "input" / FOLDER).exists():
        write_data(workspace / "input", Concept(SEED))


def main() -> int:
    """Starts the server in the foreground, in this process where the system can: Ctrl-C ends it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--host-dir", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("args", nargs="*", help="further arguments of ComfyUI's main.py, after --")
    options = parser.parse_args()
    make_workspace(options.workspace, options.host_dir, options.kit)
    if options.kit:
        lay_out_demo(options.workspace)
    args = ["--listen", options.listen, *options.args]
    command = command_line(options.host_dir, options.workspace, options.port, args)
    print(
        f"[kiln] http://{options.listen}:{options.port}, files in {options.workspace}; Ctrl-C ends it",
        flush=True,
    )
    if os.name == "posix":
        os.execve(command[0], command, server_environ())
    process = subprocess.Popen(command, env=server_environ())
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
