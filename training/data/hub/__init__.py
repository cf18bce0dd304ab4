"""Models of the Hugging Face hub: from its cache on this computer, else downloaded by its own library.

The library's calls can neither be stopped nor be told how long to try, so a download runs in a process of its own
(fetch.py), which ends with it, or when the person wants it to.
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

FETCH = Path(__file__).with_name("fetch.py")
FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.safetensors"]
ANSWER_SECONDS = 20.0
"""for which the hub's answer is waited for"""
HEARTBEAT = 0.1


class HubError(Exception):
    """The model could not be had; the message says why."""


def cached_model(model_id: str) -> Path | None:
    """The folder of a model that was downloaded before and is whole, without asking the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model_id, local_files_only=True, allow_patterns=FILES))
        return folder if _is_whole(folder) else None
    except (
        OSError,
        LocalEntryNotFoundError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):  # none, or a damaged one
        return None


def download_model(model_id: str, on_wait: Callable[[str], None]) -> Path:
    """Downloads a model; what an earlier try has brought is not brought again.

    Args:
        on_wait: is told what goes on, many times a second; may raise to end it at once.

    Raises:
        HubError: the hub does not answer, has no such model, or the files could not be written.
    """
    environ = {"HF_HUB_ETAG_TIMEOUT": "10", "HF_HUB_DOWNLOAD_TIMEOUT": "10", **os.environ}
    process = subprocess.Popen(
        [sys.executable, str(FETCH), model_id, *FILES], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
    )
    try:
        return _followed(process, model_id, on_wait)
    finally:
        process.kill()
        process.wait()


def _followed(process: subprocess.Popen[bytes], model_id: str, on_wait: Callable[[str], None]) -> Path:
    """What fetch.py says, a line of JSON a time, until it gives the folder."""
    said: queue.Queue[bytes] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_listen, args=(process.stdout, said), daemon=True).start()
    since, told = time.monotonic(), f"asking the Hugging Face hub for {model_id}"
    has_answered = False
    while True:
        seconds = time.monotonic() - since
        on_wait(f"{told}, {seconds:.0f} s")
        if not has_answered and seconds > ANSWER_SECONDS:
            raise HubError(f"the hub does not answer within {ANSWER_SECONDS:.0f} s")
        with suppress(queue.Empty):
            fact = _fact(said.get(timeout=HEARTBEAT))
            if "folder" in fact:
                return Path(fact["folder"])
            if "error" in fact:
                raise HubError(fact["error"])
            if "bytes" in fact:
                has_answered, told = True, f"downloading {model_id}, {fact['bytes'] / 1e6:,.0f} MB, once"


def _listen(pipe, said: queue.Queue[bytes]) -> None:
    for line in pipe:
        said.put(line)
    said.put(b'{"error": "the download ended before its end"}')


def _fact(line: bytes) -> dict:
    """What a line says; nothing where a library has printed it."""
    try:
        fact = json.loads(line)
    except ValueError:
        return {}
    return fact if isinstance(fact, dict) else {}


def _is_whole(folder: Path) -> bool:
    """Whether nothing is missing that loading needs; a download may have been stopped."""
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / name).is_file() for name in ("config.json", *shards))
