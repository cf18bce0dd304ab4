"""Models of the Hugging Face hub, from the local cache or downloaded by the hub's library.

The library's calls can neither be interrupted nor limited in time, so a download is a process of its own (download.py)
that can be killed. It searches modules where this process does and ends when this process has ended.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

DOWNLOAD = Path(__file__).with_name("download.py")
FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.safetensors"]
ANSWER_SECONDS = 20.0
"""time limit for the hub's first answer"""
HEARTBEAT = 0.1


PYTHON_FLAGS = {
    "isolated": "-I",
    "ignore_environment": "-E",
    "no_user_site": "-s",
    "no_site": "-S",
    "utf8_mode": "-Xutf8",
}
"""Python's command line options by the names that `sys.flags` has for them"""


class HubError(Exception):
    """The download failed; the message says why."""


def cached_model(model_id: str) -> Path | None:
    """The folder of a model that was downloaded before and is complete, or None; the network is not used."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model_id, local_files_only=True, allow_patterns=FILES))
        return folder if _is_complete(folder) else None
    except (OSError, LocalEntryNotFoundError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # there is none, or it is damaged


def download_model(model_id: str, on_wait: Callable[[str], None]) -> Path:
    """Downloads a model; continues an earlier download.

    Args:
        on_wait: called with a line of progress many times a second; may raise to stop the download.

    Raises:
        HubError: the hub does not answer, has no such model, or the files could not be written.
    """
    environ = {"HF_HUB_ETAG_TIMEOUT": "10", "HF_HUB_DOWNLOAD_TIMEOUT": "10", **os.environ}
    try:
        process = subprocess.Popen(
            [sys.executable, *python_flags(), str(DOWNLOAD), json.dumps(sys.path), model_id, *FILES],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise HubError(f"Python could not be started for it ({error})") from error
    try:
        return _follow(process, model_id, on_wait)
    finally:
        process.kill()
        process.wait()


def python_flags() -> list[str]:
    """The options that give a new Python the isolation and the encoding of this one."""
    return [option for name, option in PYTHON_FLAGS.items() if getattr(sys.flags, name)]


def _follow(process: subprocess.Popen[bytes], model_id: str, on_wait: Callable[[str], None]) -> Path:
    """Reads the lines of download.py until it names the folder."""
    lines: queue.Queue[bytes] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
    start, progress = time.monotonic(), f"asking the Hugging Face hub for {model_id}"
    has_answered = False
    while True:
        seconds = time.monotonic() - start
        on_wait(f"{progress}, {seconds:.0f} s")
        if not has_answered and seconds > ANSWER_SECONDS:
            raise HubError(f"the hub does not answer within {ANSWER_SECONDS:.0f} s")
        with suppress(queue.Empty):
            fact = _fact(lines.get(timeout=HEARTBEAT))
            if "folder" in fact:
                return Path(fact["folder"])
            if "error" in fact:
                raise HubError(fact["error"])
            if "bytes" in fact:
                has_answered, progress = True, f"downloading {model_id}, {fact['bytes'] / 1e6:,.0f} MB, once"


def _listen(pipe: IO[bytes], lines: queue.Queue[bytes]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(b'{"error": "the download ended before its end"}')


def _fact(line: bytes) -> dict:
    """The JSON object of a line; empty for a line that a library printed."""
    try:
        fact = json.loads(line)
    except ValueError:
        return {}
    return fact if isinstance(fact, dict) else {}


def _is_complete(folder: Path) -> bool:
    """Whether the folder has all files that loading needs; a download may have been stopped."""
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / name).is_file() for name in ("config.json", *shards))
