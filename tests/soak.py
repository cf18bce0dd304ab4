"""Killing the real server at random moments of a run, over and over, and looking at what the run gives in the end.

python3 dev.py soak [--kills 50] [--seed N]

A run of the kit's example is queued and the server's process killed (SIGKILL) a random time after a random one of the
run's messages, so that short moments are met as often as long ones: loading, encoding, training, writing a checkpoint,
sampling, validating, saving the LoRA. Then the server is started anew and the same workflow queued, until that many
kills were survived and the run has finished. Its LoRA must be, tensor for tensor and byte for byte, that of a run that
was never stopped. Each run begins without the cache of latents and embeddings; what a kill leaves of it the next start
takes up.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from client import Client, HostError
from host import Server
from kit.concepts import Concept
from kit.demo import FOLDER, demo_prompt, node, node_id, only

CONCEPT = Concept(1)
STEPS = 12
CONFIG = {
    "steps": STEPS, "batch_size": 1, "rank": 4, "sample_every": 4, "sample_prompts": "a star", "sample_steps": 2,
    "save_every": 6,
}  # fmt: skip
EVERY_STEP = {"checkpoint_minutes": 0.0, "validation_share": 0.2, "validation_every": 4}
PICTURES = 5
"""so few that encoding them takes not much more of a run's messages than other things do"""
MOST_MESSAGES = 20
"""of a run's start, after one of which a kill comes; encoding has ten or so, a step three or four"""
SHORTEST_DELAY = 0.05
"""seconds; the longest delay is what a step takes, on this machine and at this moment"""


@dataclass
class Figures:
    """What a soak found."""

    met: Counter[str] = field(default_factory=Counter)
    """kills by where they met the run"""
    went_on: int = 0
    """starts that went on from a checkpoint"""
    runs: int = 0
    """that were finished in the end"""
    tensors: int = 0
    """compared"""
    wrong: list[str] = field(default_factory=list)
    """keys of tensors that differ"""

    @property
    def kills(self) -> int:
        return sum(self.met.values())


def prompt_for(client: Client, name: str) -> dict[str, Any]:
    """The example, short, with a checkpoint after every step and without captioner and regularisation pictures."""
    prompt = demo_prompt(client, CONCEPT, CONFIG)
    train = node(prompt, "KilnTrainLoRA")["inputs"]
    train["name"], train["previous_run"] = name, "continue it if nothing changed"
    train["dataset"] = node(prompt, "KilnCaptionImages")["inputs"]["dataset"]
    node(prompt, "KilnLoadDataset")["inputs"]["regularisation_folder"] = "none"
    prompt["options"] = {"class_type": "KilnRunOptions", "inputs": {"config": train["config"], **EVERY_STEP}}
    prompt["exact"] = {
        "class_type": "KilnOptimizerOptions",
        "inputs": {"config": ["options", 0], "deterministic": True},
    }
    train["config"] = ["exact", 0]
    node(prompt, "KilnSaveLoRA")["inputs"]["filename"] = name
    return only(prompt, "KilnSaveLoRA")


def lora_of(client: Client, prompt: dict[str, Any]) -> dict[str, Any]:
    """Runs a workflow to its end and gives the LoRA it saved."""
    return saved_lora(prompt, client.run(prompt))


def saved_lora(prompt: dict[str, Any], history: dict[str, Any]) -> dict[str, Any]:
    """The LoRA that a workflow which has ended saved."""
    outputs = history["outputs"]
    return load_file(outputs[node_id(prompt, "KilnSaveLoRA")]["text"][0].splitlines()[0].removeprefix("Saved "))


def goes_on(run: dict[str, Any]) -> bool:
    """Whether a run began at a checkpoint."""
    return any(note.startswith("Goes on from step") for note in run["notes"])


def killed(server: Server, name: str, at: int, share: float, figures: Figures) -> bool:
    """Kills the server a share of a step's time after one of the run's messages; False: the run had ended before."""
    where, heard, went_on = "queued", 0, False
    timer: threading.Timer | None = None
    with server.client() as client:

        def on_event(kind: str, data: dict[str, Any]) -> None:
            nonlocal where, heard, went_on, timer
            if kind != "kiln.run":
                return
            where, heard = data["phase"] or data["state"], heard + 1
            went_on = goes_on(data)
            if timer is None and heard > at:
                timer = threading.Timer(share * max(SHORTEST_DELAY, data["seconds_per_step"]), server.kill)
                timer.start()

        try:
            client.run(prompt_for(client, name), on_event=on_event)
        except (HostError, OSError):
            figures.met[where] += 1
            figures.went_on += went_on
            return True
        finally:
            if timer is not None:
                timer.cancel()
    return False


def forget_encoded(workspace: Path) -> None:
    """Takes the cache away, which `training.cache` keeps there; no server may be running."""
    for path in (workspace / "user" / "__lora_kiln").glob("encoded.sqlite*"):
        path.unlink()


def soak(host_dir: Path, workspace: Path, kit: Path, kills: int, seed: int) -> Figures:
    """Survives so many kills."""
    draw, figures = random.Random(seed), Figures()
    with Server(host_dir, workspace, kit=kit) as server, server.client() as client:
        CONCEPT.write_dataset(workspace / "input" / FOLDER / "pictures", count=PICTURES)
        expected = lora_of(client, prompt_for(client, "whole"))
    while figures.kills < kills:
        name, is_under_way = f"killed_{figures.runs}", True
        forget_encoded(workspace)
        while figures.kills < kills and is_under_way:
            with Server(host_dir, workspace, kit=kit) as server:
                is_under_way = killed(server, name, draw.randrange(MOST_MESSAGES), draw.random(), figures)
            print(f"{figures.kills} kills, {figures.went_on} starts from a checkpoint: {dict(figures.met)}", flush=True)
        with Server(host_dir, workspace, kit=kit) as server, server.client() as client:
            found = lora_of(client, prompt_for(client, name))
            figures.went_on += goes_on(client.get("/kiln/runs")[-1])
        figures.runs += 1
        same = {key for key in expected.keys() & found.keys() if expected[key].equal(found[key])}
        differs = sorted((expected.keys() | found.keys()) - same)
        figures.tensors += len(expected)
        figures.wrong += differs
        told = "the same LoRA" if not differs else f"DIFFERS in {len(differs)} tensors"
        print(f"run {figures.runs}: {told}", flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host-dir", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    figures = soak(options.host_dir, options.workspace, options.kit, options.kills, options.seed)
    print(
        f"{figures.kills} kills survived in {figures.runs} runs, {figures.went_on} starts from a checkpoint, "
        f"{time.monotonic() - started:.0f} s; where they met the run: {dict(figures.met)}"
    )
    if figures.wrong:
        print(f"{len(figures.wrong)} of {figures.tensors} tensors differ: {figures.wrong[:5]}")
        return 1
    print(f"all {figures.tensors} tensors are the same to the last byte")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
