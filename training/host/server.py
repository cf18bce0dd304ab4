"""Folders, progress, interrupt, and the way to the page."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from aiohttp import web
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..problems import raise_if_any

ROOTS_VARIABLE = "LORA_KILN_ROOTS"
"""Folders outside ComfyUI's input folder that may be read, as the person who runs the server sets them."""

Interrupted = comfy.model_management.InterruptProcessingException


def data_roots() -> list[Path]:
    """Where pictures may be read from: the host's input folder, then what LORA_KILN_ROOTS allows."""
    allowed = [entry for entry in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if entry.strip()]
    return [Path(os.path.abspath(root)) for root in (folder_paths.get_input_directory(), *allowed)]


def resolve_folder(name: str, field: str) -> Path:
    """A folder by its path under the input folder, or by its absolute path under an allowed root.

    Raises:
        InputError: outside the allowed roots, or not there.
    """
    roots = data_roots()
    path = Path(os.path.abspath(roots[0] / name))
    problems = []
    if not any(path.is_relative_to(root) for root in roots):
        problems.append(
            f"{field} is {name!r}, which lies outside the folders that may be read: ComfyUI's input folder"
            + (f" and {', '.join(map(str, roots[1:]))}" if roots[1:] else "")
            + f". Move the pictures there, or let the person who runs the server set {ROOTS_VARIABLE}."
        )
    elif not path.is_dir():
        problems.append(f"{field} is {name!r}, but there is no such folder in {roots[0]}.")
    raise_if_any("Load Dataset", problems)
    return path


def lora_folder() -> Path:
    """Where finished LoRAs go: the first of the host's loras folders."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def model_folders(kind: str) -> list[Path]:
    """The host's folders of one kind of model."""
    return [Path(path) for path in folder_paths.get_folder_paths(kind)]


def register_model_folder(kind: str) -> None:
    """Adds models/<kind> to the host's list of model folders."""
    folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))


def where() -> tuple[str, str]:
    """(prompt id, node id) of the node that is running; empty outside a run."""
    context = get_executing_context()
    return (context.prompt_id, context.node_id) if context else ("", "")


def send(event: str, data: dict[str, Any]) -> None:
    """Sends an event to every open page; without a server it does nothing."""
    instance = getattr(PromptServer, "instance", None)
    if instance is not None:
        instance.send_sync(event, data)


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
