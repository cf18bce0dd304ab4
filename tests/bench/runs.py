"""One timed run: a prompt in the server, or a job of the diffusers child, and what came of it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import models
from client import Client, HostError, PromptFailed, PromptInterrupted
from host import TESTS

OUT_OF_MEMORY = "out of memory"
TOO_SLOW = "stopped: too slow"
TAIL = 2  # steps at the end that do not count: their losses are read in another rhythm
RESULT = "RESULT "  # begins a line of the child's answers
LOG_LINES = 15
PATIENCE = 60  # seconds that an interrupted run may take to end


@dataclass
class Run:
    """What one run gave."""

    seconds_per_step: float | None = None
    failed: str = ""
    """why there is no figure"""
    first_step: float | None = None
    """seconds from Run to the first step's end"""
    seconds: float = 0.0
    """of the whole run"""
    figures: dict[str, Any] = field(default_factory=dict)
    """memory, as host_nodes.Watch gives it"""
    notes: list[str] = field(default_factory=list)
    """what our trainer says about it"""


def seconds_per_step(moments: Sequence[tuple[int, float]], skip: int, last: int) -> float | None:
    """Seconds of a step, from the first known moment at or after step `skip` to the last at or before step `last`.

    Args:
        moments: (steps done, seconds) as they were told; not every step need be there.

    Returns:
        None where fewer than two moments lie between.
    """
    inside = [moment for moment in moments if skip <= moment[0] <= last]
    if len(inside) < 2 or inside[-1][0] == inside[0][0]:
        return None
    (step_0, time_0), (step_1, time_1) = inside[0], inside[-1]
    return (time_1 - time_0) / (step_1 - step_0)


def run_prompt(client: Client, prompt: dict[str, Any], steps: int, skip: int, limit: float) -> Run:
    """Runs a trainer's prompt from bench/prompts.py in the server. Never raises for what the trainer does.

    Args:
        steps: of the training.
        skip: steps of warm-up, which do not count.
        limit: seconds after which the run is interrupted.
    """
    run = Run()
    told: dict[int, float] = {}  # by our trainer's events, on its own clock
    started = time.monotonic()

    def on_event(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "kiln.run" and data["step"]:
            if run.first_step is None:
                run.first_step = time.monotonic() - started
            told.setdefault(data["step"], data["elapsed"])

    try:
        prompt_id = client.queue(prompt)
        stop = threading.Timer(limit, lambda: client.post("/interrupt", {"prompt_id": prompt_id}))
        stop.start()
        try:
            entry = client.wait(prompt_id, on_event, limit + PATIENCE)
        finally:
            stop.cancel()
        run.figures = json.loads(entry["outputs"]["e"]["figures"][0])
    except PromptInterrupted:
        run.failed = TOO_SLOW
    except PromptFailed as error:
        run.failed = failure(error.error.get("exception_type", ""), str(error))
    except HostError as error:
        run.failed = f"{error}"[:300]
    run.seconds = time.monotonic() - started
    run.notes = run.figures.pop("notes", [])
    hooked = [(number + 1, moment) for number, moment in enumerate(run.figures.pop("steps", []))]
    moments = sorted(told.items()) if told else hooked
    last = steps - TAIL if told else steps
    run.seconds_per_step = seconds_per_step(moments, skip, last) or seconds_per_step(moments, 1, steps)
    if run.first_step is None and hooked:
        run.first_step = run.seconds - (hooked[-1][1] - hooked[0][1])  # the run ends with its last step
    if not run.failed and run.seconds_per_step is None:
        run.failed = "its steps could not be seen"
    return run


def told_slower(notes: Sequence[str]) -> list[str]:
    """Those of our trainer's notes that say it did not run as it was asked to."""
    return [note for note in notes if "slower" in note or "does not fit" in note]


def failure(kind: str, text: str) -> str:
    """Why a run failed, in a few words."""
    is_memory = "OutOfMemory" in kind or "out of memory" in text.lower() or "memory is full" in text
    return OUT_OF_MEMORY if is_memory else text.strip().replace("\n", " ")[:300]


class Child:
    """A Python of our own that answers a line of JSON with a line of JSON: `python -m NAME`.

    It starts at the first question, and anew when it has died.
    """

    def __init__(self, module: str, log: Path) -> None:
        self.module, self.log = module, log
        self.process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, question: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """The answer, or {"failed": why}."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        assert self.process is not None and self.process.stdin is not None
        deadline = time.monotonic() + limit
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            while (line := self._lines.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
                if line.startswith(RESULT):
                    return json.loads(line.removeprefix(RESULT))
        except queue.Empty:
            self.stop()
            return {"failed": TOO_SLOW}
        except OSError:
            pass
        self.stop()
        return {"failed": f"it ended: {self._last_words()}"}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _start(self) -> None:
        environ = os.environ | {"PYTHONPATH": _with_tests(os.environ.get("PYTHONPATH", "")), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                cwd=TESTS, env=environ, text=True,
            )  # fmt: skip
        self._lines = queue.Queue()
        threading.Thread(target=self._read, args=(self.process, self._lines), daemon=True).start()

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    def _last_words(self) -> str:
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])[-300:]


def _with_tests(path: str) -> str:
    parts = [part for part in path.split(os.pathsep) if part]
    return os.pathsep.join(parts if str(TESTS) in parts else [str(TESTS), *parts])


def prepare(host_dir: Path, workspace: Path, names: Sequence[str]) -> dict[str, Any]:
    """Writes the models' files and measures the device, in a process that is gone afterwards. Gives the facts."""
    command = [sys.executable, "-m", "bench.models", "--host-dir", str(host_dir), "--workspace", str(workspace)]
    environ = os.environ | {"PYTHONPATH": _with_tests(os.environ.get("PYTHONPATH", "")), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--models", *names], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=TESTS, env=environ,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("wrote "):
            print(line, end="", flush=True)
    if process.wait():
        raise HostError("The models could not be made ready:\n" + "".join(lines[-LOG_LINES:]))
    return json.loads(next(line for line in lines if line.startswith(models.FACTS)).removeprefix(models.FACTS))


def versions(client: Client) -> dict[str, str]:
    """Of everything that takes part."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"ComfyUI": client.get("/system_stats")["system"]["comfyui_version"]}
    for package in ("torch", "diffusers", "peft", "transformers", "comfy-aimdo"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
