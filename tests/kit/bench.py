"""Measures what the trainer promises, on the demo kit in a real ComfyUI.

python3 dev.py bench quality [--seeds 1 2 3] [--json FILE]
python3 dev.py bench speed [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from host import Client, Server, has_cuda
from kit.concepts import Concept
from kit.demo import demo_prompt, node_id, print_loss, run_demo, write_data

SEEDS = (1, 2, 3)
PICTURES = 16
SHOWN_AFTER, SHOWN_BEFORE, KEPT = 13 / 16, 1 / 16, 14 / 16  # what the demo's recipe is to reach
SPEED_STEPS = 30


def quality(server: Server, client: Client, seeds: Sequence[int]) -> dict[str, Any]:
    """Trains one LoRA a seed and judges it: concept shown before and after, base captions kept."""
    runs = []
    for seed in seeds:
        print(f"\nConcept seed {seed}", flush=True)
        figures = run_demo(server, client, seed, PICTURES, strengths=(1.0,))
        print(figures.table(), flush=True)
        runs.append(figures)
    reached = all(
        run.concept_rate["1"] >= SHOWN_AFTER and run.concept_rate["0"] <= SHOWN_BEFORE and run.base_kept >= KEPT
        for run in runs
    )
    print("\nseed   before   after   base kept   training")
    for run in runs:
        rates = run.concept_rate
        print(
            f"{run.seed:4} {rates['0'] * PICTURES:6.0f}/16 {rates['1'] * PICTURES:4.0f}/16 {run.base_kept:10.0%} "
            f"{run.seconds['training']:9.0f} s"
        )
    print("reached" if reached else "NOT reached", "(after 13/16, before at most 1/16, base kept 14/16, every seed)")
    return {"reached": reached, "runs": [asdict(run) for run in runs]}


def speed(server: Server, client: Client) -> dict[str, Any]:
    """Median seconds of a step of the demo's recipe, after the first few."""
    concept = Concept(SEEDS[0])
    write_data(server.workspace / "input", concept)
    rows = {}
    for batch_size in (1, 4):
        prompt = demo_prompt(client, concept, {"steps": SPEED_STEPS, "batch_size": batch_size})
        trainer = node_id(prompt, "KilnTrainLoRA")
        for unwanted in [
            key for key, value in prompt.items() if value["class_type"] not in _ancestors(prompt, trainer)
        ]:
            del prompt[unwanted]
        prompt["end"] = {"class_type": "PreviewAny", "inputs": {"source": [trainer, 5]}}
        client.run(prompt, on_event=print_loss)
        rows[f"batch {batch_size}"] = client.get("/kiln/runs")[-1]["seconds_per_step"]
        print(f"batch {batch_size}: {rows[f'batch {batch_size}']:.3f} s a step", flush=True)
    return {"seconds_per_step": rows}


def _ancestors(prompt: dict[str, Any], target: str) -> set[str]:
    """The classes of a node and of all that it needs."""
    waiting, found = [target], set()
    while waiting:
        node = prompt[waiting.pop()]
        found.add(node["class_type"])
        waiting += [value[0] for value in node["inputs"].values() if isinstance(value, list)]
    return found


def device_name() -> str:
    """The GPU's name, or the processor's."""
    if has_cuda():
        import torch

        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("--host-dir", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--json", type=Path)
    options, host_arguments = parser.parse_known_args()  # the rest goes to ComfyUI's main.py
    server = Server(options.host_dir, options.workspace, host_arguments, kit=options.kit)
    with server, server.client() as client:
        if options.what == "quality":
            figures = quality(server, client, options.seeds)
        else:
            figures = speed(server, client)
    figures["device"] = device_name()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if figures.get("reached", True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
