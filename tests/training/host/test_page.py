"""What the host's page gets to show, over the host's own server object."""

import asyncio
import html
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from comfy_execution.utils import CurrentNodeContext
from lora_kiln.training.host.page import show_text
from server import BinaryEventTypes, PromptServer

from load_dataset_node import load, save

MARKUP = "<img src=x onerror=alert(1)>"
NODE = "7"
Heard = Callable[[], list[str]]


@pytest.fixture
def heard(host_server: PromptServer) -> Iterator[Callable[[], list[str]]]:
    """Makes the body a running node, and gives the texts that it has put on the page."""

    def texts() -> list[str]:
        host_server.loop.run_until_complete(asyncio.sleep(0))
        queued = [host_server.messages.get_nowait() for _ in range(host_server.messages.qsize())]
        return [bytes(data[4 + len(NODE) :]).decode() for event, data, _ in queued if event == BinaryEventTypes.TEXT]

    with CurrentNodeContext("prompt", NODE):
        yield texts


@pytest.mark.parametrize("text", [MARKUP, "a & b", "<b>", "&lt;", "plain text, 3 of 4", 'a\'s "b"', "\u5b57"])
def test_a_text_is_shown_as_it_stands_and_never_as_markup(heard: Heard, text: str) -> None:
    show_text(text)
    (shown,) = heard()
    assert "<" not in shown and html.unescape(shown) == text


def test_a_name_that_is_no_utf8_is_shown(heard: Heard) -> None:
    show_text("a\udce4.png")
    assert heard() == ["a?.png"]


def test_a_pictures_name_is_no_markup_on_load_dataset(heard: Heard, folders: Path) -> None:
    save(folders / "input" / "set")
    (folders / "input" / "set" / f"{MARKUP}.png").write_bytes(b"broken")
    load()
    texts = heard()
    assert any(MARKUP in html.unescape(text) for text in texts) and not any("<" in text for text in texts)
