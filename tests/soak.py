"""Killing the real server at random moments of a run, over and over, and looking at what the run gives in the end.

python3 dev.py soak [--kills 50] [--seed N]

A run of the kit's example is queued and the server's process killed (SIGKILL) a random time later, wherever it is:
loading, encoding, training, writing a checkpoint, sampling, validating, saving. Then the server is started anew and the
same workflow queued, until that many kills were survived and the run has finished. Its LoRA must be, tensor for tensor
and byte for byte, that of a run that was never stopped.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from host import Client, HostError, Server
from kit.concepts import Concept
from kit.demo import demo_prompt, node, node_id, only, write_data

CONCEPT = Concept(1)
CONFIG = {
    "steps": 12, "batch_size": 1, "rank": 4, "sample_every": 4, "sample_prompts": "a star", "sample_steps": 2,
    "save_every": 6,
}  # fmt: skip
VALIDATION = {"validation_share": 0.2, "validation_every": 4}
LONGEST = 12.0  # seconds after the start of the run's node until which a kill may come


def prompt_for(client: Client, name: str) -> dict[str, Any]:
    """The example, short, with a checkpoint after every step."""
    prompt = only(demo_prompt(client, CONCEPT, CONFIG), "KilnSaveLoRA")
    train = node(prompt, "KilnTrainLoRA")["inputs"]
    train["name"], train["previous_run"] = name, "continue it if nothing changed"
    prompt["options"] = {
        "class_type": "KilnRunOptions",
        "inputs": {
            "config": train["config"],
            "checkpoint_minutes": 0.0,
            "validation_share": 0.2,
            "validation_every": 4,
        },
    }
    train["config"] = ["options", 0]
    node(prompt, "KilnSaveLoRA")["inputs"]["filename"] = name
    return prompt


def lora_of(client: Client, prompt: dict[str, Any]) -> dict[str, Any]:
    """Runs a workflow to its end and gives the LoRA it saved."""
    outputs = client.run(prompt)["outputs"]
    return load_file(outputs[node_id(prompt, "KilnSaveLoRA")]["text"][0].removeprefix("Saved "))


def killed(server: Server, name: str, delay: float) -> str | None:
    """Kills the server so long after the run began. Gives where it was; None: the run had ended before."""
    where = ["queued"]
    with server.client() as client:
        prompt = prompt_for(client, name)
        timer = threading.Timer(delay, server.kill)

        def on_event(kind: str, data: dict[str, Any]) -> None:
            if kind == "kiln.run":
                where[0] = data["phase"] or data["state"]
                if not timer.is_alive() and not timer.finished.is_set():
                    timer.start()

        try:
            client.run(prompt, on_event=on_event)
        except (HostError, OSError):
            return where[0]
        finally:
            timer.cancel()
    return None


def soak(host_dir: Path, workspace: Path, kit: Path, kills: int, seed: int) -> tuple[Counter[str], int, list[str]]:
    """(kills by where they met the run, runs that were finished, keys of tensors that differ)."""
    draw = random.Random(seed)
    with Server(host_dir, workspace, kit=kit) as server, server.client() as client:
        write_data(workspace / "input", CONCEPT)
        expected = lora_of(client, prompt_for(client, "whole"))
    met: Counter[str] = Counter()
    wrong: list[str] = []
    runs = 0
    while sum(met.values()) < kills:
        name = f"killed_{runs}"
        while sum(met.values()) < kills:
            with Server(host_dir, workspace, kit=kit) as server:
                where = killed(server, name, draw.uniform(0.0, LONGEST))
            if where is None:
                break
            met[where] += 1
            print(f"kill {sum(met.values())}: {where}", flush=True)
        with Server(host_dir, workspace, kit=kit) as server, server.client() as client:
            found = lora_of(client, prompt_for(client, name))
        runs += 1
        same = {key for key in expected.keys() & found.keys() if expected[key].equal(found[key])}
        differs = sorted((expected.keys() | found.keys()) - same)
        wrong += differs
        print(f"run {runs}: {'the same LoRA' if not differs else f'DIFFERS in {len(differs)} tensors'}", flush=True)
    return met, runs, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host-dir", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    met, runs, wrong = soak(options.host_dir, options.workspace, options.kit, options.kills, options.seed)
    print(f"{sum(met.values())} kills survived in {runs} runs, {time.monotonic() - started:.0f} s: {dict(met)}")
    print("every LoRA is the same to the last byte" if not wrong else f"{len(wrong)} tensors differ: {wrong[:5]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
