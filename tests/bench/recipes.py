"""How fast a step is with each recipe: optimizers, adapters, dropout and the rest against plain AdamW and LoRA.

python3 dev.py bench recipes [--model sdxl] [--recipes NAME ...] [--repeats 1] [--steps N] [--json FILE]

A model of full size and random weights (bench/models.py) in the real server; pictures of its usual size, batch 1, rank
16 on the attention projections, bf16; on a machine without a GPU the demo kit's small model in fp32. Plain AdamW is
measured first and last, since what changes on the machine meanwhile meets every recipe. A recipe that fails, or that
needs a package which is not installed, has that as its result.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import figures
from bench.models import MODELS
from bench.prompts import lay_out, write_pictures
from bench.runs import Child, told_slower, versions
from bench.runs import prepare as prepare_models
from bench.speed import OUR_WARM_UP, PICTURES, SERVER_ARGS, Bench
from client import HostError
from host import Server, has_cuda

PLAIN = "adamw"


@dataclass(frozen=True)
class Recipe:
    """Settings that differ from the plain recipe."""

    name: str
    values: dict[str, Any]
    goal: float | None = None
    """the most that its step should take, as a multiple of the plain recipe's"""


RECIPES = (
    Recipe(PLAIN, {}),
    Recipe("prodigy", {"optimizer": "prodigy", "learning_rate": 1.0}, 1.15),
    Recipe("lion", {"optimizer": "lion"}, 1.15),
    Recipe("schedule free", {"optimizer": "schedule_free"}, 1.15),
    Recipe("adafactor", {"optimizer": "adafactor"}, 1.15),
    Recipe("adamw8bit", {"optimizer": "adamw8bit"}, 1.15),
    Recipe("text encoders", {"text_encoder_learning_rate": 5e-5}, 1.6),
    Recipe("rank dropout", {"rank_dropout": 0.1}, 1.1),
    Recipe("input dropout", {"dropout": 0.1}, 1.1),
    Recipe("module dropout", {"module_dropout": 0.1}, 1.1),
    Recipe("dora", {"adapter": "dora"}, 1.25),
    Recipe("loha", {"adapter": "loha"}, 1.4),
    Recipe("lokr", {"adapter": "lokr"}, 1.4),
    Recipe("oft", {"adapter": "oft"}, 1.5),
    Recipe("all layers", {"targets": "all linear and convolution", "layer_rules": ""}, 1.2),
    Recipe("deterministic", {"deterministic": True}, 1.3),
    Recipe("checkpointing", {"gradient_checkpointing": True}, 1.33),
    Recipe("fp8", {"base_precision": "fp8"}, 1.1),
    Recipe("accumulation of 4", {"gradient_accumulation": 4}),
    Recipe("ema", {"ema_decay": 0.999}),
    Recipe("rank 64", {"rank": 64, "alpha": 64.0}),
)


def line(name: str, ms: float | None, plain: float | None, goal: float | None, failed: str) -> str:
    if ms is None:
        return f"{name:18} {failed}"
    ratio = f"{ms / plain:7.2f}" if plain else " " * 7
    return f"{name:18} {ms:9.2f} ms {ratio}  {'' if goal is None else f'goal {goal:g}'}"


def parser() -> argparse.ArgumentParser:
    names = [recipe.name for recipe in RECIPES]
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--host-dir", type=Path, required=True)
    made.add_argument("--workspace", type=Path, required=True)
    made.add_argument("--kit", type=Path)
    made.add_argument("--model", choices=MODELS, default="sdxl" if has_cuda() else "kit")
    made.add_argument("--recipes", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    made.add_argument("--repeats", type=int, default=1)
    made.add_argument("--steps", type=int, help="of each run (default: by model)")
    made.add_argument("--limit", type=float, default=240 if has_cuda() else 1800, help="seconds that a run may take")
    made.add_argument("--json", type=Path)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options, host_arguments = parser().parse_known_args(arguments)  # the rest goes to ComfyUI's main.py
    model = MODELS[options.model]
    chosen = [recipe for recipe in RECIPES if recipe.name in options.recipes]
    facts = prepare_models(options.host_dir, options.workspace, [model.name])
    write_pictures(options.workspace / "input", f"{model.name}-{PICTURES}", PICTURES, model.side)
    lay_out(options.workspace)
    server = Server(options.host_dir, options.workspace, [*SERVER_ARGS, *host_arguments], kit=options.kit)
    found: dict[str, dict[str, Any]] = {}
    with server, server.client() as client, Child("bench.diffusers_peer", options.workspace / "diffusers.log") as child:
        bench = Bench(server, client, child, options.limit, options.steps)
        bench.load(model)
        about = {**facts, "model": model.name, "versions": versions(client), "host_arguments": host_arguments}
        plain = RECIPES[0]
        for _ in range(options.repeats):
            for recipe in [plain, *(each for each in chosen if each is not plain), plain]:
                row = found.setdefault(recipe.name, {"ms": [], "failed": "", "goal": recipe.goal, "told": []})
                measure(bench, recipe, row)
                print(line(recipe.name, *_figures(found, recipe)), *row["told"], sep="\n      ", flush=True)
                figures.write(options.json, {**about, "recipes": found})
    print("\n" + "\n".join(line(recipe.name, *_figures(found, recipe)) for recipe in chosen))
    return 0


def measure(bench: Bench, recipe: Recipe, row: dict[str, Any]) -> None:
    """Makes a run and adds its figures to the recipe's row; its failure is its result."""
    model = MODELS[bench._loaded]
    steps = bench.steps or model.steps
    try:
        started = time.monotonic()
        run = bench.train(model, "ours", 1, False, steps, min(OUR_WARM_UP, steps // 2), f"{PICTURES}", **recipe.values)
    except (HostError, KeyError) as error:
        row["failed"] = f"{error}"[:300]
        return
    row["failed"], row["told"] = run.failed, told_slower(run.notes)
    row["reserved"], row["run_seconds"] = run.figures.get("reserved"), round(time.monotonic() - started, 1)
    row["first_step"] = run.first_step and round(run.first_step, 2)
    if run.seconds_per_step and not run.failed:
        row["ms"].append(round(run.seconds_per_step * 1000, 3))


def _figures(found: dict[str, dict[str, Any]], recipe: Recipe) -> tuple[float | None, float | None, float | None, str]:
    row, plain = found[recipe.name], found[PLAIN]["ms"]
    middle = statistics.median(row["ms"]) if row["ms"] else None
    return middle, statistics.median(plain) if plain else None, recipe.goal, row["failed"]


if __name__ == "__main__":
    raise SystemExit(main())
