"""The running node as ComfyUI shows it: its id, progress, text and interrupt; the log; events to the page."""

import html
import logging
from collections.abc import Callable
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


def send(event: str, data: dict[str, Any]) -> None:
    """Sends a websocket event to every open page; does nothing without a server."""
    instance = getattr(PromptServer, "instance", None)
    if instance is not None:
        instance.send_sync(event, data)


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
        instance.send_progress_text(escaped.encode(errors="replace"), node_id)  # a file's name may be no UTF-8


def progress_bar(total: int) -> Callable[[int], None]:
    """The host's progress bar for the running node, as a function of the number of steps done."""
    bar = comfy.utils.ProgressBar(total)
    return lambda done: bar.update_absolute(done, total)


def raise_if_interrupted() -> None:
    """Raises `Interrupted` if the user has cancelled the prompt."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def log(message: str, *args: Any) -> None:
    """Writes a line to the host's log; `args` are %-formatted as in `logging`."""
    logging.info("LoRA Kiln: " + message, *args)


def empty_output() -> Any:
    """An empty node output: nodes connected to it do not run."""
    return ExecutionBlocker(None)
