"""Progress, interrupt, and the way to the page."""

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import psutil
import torch
from aiohttp import web
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from server import PromptServer

Interrupted = comfy.model_management.InterruptProcessingException


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

    @PromptServer.instance.routes.get(path)
    async def respond(_: web.Request) -> web.Response:
        return web.json_response(answer())
