"""How little memory training takes, and how many pictures it bears.

python3 dev.py bench memory [--parts cards copies scale] [--models sd15 sdxl flux] [--ways ours core ...]
    [--cards 3 4 6 8 ...] [--goals-only] [--pictures 20 1000 20000] [--side 128] [--way NAME JSON] [--add FILE ...]
    [--json FILE]

cards    The smallest card on which each way of training runs at batch 1, pictures and captions encoded on it too. A
         card of N GiB is made in two ways at once: the server's process may take N GiB by torch
         (torch.cuda.set_per_process_memory_fraction), and another process holds the rest of the GPU, so that ComfyUI,
         which looks at what is free and moves its own weights by other means, finds N GiB as well. What the driver
         keeps for a process (about half a GiB) comes on top. The goal is tried first; then the sizes are halved.
copies   On the whole card: how much of the GPU is in use between two steps, in copies of the base model's weights, and
         how much RAM, without what files back, rises while training. The core's trainer loads the model again.
scale    20, 1,000 and 20,000 small pictures (other numbers with --pictures), each shown at least once: seconds from Run
         to the first step, at first and again, seconds of a step, resident memory, and the size of the cache on disk.
         The model is the demo kit's.

The ways are in WAYS below; `--way ours-streaming '{"base_precision": "as loaded"}'` gives one of ours other
settings, by the names of the inputs of LoRA Config and the Options nodes ("weight_dtype" is UNETLoader's).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import figures
from bench.figures import GIB
from bench.models import MODELS, Model
from bench.prompts import BLOCK_LEVEL, core_prompt, lay_out, load_only, our_prompt, write_pictures
from bench.runs import OUT_OF_MEMORY, TOO_SLOW, Child, Run, prepare, run_prompt, told_slower, versions
from client import Client, HostError
from host import Server, has_cuda

PARTS = ("cards", "copies", "scale")
CARDS = (2, 3, 4, 6, 7, 8, 10, 12, 16, 24, 32, 48, 80)
"""GiB that cards are sold with"""
PICTURES = 4
SCALE = (20, 1000, 20000)
OUR_STEPS, CORE_STEPS = 12, 4  # of a run that shows whether it fits: ours records its step meanwhile
SCALE_STEPS = 60  # at least
SCALE_PATIENCE = 4  # times the limit of other runs
EXPECTED = {"kit": 20, "sd15": 12, "sdxl": 25, "flux": 60}  # seconds of a run on an H100: for the estimate alone


@dataclass(frozen=True)
class Way:
    """A trainer with settings that save memory."""

    name: str
    is_ours: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    goal: float | None = None
    """GiB of the card on which it is to train"""


FRUGAL = {
    "bypass_mode": True, "gradient_checkpointing": True, "checkpoint_depth": BLOCK_LEVEL, "offloading": True,
}  # fmt: skip
CORE = (  # its defaults, then with everything on that it has against memory
    Way("core", False),
    Way("core-bypass", False, {"bypass_mode": True}),
    Way("core-frugal", False, FRUGAL),
)
WAYS: dict[str, tuple[Way, ...]] = {
    "sd15": (Way("ours", goal=3), *CORE),
    "sdxl": (Way("ours", goal=7), *CORE),
    "flux": (
        Way("ours-fp8", True, {"base_precision": "fp8", "fit_memory": False}, goal=16),
        Way("ours-streaming", True, {"base_precision": "fp8"}, goal=10),  # what does not fit is streamed
        Way("core", False),
        Way("core-frugal", False, {**FRUGAL, "weight_dtype": "fp8_e4m3fn"}),
    ),
}


def smallest_card(
    cards: Sequence[float], goal: float | None, trains: Callable[[float], bool], goal_only: bool = False
) -> float | None:
    """The smallest card on which something trains, as it also does on every larger one; None = on none of them.

    Args:
        cards: their sizes, ascending.
        goal: tried first.
        goal_only: try no other.
    """
    fails, works = -1, len(cards)
    first = cards.index(goal) if goal in cards else None
    while works - fails > 1:
        middle = (fails + works) // 2 if first is None else first
        if trains(cards[middle]):
            works = middle
        else:
            fails = middle
        if goal_only and first is not None:
            break
        first = None
    return cards[works] if works < len(cards) else None


class Bench:
    """A running server, and the child that makes its card smaller."""

    def __init__(self, server: Server, client: Client, ballast: Child | None, limit: float) -> None:
        self.server, self.client, self.ballast, self.limit = server, client, ballast, limit
        self.info = client.object_info()
        self.precision = "bf16" if has_cuda() else "fp32"
        self._loaded: tuple[str, str] = ("", "")

    def load(self, model: Model, weight_dtype: str) -> None:
        """Loads a model in the server, and lets go of the one before."""
        if self._loaded != (model.name, weight_dtype):
            self.client.post("/free", {"unload_models": True, "free_memory": True})
            self.client.run(load_only(model, weight_dtype))
            self._loaded = model.name, weight_dtype

    def run(self, model: Model, way: Way, steps: int, folder: str) -> Run:
        """Trains in the server. A failure is a result."""
        settings = dict(way.settings)
        weight_dtype = settings.pop("weight_dtype", "default")
        name = f"{time.time()}"
        try:
            self.load(model, weight_dtype)
            if way.is_ours:
                prompt = our_prompt(
                    self.info, model, folder, name, weight_dtype,
                    **{"gradient_checkpointing": True, "precision": self.precision, "batch_size": 1, "steps": steps}
                    | settings,
                )  # fmt: skip
            else:
                values = {"batch_size": 1, "steps": steps, "training_dtype": self.precision, **settings}
                prompt = core_prompt(self.info, model, folder, name, weight_dtype, **values)
            return run_prompt(self.client, prompt, steps, min(3, steps // 2), self.limit)
        except (HostError, KeyError) as error:
            return Run(failed=str(error).strip("'\"")[:300])

    def shrink(self, gib: float) -> str:
        """Makes the GPU as small as a card of so many GiB; 0 = as it is. Gives what is wrong, if anything."""
        assert self.ballast is not None
        self.ballast.ask({"bytes": 0}, 60)
        entry = self.client.run(
            {"l": {"class_type": "KilnBenchLimit", "inputs": {"gib": float(gib), "run": f"{time.time()}"}}}
        )
        free = json.loads(entry["outputs"]["l"]["figures"][0])["free"]
        rest = int(free - gib * GIB) if gib else 0
        return self.ballast.ask({"bytes": rest}, 60).get("failed", "") if rest > 0 else ""


# ---------------------------------------------------------------- the parts


def find_card(
    bench: Bench, model: Model, way: Way, cards: Sequence[float], goals_only: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """The smallest card of a way, with what was tried."""
    row: dict[str, Any] = {"model": model.name, "way": way.name, "settings": way.settings, "goal_gib": way.goal}
    row["tried"] = tried = {}
    best: dict[str, Any] = {}

    def trains(gib: float) -> bool:
        if row.get("failed"):
            return False
        trouble = bench.shrink(gib)
        run = bench.run(model, way, OUR_STEPS if way.is_ours else CORE_STEPS, folder_of(model))
        tried[f"{gib:g}"] = run.failed or "trains"
        say(
            f"{model.name:5} {way.name:16} {gib:3g} GiB: {run.failed or 'trains'}   ({run.seconds:.0f} s)"
            + "".join(f"; {note}" for note in told_slower(run.notes))
            + (f"; the rest of the GPU is not held: {trouble}" if trouble else "")
        )
        if run.failed and run.failed not in (OUT_OF_MEMORY, TOO_SLOW):
            row["failed"] = run.failed  # not for want of memory: other cards will not do either
        if not run.failed:
            best.clear()
            best.update(memory_of(run), seconds_per_step=run.seconds_per_step, first_step=run.first_step)
            best.update(told=told_slower(run.notes))
        return not run.failed

    found = smallest_card(cards, way.goal, trains, goals_only)
    bench.shrink(0)
    row |= {"smallest_gib": None if row.get("failed") else found, **best}
    if way.goal is not None:
        row["reached"] = row["smallest_gib"] is not None and row["smallest_gib"] <= way.goal
    return row


def count_copies(bench: Bench, model: Model, way: Way, base_bytes: int) -> dict[str, Any]:
    """What a way holds while it trains on the whole card, in copies of the base model's weights in bf16."""
    run = bench.run(model, way, OUR_STEPS if way.is_ours else CORE_STEPS, folder_of(model))
    row = {
        "model": model.name, "way": way.name, "settings": way.settings, "failed": run.failed,
        "base_bytes": base_bytes, **memory_of(run), "seconds_per_step": run.seconds_per_step,
        "told": told_slower(run.notes),
    }  # fmt: skip
    for name in ("between_steps", "gpu_between_steps", "ram_rise"):
        if name in run.figures:
            row[f"{name}_copies"] = round(run.figures[name] / base_bytes, 3)
    return row


def memory_of(run: Run) -> dict[str, int]:
    return {name: value for name, value in run.figures.items() if isinstance(value, int)}


def scale(
    bench: Bench, counts: Sequence[int], side: int, steps: int, batch: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Rows of the scale part, one a number of pictures: a run sees each of them, and takes at least so many steps."""
    model, way = (
        replace(MODELS["kit"], side=side),
        Way("ours", settings={"gradient_checkpointing": False, "batch_size": batch}),
    )
    cache = bench.server.workspace / "user" / "__lora_kiln" / "encoded.sqlite"
    for count in counts:
        folder = write_pictures(bench.server.workspace / "input", f"scale-{count}", count, model.side, seed=count)
        for path in cache.parent.glob(f"{cache.name}*"):
            path.unlink()
        taken = max(steps, -(-count // batch))
        row: dict[str, Any] = {"pictures": count, "side": side, "steps": taken, "batch": batch, "failed": ""}
        for which in ("first", "again"):
            run = bench.run(model, way, taken, folder)
            row |= {
                f"start_{which}": run.first_step, f"seconds_per_step_{which}": run.seconds_per_step,
                f"resident_{which}": run.figures.get("resident"), f"anonymous_{which}": run.figures.get("anonymous"),
            }  # fmt: skip
            if run.failed:
                row["failed"] = run.failed
                break
        row["cache_bytes"] = sum(path.stat().st_size for path in cache.parent.glob(f"{cache.name}*"))
        say(scale_line(row))
        yield row


# ---------------------------------------------------------------- for people


def card_line(row: dict[str, Any]) -> str:
    size = f"{row['smallest_gib']:g} GiB" if row["smallest_gib"] is not None else row.get("failed") or "none of them"
    goal = "" if row["goal_gib"] is None else f"goal {row['goal_gib']:g}: {'' if row['reached'] else 'NOT '}reached"
    peak = f"torch {row['reserved'] / GIB:.1f} GiB" if row.get("reserved") else ""
    step = f"{row['seconds_per_step'] * 1000:.4g} ms a step" if row.get("seconds_per_step") else ""
    return f"{row['model']:5} {row['way']:16} {size:>12}   {peak:15} {step:20} {goal}".rstrip()


def copies_line(row: dict[str, Any]) -> str:
    if row["failed"]:
        return f"{row['model']:5} {row['way']:16} {row['failed']}"
    copies = {"gpu_between_steps_copies": "GPU", "between_steps_copies": "by torch", "ram_rise_copies": "RAM"}
    parts = [f"{label} {row[name]:.2f}" for name, label in copies.items() if name in row]
    return f"{row['model']:5} {row['way']:16} copies of the weights: {', '.join(parts) or 'not seen'}"


def scale_line(row: dict[str, Any]) -> str:
    if row["failed"]:
        return f"{row['pictures']:6} pictures: {row['failed']}"
    return (
        f"{row['pictures']:6} pictures: first step after {row['start_first']:.1f} s, again {row['start_again']:.1f} s; "
        f"{row['seconds_per_step_again'] * 1000:.4g} ms a step; resident {row['resident_again'] / GIB:.2f} GiB, "
        f"without files {row['anonymous_again'] / GIB:.2f}; cache {row['cache_bytes'] / 1e6:.1f} MB"
    )


def merged(rows: Sequence[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """The newest row of each key."""
    return list({tuple(row.get(key) for key in keys): row for row in rows}.values())


def folder_of(model: Model) -> str:
    return f"kiln_bench/{model.name}-memory"


# ---------------------------------------------------------------- the door


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--host-dir", type=Path, required=True)
    made.add_argument("--workspace", type=Path, required=True)
    made.add_argument("--kit", type=Path)
    made.add_argument("--parts", nargs="+", choices=PARTS, help="default: all; without a GPU scale alone")
    made.add_argument("--models", nargs="+", choices=WAYS, default=list(WAYS))
    made.add_argument("--ways", nargs="+", metavar="NAME", help="of WAYS (default: all)")
    made.add_argument("--way", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    made.add_argument("--cards", nargs="+", type=float, default=list(CARDS), metavar="GIB")
    made.add_argument("--goals-only", action="store_true", help="of a way that has a goal try no other card")
    made.add_argument("--pictures", nargs="+", type=int, default=list(SCALE), help="numbers for the scale part")
    made.add_argument("--steps", type=int, default=SCALE_STEPS, help="of the scale part's runs, at least")
    made.add_argument("--batch", type=int, default=16 if has_cuda() else 4, help="of the scale part's runs")
    made.add_argument("--side", type=int, default=MODELS["kit"].side, help="pixels of the scale part's pictures")
    made.add_argument("--limit", type=float, default=240 if has_cuda() else 3600, help="seconds that a run may take")
    made.add_argument("--add", type=Path, nargs="+", default=[], help="figures of earlier runs to join")
    made.add_argument("--json", type=Path)
    return made


def chosen_parts(asked: Sequence[str] | None, on_gpu: bool) -> list[str]:
    """The parts to run.

    Raises:
        SystemExit: those that were asked for need a GPU.
    """
    if on_gpu:
        return list(asked or PARTS)
    if asked and set(asked) != {"scale"}:
        raise SystemExit(
            "There is no NVIDIA GPU here: the parts cards and copies measure one, and cannot run. "
            "The part scale can: python3 dev.py bench memory --parts scale --pictures 20 200"
        )
    if not asked:
        print("There is no NVIDIA GPU here: of the parts only scale runs.", flush=True)
    return ["scale"]


def chosen_ways(model: str, names: Sequence[str] | None, changes: Sequence[Sequence[str]]) -> list[Way]:
    """The ways of a model that were asked for, with other settings where given."""
    ways = {way.name: way for way in WAYS[model]}
    for name, text in changes:
        known = ways.get(name)
        if known is None or known.is_ours:
            ways[name] = Way(name, True, json.loads(text), known.goal if known else None)
    return [way for way in ways.values() if names is None or way.name in names]


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def main(arguments: Sequence[str] | None = None) -> int:
    options, host_arguments = parser().parse_known_args(arguments)  # the rest goes to ComfyUI's main.py
    parts = chosen_parts(options.parts, has_cuda())
    if "scale" in parts and options.kit is None:
        raise SystemExit("The scale part needs the built demo kit: start with `python3 dev.py bench memory`.")
    on_card = [part for part in parts if part != "scale"]
    todo = [
        (MODELS[name], way) for name in options.models if on_card
        for way in chosen_ways(name, options.ways, options.way)
    ]  # fmt: skip
    tries = {"cards": 1 if options.goals_only else 4, "copies": 1}
    expected = sum(EXPECTED[model.name] * tries[part] for model, _ in todo for part in on_card)
    expected += sum(20 + count / 80 for count in options.pictures) if "scale" in parts else 0
    print(f"on an H100 about {(60 + expected) / 60:.0f} min, the models' files not counted", flush=True)

    needed = list(options.models) if on_card else ["kit"]
    facts = prepare(options.host_dir, options.workspace, needed)
    earlier = [json.loads(path.read_text("utf-8")) for path in options.add]
    found: dict[str, Any] = {**facts, "host_arguments": host_arguments}
    for part in PARTS:
        found[part] = [row for each in earlier for row in each.get(part, [])]
    for model in {model.name: model for model, _ in todo}.values():
        write_pictures(options.workspace / "input", folder_of(model).split("/")[1], PICTURES, model.side)
    lay_out(options.workspace)

    def add(part: str, row: dict[str, Any]) -> None:
        rows = [*found[part], {**row, "device": facts["device"]}]
        found[part] = merged(rows, "device", "model", "way", "pictures")
        figures.write(options.json, found)

    server_args = ["--cache-classic", *host_arguments]
    if on_card:
        # Without its cache on disk our trainer encodes pictures and captions anew on each card.
        with _environment("LORA_KILN_CACHE_GB", "0"):
            server = Server(options.host_dir, options.workspace, server_args, kit=options.kit)
            with server, server.client() as client, Child("bench.ballast", options.workspace / "ballast.log") as child:
                found["versions"] = versions(client)
                bench = Bench(server, client, child, options.limit)
                for model, way in todo:
                    if "copies" in parts:
                        row = count_copies(bench, model, way, 2 * facts["models"][model.name]["parameters"])
                        add("copies", row)
                        _say(copies_line(row))
                    if "cards" in parts:
                        add("cards", find_card(bench, model, way, sorted(options.cards), options.goals_only, _say))
    if "scale" in parts:
        server = Server(options.host_dir, options.workspace, server_args, kit=options.kit)
        with server, server.client() as client:
            found["versions"] = versions(client)
            bench = Bench(server, client, None, SCALE_PATIENCE * options.limit)
            for row in scale(bench, options.pictures, options.side, options.steps, options.batch, _say):
                add("scale", row)
    for part, line in (("cards", card_line), ("copies", copies_line), ("scale", scale_line)):
        if found[part]:
            print(f"\n{part}")
        for row in found[part]:
            print("  " + line(row))
    figures.write(options.json, found)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
