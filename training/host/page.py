"""Progress, interrupt, and the way to the page."""

import asyncio
import functools
import json
import logging
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import comfy.cli_args
import comfy.model_management
import comfy.utils
import psutil
import torch
from aiohttp import web
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..basics.errors import InputError, Refusal

Interrupted = comfy.model_management.InterruptProcessingException
AT_ONCE = 8
"""requests to one path that are worked on at a time"""
UPLOADS_AT_ONCE = 2
CHUNK = 1 << 18
"""bytes"""
LONGEST_LIST = 1 << 22
"""bytes of the names of an upload's files"""


@dataclass(frozen=True)
class Content:
    """An answer to the page that is not JSON."""

    data: bytes
    kind: str
    """its MIME type"""


@dataclass(frozen=True)
class Upload:
    """A file that the page sent."""

    name: str
    """its path as the page says it, unchecked"""
    path: Path
    """where its content lies while the request is answered"""
    is_whole: bool
    """False = it was larger than it may be, and was cut"""


@dataclass(frozen=True)
class UploadRules:
    """What an upload may bring."""

    folder: Callable[[], Path]
    """where files lie until they are looked at"""
    largest: Callable[[str], int]
    """bytes that a file of this name may have"""
    most_files: int
    most_bytes: int
    """of all files together"""


def where() -> tuple[str, str]:
    """(prompt id, node id) of the node that is running; empty outside a run."""
    context = get_executing_context()
    return (context.prompt_id, context.node_id) if context else ("", "")


def send(event: str, data: dict[str, Any]) -> None:
    """Sends an event to every open page; without a server it does nothing."""
    instance = getattr(PromptServer, "instance", None)
    if instance is not None:
        instance.send_sync(event, data)


def memory() -> dict[str, Any]:
    """What this process holds of the training device's memory, in bytes: {"used", "total", "device"}."""
    device = comfy.model_management.get_torch_device()
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return {"used": torch.cuda.memory_reserved(device), "total": facts.total_memory, "device": facts.name}
    used = psutil.Process().memory_info().rss
    return {"used": used, "total": psutil.virtual_memory().total, "device": device.type.upper()}


def show_text(text: str) -> None:
    """Shows a line of text on the node that is running."""
    instance = getattr(PromptServer, "instance", None)
    _, node_id = where()
    if instance is not None and node_id:
        instance.send_progress_text(text, node_id)


def progress_bar(total: int) -> Callable[[int], None]:
    """The host's progress bar for the running node; call it with the steps done."""
    bar = comfy.utils.ProgressBar(total)
    return lambda done: bar.update_absolute(done, total)


def raise_if_interrupted() -> None:
    """Raises the host's own interrupt when the user has asked for it."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def say(message: str, *args: Any) -> None:
    """A line in the host's log."""
    logging.info("LoRA Kiln: " + message, *args)


def blocked() -> Any:
    """An output that has nothing in it: nodes behind it do not run."""
    return ExecutionBlocker(None)


def serve_json(path: str, answer: Callable[[], Any]) -> None:
    """Answers GET requests for a path with what the function returns then, as JSON."""
    serve_get(path, lambda _: answer())


def serve_get(path: str, answer: Callable[[dict[str, str]], Any], at_once: int = AT_ONCE) -> None:
    """Answers GET requests for a path with what the function makes of their query: JSON, or `Content`.

    The function runs beside the server's event loop. An `InputError` becomes status 400, a `Refusal` its own, with
    `{"error": text}`.

    Args:
        at_once: requests that are worked on at a time; the others wait.
    """
    turns = asyncio.Semaphore(at_once)

    @PromptServer.instance.routes.get(path)
    @_refuses_other_sites
    async def respond(request: web.Request) -> web.Response:
        return await _response(turns, lambda: answer(dict(request.query)))


def serve_post(path: str, answer: Callable[[dict[str, Any]], Any], at_once: int = AT_ONCE) -> None:
    """Likewise for POST requests whose body is a JSON object, which the function gets.

    No form of another site can send one: its Content-Type must be application/json.
    """
    turns = asyncio.Semaphore(at_once)

    @PromptServer.instance.routes.post(path)
    @_refuses_other_sites
    async def respond(request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return _error(415, f"Content-Type is {request.content_type}; it must be application/json.")
        body = await request.read()
        return await _response(turns, lambda: answer(_json_object(body)))


def serve_upload(path: str, rules: UploadRules, answer: Callable[[dict[str, str], list[Upload]], Any]) -> None:
    """Likewise for POST requests that bring files, which the function gets with the query.

    The body is multipart/form-data: first a JSON list of the files' names, then the files in that order. No form of
    another site can send it: it must have the header X-Kiln: 1.
    """
    turns = asyncio.Semaphore(UPLOADS_AT_ONCE)

    @PromptServer.instance.routes.post(path)
    @_refuses_other_sites
    async def respond(request: web.Request) -> web.Response:
        if request.headers.get("X-Kiln") != "1" or request.content_type != "multipart/form-data":
            return _error(415, "Files must come as multipart/form-data with the header X-Kiln: 1.")
        async with turns:
            with tempfile.TemporaryDirectory(prefix=".kiln-upload-", dir=rules.folder()) as folder:
                try:
                    uploads = await _receive(await request.multipart(), rules, Path(folder))
                except Refusal as refusal:
                    return _error(refusal.status, str(refusal))
                except (ValueError, RecursionError) as error:  # neither multipart nor JSON
                    return _error(400, f"The upload cannot be read: {error}")
                except OSError as error:
                    return _error(507, f"The upload cannot be written: {error.strerror}.")
                return await _response(asyncio.Semaphore(1), lambda: answer(dict(request.query), uploads))


Handler = Callable[[web.Request], Awaitable[web.Response]]


def _refuses_other_sites(respond: Handler) -> Handler:
    """What the host itself does from 0.20 on: a request that another site's page sends gets no answer.

    As there, `--enable-cors-header` lets them through.
    """

    @functools.wraps(respond)
    async def guarded(request: web.Request) -> web.Response:
        is_from_elsewhere = request.headers.get("Sec-Fetch-Site") == "cross-site"
        if is_from_elsewhere and not comfy.cli_args.args.enable_cors_header:
            return _error(403, "Requests from pages of other sites are refused.")
        return await respond(request)

    return guarded


async def _receive(parts: aiohttp.MultipartReader, rules: UploadRules, folder: Path) -> list[Upload]:
    """The files of an upload, each written to the folder under its number."""
    part, listed = await _next(parts), b""
    while (chunk := await part.read_chunk(CHUNK)) and len(listed) < LONGEST_LIST:
        listed += chunk
    names = json.loads(listed)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refusal(400, "The first part of an upload must be a JSON list of its files' names.")
    if len(names) > rules.most_files:
        raise Refusal(413, f"An upload has {len(names)} files; it may have at most {rules.most_files}.")
    uploads, total = [], 0
    for number, name in enumerate(names):
        part, size, largest = await _next(parts), 0, rules.largest(name)
        with (folder / str(number)).open("xb") as file:
            while chunk := await part.read_chunk(CHUNK):
                size += len(chunk)
                total += len(chunk)
                if total > rules.most_bytes:
                    raise Refusal(413, f"An upload may have at most {rules.most_bytes // 10**9} GB in all.")
                if size <= largest:
                    await asyncio.to_thread(file.write, chunk)
        uploads.append(Upload(name, folder / str(number), size <= largest))
    return uploads


async def _next(parts: aiohttp.MultipartReader) -> aiohttp.BodyPartReader:
    part = await parts.next()
    if not isinstance(part, aiohttp.BodyPartReader):
        raise Refusal(400, "An upload ends before its last file.")
    return part


async def _response(turns: asyncio.Semaphore, work: Callable[[], Any]) -> web.Response:
    """What work gives or raises, as a response; it runs in a thread of its own."""

    def packed() -> web.Response:
        result = work()
        if isinstance(result, Content):
            headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
            return web.Response(body=result.data, content_type=result.kind, headers=headers)
        return web.json_response(result, dumps=lambda value: json.dumps(value, allow_nan=False))

    async with turns:
        try:
            return await asyncio.to_thread(packed)
        except Refusal as refusal:
            return _error(refusal.status, str(refusal), **refusal.details)
        except InputError as error:
            return _error(400, str(error))


def _error(status: int, message: str, **details: Any) -> web.Response:
    return web.json_response({"error": message, **details}, status=status)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refusal(400, "The request must be a JSON object.")
    return value
