"""Which requests the HTTP routes answer. `tests/test_dataset_page.py` asks a real server."""

from __future__ import annotations

import asyncio

import comfy.cli_args
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from lora_kiln.training.host.routes import refuse_other_sites


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
