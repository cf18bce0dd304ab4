"""Which requests the HTTP routes answer. `tests/test_dataset_page.py` asks a real server."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import comfy.cli_args
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import BaseTestServer, TestServer, make_mocked_request
from lora_kiln.training.host import routes
from lora_kiln.training.host.routes import Upload, UploadRules, refuse_other_sites, upload_handler


@pytest.mark.parametrize(
    ("allowed", "site", "status"),
    [
        (None, "cross-site", 403),
        (None, "same-origin", 200),
        ("*", "cross-site", 200),
        ("https://pages.example", "cross-site", 200),
    ],
)
def test_pages_of_other_sites_are_refused_unless_the_host_lets_them_in(allowed, site, status, monkeypatch):
    monkeypatch.setattr(comfy.cli_args.args, "enable_cors_header", allowed)

    async def respond(_: web.Request) -> web.Response:
        return web.Response()

    request = make_mocked_request("POST", "/kiln/dataset/captions", {"Sec-Fetch-Site": site})
    assert asyncio.run(refuse_other_sites(respond)(request)).status == status


# ---------------------------------------------------------------- uploads

HEADERS = {"X-Kiln": "1", "Content-Type": "multipart/form-data; boundary=b"}
BEGIN = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
END = b"\r\n--b--\r\n"
WHOLE = BEGIN + b'["a.txt"]\r\n' + BEGIN + b"a cat" + END


def with_server(folder: Path, act: Callable[[BaseTestServer], Awaitable]):
    """What `act` returns; it gets a server that takes uploads into a folder and answers with their names."""

    def answer(query: dict[str, str], uploads: list[Upload]) -> list[str]:
        if "fail" in query:
            (folder / "missing" / "file").read_text()
        return [upload.name for upload in uploads]

    async def serve():
        app = web.Application()
        app.router.add_post("/upload", upload_handler(UploadRules(lambda: folder, lambda name: 100, 10, 1000), answer))
        async with TestServer(app) as server:
            return await asyncio.wait_for(act(server), 20)

    return asyncio.run(serve())


async def sent(server: BaseTestServer, body: bytes, path: str = "/upload") -> tuple[int, object]:
    async with ClientSession() as session, session.post(server.make_url(path), data=body, headers=HEADERS) as answer:
        return answer.status, json.loads(await answer.text())


async def stalled(server: BaseTestServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent half of an upload."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    headers = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    writer.write(f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {len(WHOLE)}\r\n{headers}\r\n".encode())
    writer.write(WHOLE[:-20])
    await writer.drain()
    return reader, writer


def test_uploads_that_stand_still_hold_up_no_other(tmp_path: Path) -> None:
    async def act(server: BaseTestServer):
        connections = [await stalled(server) for _ in range(4)]
        while len(list(tmp_path.iterdir())) < len(connections):
            await asyncio.sleep(0.02)
        answer = await sent(server, WHOLE)
        for _, writer in connections:
            writer.close()
        return answer

    assert with_server(tmp_path, act) == (200, ["a.txt"])


def test_an_upload_that_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "STALLED_SECONDS", 0.2)

    async def act(server: BaseTestServer):
        reader, writer = await stalled(server)
        line = await reader.readline()
        while list(tmp_path.iterdir()):
            await asyncio.sleep(0.02)
        writer.close()
        return line

    assert b" 408 " in with_server(tmp_path, act)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"--b\r\nX-Huge: " + b"x" * 100_000 + b"\r\n\r\n[]" + END, 400),
        (b"--b\r\n" + b"X-Many: x\r\n" * 50_000 + b"\r\n[]" + END, 400),
        (b"--b\r\nno colon here\r\n\r\n[]" + END, 400),
        (b"--b\r\nContent-Length: -5\r\n\r\n[]" + END, 200),
        (b"--b\r\nContent-Length: many\r\n\r\n[]" + END, 200),
        (b"--b\r\nContent-Transfer-Encoding: x\r\n\r\n[]" + END, 200),
        (b"no multipart", 400),
        (b"", 400),
        (b"--b", 400),
        (BEGIN + b"[" + b"9" * 5000 + b"]" + END, 400),
        (BEGIN + b"[" * 100_000 + END, 400),
        (BEGIN + b'["a.txt", "b.txt"]' + END, 400),
    ],
)
def test_an_upload_that_cannot_be_read_is_answered_in_words(tmp_path: Path, body: bytes, status: int) -> None:
    answered, said = with_server(tmp_path, lambda server: sent(server, body))
    assert answered in (status, 400) and (answered == 200 or said["error"])  # some releases of aiohttp refuse more
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_answered_in_words(tmp_path: Path) -> None:
    status, said = with_server(tmp_path, lambda server: sent(server, WHOLE, "/upload?fail"))
    assert status == 507 and "No such file" in said["error"]
    status, said = with_server(tmp_path / "missing", lambda server: sent(server, WHOLE))
    assert status == 507 and "cannot be written" in said["error"]


@pytest.mark.parametrize("kept", ["file", "folder"])
def test_an_upload_succeeds_whose_folder_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """On Windows a virus scanner may still read what was received; the next upload deletes it."""

    def refused(path: str, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file", path)

    with monkeypatch.context() as scanner:
        for name in ("unlink", "rmdir") if kept == "file" else ("rmdir",):
            scanner.setattr(os, name, refused)
        assert with_server(tmp_path, lambda server: sent(server, WHOLE)) == (200, ["a.txt"])
    (left,) = tmp_path.iterdir()
    for path in (*left.iterdir(), left):
        os.utime(path, (0, 0))
    assert with_server(tmp_path, lambda server: sent(server, WHOLE)) == (200, ["a.txt"])
    assert list(tmp_path.iterdir()) == []
