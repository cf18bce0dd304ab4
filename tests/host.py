"""The real ComfyUI for tests, the demo and `dev.py serve`: a server, a client, saved workflows as prompts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
PACK = TESTS.parent
PACK_NAME = "lora-kiln"

JSON = dict[str, Any]
OnEvent = Callable[[str, JSON], None]


class HostError(RuntimeError):
    """The host could not be started or refused what was asked; the message says why."""


class PromptRejected(HostError):
    """The host found a prompt's inputs wrong. `node_errors` is its own answer."""

    def __init__(self, message: str, node_errors: JSON):
        super().__init__(message)
        self.node_errors = node_errors


class PromptFailed(HostError):
    """A node raised while the prompt ran. `error` is the data of the host's execution_error event."""

    def __init__(self, error: JSON):
        node, kind = error.get("node_type", "?"), error.get("exception_type", "?")
        super().__init__(f"{node}: {kind}: {str(error.get('exception_message', '')).strip()}")
        self.error = error


class PromptInterrupted(HostError):
    """The prompt was interrupted before it ended."""


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


# ---------------------------------------------------------------- the server


PATIENCE = 15
"""Silences of two seconds after which an event is taken for lost."""


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


def environment() -> dict[str, str]:
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
                env=environment(),
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


# ---------------------------------------------------------------- the client


class Client:
    """One page's worth of ComfyUI's API: HTTP by urllib, events by a websocket in a thread of its own.

    Use it as a context manager, or `close()` it.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.id = uuid.uuid4().hex
        self._events: queue.Queue[tuple[str, JSON]] = queue.Queue()
        self._connected = threading.Event()
        self._stop: Callable[[], object] | None = None

    def __enter__(self) -> Client:
        return self.connect()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- HTTP

    def request(self, path: str, data: object = None, method: str | None = None) -> bytes:
        """GET, or POST with a JSON body. Raises HostError with the host's own words."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with contextlib.suppress(json.JSONDecodeError):
                answer = json.loads(text)
                if isinstance(answer, dict) and "node_errors" in answer:
                    raise PromptRejected(_rejection(answer), answer["node_errors"]) from None
            raise HostError(f"{path} answered {error.code}: {text[:1000]}") from None
        except OSError as error:
            raise HostError(f"{self.url}{path} does not answer: {error}") from None

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def post(self, path: str, data: object) -> Any:
        text = self.request(path, data)
        return json.loads(text) if text else None

    def object_info(self) -> JSON:
        """Every node the host knows, by id."""
        return self.get("/object_info")

    def history(self, prompt_id: str) -> JSON | None:
        """What a prompt that has ended left: `outputs` by node, `status`. None before its end."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def view(self, image: Mapping[str, str]) -> bytes:
        """The bytes of a picture as a node's output names it: {filename, subfolder, type}."""
        return self.request("/view?" + urllib.parse.urlencode(image))

    def queue(self, prompt: JSON, workflow: JSON | None = None) -> str:
        """Queues a prompt in API format. Raises PromptRejected when any of its inputs is wrong."""
        self.connect()
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        answer = self.post("/prompt", {"prompt": prompt, "client_id": self.id, "extra_data": extra})
        if answer.get("node_errors"):  # the host drops the output concerned and runs the others
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            self.post("/interrupt", {"prompt_id": answer["prompt_id"]})
            raise PromptRejected(_rejection(answer), answer["node_errors"])
        return answer["prompt_id"]

    # -- events

    def connect(self) -> Client:
        """Opens the websocket, once. `queue` does it by itself, so that no event is missed."""
        if self._stop is None:
            threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True).start()
            if not self._connected.wait(30):
                raise HostError(f"{self.url}/ws does not answer.")
        return self

    def close(self) -> None:
        if self._stop is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended already
                self._stop()
            self._stop = None

    async def _listen(self) -> None:
        import aiohttp

        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={self.id}", max_msg_size=0) as socket,
            ):
                self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
                self._connected.set()
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        self._events.put((event["type"], event.get("data") or {}))
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        self._events.put(("binary", {"bytes": message.data}))
        except (aiohttp.ClientError, asyncio.CancelledError):
            pass
        self._events.put(("closed", {}))

    def events(self, prompt_id: str, timeout: float | None = None) -> Iterator[tuple[str, JSON]]:
        """Yields every (type, data) the host sends, a node's own events too, until the prompt has ended.

        Binary messages (sampling previews) come as ("binary", {"bytes": ...}).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ends = {"execution_success", "execution_error", "execution_interrupted"}
        is_told, missed = False, 0  # who is told of a prompt's start is told of its end, be it late
        while deadline is None or time.monotonic() < deadline:
            try:
                kind, data = self._events.get(timeout=2)
            except queue.Empty:
                missed += 1
                if (not is_told or missed > PATIENCE) and self.history(prompt_id):
                    return  # its end came by another way, before this socket or without it
                continue
            missed = 0
            if kind == "closed":
                raise HostError("The server closed the connection while the prompt ran.")
            is_told |= kind == "execution_start" and data.get("prompt_id") == prompt_id
            yield kind, data
            if kind in ends and data.get("prompt_id") == prompt_id:
                return
        raise HostError(f"The prompt did not end in {timeout:.0f} s.")

    def wait(self, prompt_id: str, on_event: OnEvent | None = None, timeout: float | None = None) -> JSON:
        """Waits for a prompt's end and gives its history. Raises PromptFailed or PromptInterrupted."""
        for kind, data in self.events(prompt_id, timeout):
            if on_event is not None:
                on_event(kind, data)
        for _ in range(100):  # the last event is sent a moment before the history is written
            if (entry := self.history(prompt_id)) is not None:
                break
            time.sleep(0.1)
        else:
            raise HostError(f"The prompt {prompt_id} ended and left no history.")
        for kind, data in entry.get("status", {}).get("messages", []):
            if kind == "execution_error":
                raise PromptFailed(data)
            if kind == "execution_interrupted":
                raise PromptInterrupted(f"The prompt was interrupted at node {data.get('node_id')}.")
        return entry

    def run(self, prompt: JSON, on_event: OnEvent | None = None, timeout: float | None = None) -> JSON:
        """Queues a prompt and waits for its end."""
        return self.wait(self.queue(prompt), on_event, timeout)


def _rejection(answer: JSON) -> str:
    """The host's errors in one line each: node, input, what is wrong."""
    lines = [
        f"{node.get('class_type')} (node {node_id}): {error['message']}: {error['details']}"
        for node_id, node in (answer.get("node_errors") or {}).items()
        for error in node.get("errors", [])
    ]
    error = answer.get("error") or {}
    lines = lines or [f"{error.get('message')}: {error.get('details')}" if isinstance(error, dict) else str(error)]
    return "\n".join(lines)


# ---------------------------------------------------------------- saved workflows

NEVER, BYPASS = 2, 4  # a node's `mode` in a saved workflow
NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "CURVE", "BOUNDING_BOX", "IMAGECOMPARE"}
CONTROLS = {"fixed", "increment", "decrement", "randomize"}


def workflow_to_prompt(workflow: JSON, object_info: JSON) -> JSON:
    """Turns a workflow as the page saves it into the API format that `/prompt` takes.

    Widget values are saved without names, in the order of the node's widgets, with extra values for "control
    after generate"; a link into a widget's input goes before the widget's own value. Muted nodes are left
    out, bypassed ones and reroutes are followed, primitives give their value. Subgraphs are not known here.

    Raises:
        HostError: for a node that the host does not know.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = dict(map(_link, workflow.get("links", [])))
    prompt: JSON = {}
    for node in nodes.values():
        kind = node["type"]
        if kind in NOTES | {"Reroute", "PrimitiveNode"} or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if kind not in object_info:
            raise HostError(f"The workflow has a node that this host does not know: {kind} (node {node['id']}).")
        inputs = _widget_values(node, object_info[kind])
        for slot in node.get("inputs") or []:
            if slot.get("link") is None:
                continue
            if (source := _source(slot["link"], nodes, links)) is not None:
                inputs[slot["name"]] = source
        prompt[str(node["id"])] = {
            "class_type": kind,
            "inputs": inputs,
            "_meta": {"title": node.get("title") or object_info[kind].get("display_name") or kind},
        }
    return prompt


def with_ids_of_its_own(prompt: JSON, prefix: str) -> JSON:
    """A prompt in API form with a word before each node's id.

    A page shows the runs of the node that it has under the same id: those of one test are none of another's.
    """

    def moved(value: Any) -> Any:
        is_link = isinstance(value, list) and len(value) == 2 and value[0] in prompt
        return [prefix + value[0], value[1]] if is_link else value

    return {
        prefix + key: {**node, "inputs": {name: moved(value) for name, value in node["inputs"].items()}}
        for key, node in prompt.items()
    }


def _link(link: list | JSON) -> tuple[int, tuple[int, int, str]]:
    """A saved link, in either of the page's two forms, as id and (origin node, origin slot, type)."""
    if isinstance(link, list):
        link_id, origin, slot, _, _, kind = link[:6]
        return link_id, (origin, slot, kind)
    return link["id"], (link["origin_id"], link["origin_slot"], link["type"])


def _source(link_id: int, nodes: dict[Any, JSON], links: dict[int, tuple[int, int, str]]) -> Any:
    """What a link brings: [node id, slot], a primitive's value, or None where nothing comes."""
    if link_id not in links:
        return None
    origin, slot, kind = links[link_id]
    node = nodes.get(origin)
    if node is None or node.get("mode", 0) == NEVER:
        return None
    if node["type"] == "PrimitiveNode":
        return (node.get("widgets_values") or [None])[0]
    if node["type"] != "Reroute" and node.get("mode", 0) != BYPASS:
        return [str(origin), slot]
    inputs = node.get("inputs") or []
    same_type = [entry for entry in inputs if entry.get("type") in (kind, "*") or node["type"] == "Reroute"]
    same_slot = [entry for entry in same_type if entry is (inputs[slot] if slot < len(inputs) else None)]
    for entry in same_slot + same_type:
        if entry.get("link") is not None:
            return _source(entry["link"], nodes, links)
    return None


def _widget_values(node: JSON, info: JSON) -> JSON:
    """A node's widget values by input name."""
    saved = node.get("widgets_values")
    slots = {slot["name"] for slot in node.get("inputs") or [] if slot.get("widget")}
    if isinstance(saved, dict):
        names = [name for name, _, _ in _widgets(info["input"], slots, lambda name: saved.get(name))]
        return {name: saved[name] for name in names if name in saved}
    values, taken = list(saved or []), {}

    def take(name: str, default: object = None) -> Any:
        if values:
            taken[name] = values.pop(0)
        elif default is not None:
            taken[name] = default
        return taken.get(name)

    for name, kind, options in _widgets(info["input"], slots, lambda name: taken.get(name)):
        default = options.get("default", kind[0] if isinstance(kind, list) and kind else None)
        take(name, default)
        seed = kind == "INT" and name in ("seed", "noise_seed")
        if (options.get("control_after_generate") or seed) and values and values[0] in CONTROLS:
            values.pop(0)
            if kind == "COMBO" or isinstance(kind, list):
                values[:1] = []  # a combo's control comes with a filter
    return taken


def _widgets(
    inputs: JSON, slots: set[str], value: Callable[[str], Any], prefix: str = ""
) -> Iterator[tuple[str, Any, JSON]]:
    """Yields (name, type, options) of the inputs that are widgets, in the page's order.

    A dynamic combo is followed by the inputs of the option that `value` gives for it, named `combo.input`.
    """
    for section in ("required", "optional"):
        for name, spec in (inputs.get(section) or {}).items():
            kind, options, name = spec[0], spec[1] if len(spec) > 1 else {}, prefix + name
            if kind == "COMFY_DYNAMICCOMBO_V3":
                yield name, kind, options
                for option in options.get("options", []):
                    if option["key"] == value(name):
                        yield from _widgets(option["inputs"], slots, value, f"{name}.")
                continue
            is_widget = isinstance(kind, list) or kind in WIDGETS or name in slots
            if is_widget and not options.get("forceInput"):
                yield name, kind, options


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
        os.execve(command[0], command, environment())
    process = subprocess.Popen(command, env=environment())
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
