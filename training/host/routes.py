"""HTTP routes of the pack on ComfyUI's server, and file uploads from its pages."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import comfy.cli_args
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from server import PromptServer

from ..basics.disk_errors import remedy
from ..basics.errors import InputError, Refusal
from ..basics.files import scratch_folder, sweep_scratch_folders

CONCURRENT_REQUESTS = 8
"""Requests per path that are worked on at a time; others wait."""
CONCURRENT_UPLOADS = 2
"""Received uploads that are worked on at a time; any number are received meanwhile."""
STALLED_SECONDS = 120.0
"""An upload that sends nothing for so long is given up."""
UPLOAD_PREFIX = ".kiln-upload-"
"""Of the names of the temporary folders that receive files."""
CHUNK_BYTES = 1 << 18
LONGEST_NAME_LIST = 1 << 22
"""Bytes of the list of file names in an upload."""


@dataclass(frozen=True)
class Content:
    """A response body that is not JSON."""

    data: bytes
    kind: str
    """MIME type."""


@dataclass(frozen=True)
class Upload:
    """One received file."""

    name: str
    """Path as sent by the page, unchecked."""
    path: Path
    """Temporary file with its content; deleted after the request."""
    is_whole: bool
    """False: it exceeded its size limit and was cut off there."""


@dataclass(frozen=True)
class UploadRules:
    """Limits of an upload."""

    folder: Callable[[], Path]
    """Parent of the temporary folder that receives the files."""
    largest: Callable[[str], int]
    """Size limit in bytes, by file name."""
    most_files: int
    most_bytes: int
    """Limit for all files together."""


UNREADABLE = (ValueError, RecursionError, AssertionError, aiohttp.ClientError, HttpProcessingError)
"""Errors of bodies that are neither multipart nor JSON."""
Handler = Callable[[web.Request], Awaitable[web.Response]]
_threads = ThreadPoolExecutor(32, "lora-kiln")
"""They answer requests. Those of asyncio are few on a small machine, and the host's own requests need them."""


def serve_json(path: str, answer: Callable[[], Any]) -> None:
    """Registers a GET route whose response is the function's return value as JSON."""
    serve_get(path, lambda _: answer())


def serve_get(path: str, answer: Callable[[dict[str, str]], Any], at_once: int = CONCURRENT_REQUESTS) -> None:
    """Registers a GET route.

    Args:
        answer: query -> value to be sent as JSON, or `Content`. It runs in a thread. An `InputError` becomes status
            400, a `Refusal` has its own status; the response is then `{"error": text}`.
        at_once: requests that are worked on at a time; others wait.
    """
    slots = asyncio.Semaphore(at_once)

    @PromptServer.instance.routes.get(path)
    @refuse_other_sites
    async def respond(request: web.Request) -> web.Response:
        return await _response(slots, lambda: answer(dict(request.query)))


def serve_post(path: str, answer: Callable[[dict[str, Any]], Any], at_once: int = CONCURRENT_REQUESTS) -> None:
    """Registers a POST route as `serve_get` does; `answer` gets the request's body, a JSON object.

    The Content-Type must be application/json, which a form on another site cannot send.
    """
    slots = asyncio.Semaphore(at_once)

    @PromptServer.instance.routes.post(path)
    @refuse_other_sites
    async def respond(request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return _error(415, f"Content-Type is {request.content_type}; it must be application/json.")
        body = await request.read()
        return await _response(slots, lambda: answer(_json_object(body)))


def serve_upload(path: str, rules: UploadRules, answer: Callable[[dict[str, str], list[Upload]], Any]) -> None:
    """Registers a POST route for file uploads; `answer` gets the query and the received files.

    The body is multipart/form-data: a JSON list of the files' names, then the files in that order. The header
    X-Kiln: 1 is required, which a form on another site cannot send.
    """
    sweep_scratch_folders(rules.folder(), UPLOAD_PREFIX)
    PromptServer.instance.routes.post(path)(upload_handler(rules, answer))


def upload_handler(rules: UploadRules, answer: Callable[[dict[str, str], list[Upload]], Any]) -> Handler:
    """The handler of a route for file uploads, as `serve_upload` describes it."""
    slots = asyncio.Semaphore(CONCURRENT_UPLOADS)

    @refuse_other_sites
    async def respond(request: web.Request) -> web.Response:
        if request.headers.get("X-Kiln") != "1" or request.content_type != "multipart/form-data":
            return _error(415, "Files must come as multipart/form-data with the header X-Kiln: 1.")
        try:
            await asyncio.to_thread(sweep_scratch_folders, rules.folder(), UPLOAD_PREFIX)
            with scratch_folder(rules.folder(), UPLOAD_PREFIX) as folder:
                uploads = await _received(request, rules, folder)
                if isinstance(uploads, web.Response):
                    return uploads
                return await _response(slots, lambda: answer(dict(request.query), uploads))
        except OSError as error:
            to_do = remedy(error, rules.folder())
            return _error(507, f"The upload cannot be written ({error.strerror}): {to_do}.")

    return respond


def refuse_other_sites(respond: Handler) -> Handler:
    """Wraps a handler so that requests from pages of other sites get status 403, as ComfyUI does itself since 0.20.

    With ComfyUI's `--enable-cors-header` they are answered.
    """

    @functools.wraps(respond)
    async def guarded(request: web.Request) -> web.Response:
        is_cross_site = request.headers.get("Sec-Fetch-Site") == "cross-site"
        if is_cross_site and not comfy.cli_args.args.enable_cors_header:
            return _error(403, "Requests from pages of other sites are refused.")
        return await respond(request)

    return guarded


async def _received(request: web.Request, rules: UploadRules, folder: Path) -> list[Upload] | web.Response:
    """The files of an upload, or a response that says why they cannot be received."""
    try:
        return await _receive(await request.multipart(), rules, folder)
    except Refusal as refusal:
        return _error(refusal.status, str(refusal))
    except (asyncio.TimeoutError, TimeoutError):
        return _error(408, f"The upload sent nothing for {STALLED_SECONDS:.0f} seconds and was given up: send it anew.")
    except UNREADABLE as error:
        return _error(400, f"The upload cannot be read: {str(error) or type(error).__name__:.200}")


async def _receive(parts: aiohttp.MultipartReader, rules: UploadRules, folder: Path) -> list[Upload]:
    """Writes each file of an upload to the folder, named by its index."""
    part, name_list = await _next_part(parts), b""
    while (chunk := await _next_chunk(part)) and len(name_list) < LONGEST_NAME_LIST:
        name_list += chunk
    names = json.loads(name_list)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refusal(400, "The first part of an upload must be a JSON list of its files' names.")
    if len(names) > rules.most_files:
        raise Refusal(413, f"An upload has {len(names)} files; it may have at most {rules.most_files}.")
    uploads, total = [], 0
    for number, name in enumerate(names):
        part, size, largest = await _next_part(parts), 0, rules.largest(name)
        with (folder / str(number)).open("xb") as file:
            while chunk := await _next_chunk(part):
                size += len(chunk)
                total += len(chunk)
                if total > rules.most_bytes:
                    raise Refusal(413, f"An upload may have at most {rules.most_bytes // 10**9} GB in all.")
                if size <= largest:
                    await asyncio.to_thread(file.write, chunk)
        uploads.append(Upload(name, folder / str(number), size <= largest))
    return uploads


async def _next_part(parts: aiohttp.MultipartReader) -> aiohttp.BodyPartReader:
    part = await asyncio.wait_for(parts.next(), STALLED_SECONDS)
    if not isinstance(part, aiohttp.BodyPartReader):
        raise Refusal(400, "An upload ends before its last file.")
    return part


async def _next_chunk(part: aiohttp.BodyPartReader) -> bytes:
    return await asyncio.wait_for(part.read_chunk(CHUNK_BYTES), STALLED_SECONDS)


async def _response(slots: asyncio.Semaphore, work: Callable[[], Any]) -> web.Response:
    """Runs `work` in a thread and slots its return value, `Refusal` or `InputError` into a response."""

    def response() -> web.Response:
        result = work()
        if isinstance(result, Content):
            headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
            return web.Response(body=result.data, content_type=result.kind, headers=headers)
        return web.json_response(result, dumps=lambda value: json.dumps(value, allow_nan=False))

    async with slots:
        try:
            return await asyncio.get_running_loop().run_in_executor(_threads, response)
        except Refusal as refusal:
            return _error(refusal.status, str(refusal), **refusal.details)
        except InputError as error:
            return _error(400, str(error))
        except OSError as error:
            return _error(507, f"A file or folder cannot be read or written: {error.strerror or error}.")


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
