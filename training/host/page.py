"""The running node as ComfyUI shows it: its id, progress, text and interrupt; the log; events to the page."""

import html
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import psutil
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from server import PromptServer

Interrupted = comfy.model_management.InterruptProcessingException


def running_node() -> tuple[str, str]:
    """(prompt id, node id) of the running node; empty strings outside of a node."""
    context = get_executing_context()
    return (context.prompt_id, context.node_id) if context else ("", "")


class Telling:
    """Guards code that only tells a person how the work goes: an error in it ends nothing, an interrupt still does.

    Args:
        say: called with a sentence at the first error of each `what`; its traceback goes to the log.
    """

    def __init__(self, say: Callable[[str], Any]):
        self.say = say
        self._said: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Within the context an error is said, and goes no further.

        Args:
            what: is incomplete then, e.g. "The report".
        """
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:  # of any kind: what is shown must not cost what was learned
            if what not in self._said:
                self._said.add(what)
                log("%s", traceback.format_exc())
                self.say(f"{what} is incomplete ({first_line(error)}); nothing else is affected.")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class name if the message is empty."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def send(event: str, data: dict[str, Any]) -> None:
    """Sends a websocket event to every open page; does nothing without a server.

    Numbers that JSON does not have (NaN, infinity) become null: the host would drop the whole message, unsaid.

    Raises:
        TypeError: the data holds what JSON does not have.
        RuntimeError: the server is being shut down.
    """
    instance = getattr(PromptServer, "instance", None)
    if instance is not None:
        instance.send_sync(event, json.loads(json.dumps(data), parse_constant=lambda _: None))


def memory() -> dict[str, Any]:
    """This process's memory on the host's compute device, in bytes: {"used", "total", "device"}."""
    device = comfy.model_management.get_torch_device()
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return {"used": torch.cuda.memory_reserved(device), "total": facts.total_memory, "device": facts.name}
    used = psutil.Process().memory_info().rss
    return {"used": used, "total": psutil.virtual_memory().total, "device": device.type.upper()}


def show_text(text: str) -> None:
    """Shows a text on the running node as it stands; the host's page, which gets it, reads HTML."""
    instance = getattr(PromptServer, "instance", None)
    _, node_id = running_node()
    if instance is not None and node_id:
        escaped = html.escape(text, quote=False)
        with _telling("A node's text"):
            instance.send_progress_text(escaped.encode(errors="replace"), node_id)  # a file's name may be no UTF-8


def progress_bar(total: int, telling: Telling | None = None) -> Callable[[int], None]:
    """The host's progress bar for the running node, as a function of the number of steps done.

    Args:
        telling: hears of the bar's errors; None: the log does.
    """
    bar, told = comfy.utils.ProgressBar(total), telling or _telling

    def show(done: int) -> None:
        with told("ComfyUI's progress bar"):
            bar.update_absolute(done, total)

    return show


def raise_if_interrupted() -> None:
    """Raises `Interrupted` if the user has cancelled the prompt."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def log(message: str, *args: Any) -> None:
    """Writes a line to the host's log; `args` are %-formatted as in `logging`."""
    logging.info("LoRA Kiln: " + message, *args)


_telling = Telling(lambda sentence: log("%s", sentence))


def empty_output() -> Any:
    """An empty node output: nodes connected to it do not run."""
    return ExecutionBlocker(None)
