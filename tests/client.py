"""A client of a running ComfyUI, for tests and programs: its HTTP API, its events, its errors as exceptions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

JSON = dict[str, Any]
OnEvent = Callable[[str, JSON], None]
PATIENCE = 15
"""Timeouts of two seconds without any event, after which the end of a prompt is looked for in its history."""


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
