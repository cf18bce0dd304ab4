"""The threads in which requests are answered, in a server of their own."""

from __future__ import annotations

import asyncio
import threading

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from lora_kiln.training.host import routes
from server import PromptServer


def test_slow_requests_do_not_keep_others_waiting(host_server: PromptServer) -> None:
    """asyncio's own threads are five or six on a small machine: fewer than the requests that may be slow at a time."""
    go_on = threading.Event()
    for name in ("a", "b", "c"):
        routes.serve_get(f"/kiln/slow/{name}", lambda _: go_on.wait(20))
    routes.serve_get("/kiln/quick", lambda _: "here")
    app = web.Application()
    app.add_routes(host_server.routes)

    async def ask() -> str:
        async with TestClient(TestServer(app)) as client:
            slow = [asyncio.ensure_future(client.get(f"/kiln/slow/{name}")) for name in "abc" for _ in range(8)]
            await asyncio.sleep(0.2)
            try:
                return await (await asyncio.wait_for(client.get("/kiln/quick"), 10)).json()
            finally:
                go_on.set()
                await asyncio.gather(*slow)

    assert host_server.loop.run_until_complete(ask()) == "here"
