"""How fast a step is: this trainer, ComfyUI's own and diffusers + peft, side by side on one machine.

python3 dev.py bench speed [--models sd15 sdxl flux] [--peers ours core core-bypass diffusers diffusers-compile]
    [--batch 1 4] [--checkpointing off on] [--repeats 3] [--steps N] [--add FILE ...] [--json FILE]

Models of full size and random weights (bench/models.py); pictures of 512 px for SD1.5, 1024 px for SDXL and Flux; bf16;
rank 16 on the attention projections. On a machine without a GPU it is the demo kit's small model in fp32.

ours               KilnTrainLoRA in the real server, as it is but for fit_memory, which would change what is compared
ours-fp8           the same with base_precision fp8
ours-fp8-matmul    the same with base_precision fp8 matmul
core               the core's TrainLoraNode in the same server; it trains every layer, norm and bias
core-bypass        the same with bypass_mode
diffusers          the official scripts' loop (bench/diffusers_peer.py), in a process of its own
diffusers-compile  the same with torch.compile; its repeats follow each other, since compiling takes minutes
diffusers-blocks   the same with only the repeated blocks compiled

The repeats are the outer loop, so that what changes on the machine meanwhile meets all. A step's time is the time
between two steps far apart, after the warm-up. Checkpointing of the core is at block level (checkpoint_depth 2); at its
default depth it saves nothing. A trainer that runs out of memory or takes too long has that as its result.

Share of the matmul rate: a LoRA step is taken as 2 F of arithmetic, F being the forward pass: the forward pass, and the
backward pass through activations, as base weights need no gradients. F counts matrix products, convolutions and
attention (torch's FlopCounterMode). The rate is that of an 8192 x 8192 x 8192 bf16 product on the same GPU.

Preparation is the time from Run to the end of the first step for 20 pictures, the model loaded; once with pictures
never seen before, and once again with the same (ours has them in its cache on disk then, the core's in the host's).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import figures
from bench.figures import Cell
from bench.models import MODELS, Model
from bench.prompts import BLOCK_LEVEL, core_prompt, lay_out, load_only, our_prompt, write_pictures
from bench.runs import Child, Run, prepare, run_prompt, told_slower, versions
from client import Client, HostError
from host import Server, has_cuda

OURS = {"ours": "as loaded", "ours-fp8": "fp8", "ours-fp8-matmul": "fp8 matmul"}  # peer -> base_precision
COMPILES = {"diffusers": "", "diffusers-compile": "model", "diffusers-blocks": "blocks"}
PEERS = (*OURS, "core", "core-bypass", *COMPILES)
DEFAULT_PEERS = ("ours", "core", "core-bypass", "diffusers", "diffusers-compile")
PICTURES = 8
PREPARED = 20  # pictures of the preparation
OUR_WARM_UP, WARM_UP = 15, 3  # steps that do not count: ours captures its step
SERVER_ARGS = ["--cache-lru", "40"]  # a model stays loaded while trainers take turns
EXPECTED = {  # seconds of a run on an H100, and of a first compilation: for the estimate alone
    "kit": (40, 120), "sd15": (9, 90), "sdxl": (20, 240), "flux": (40, 240),
}  # fmt: skip
EXPECTED_FILES = {"kit": 0, "sd15": 4, "sdxl": 12, "flux": 45}
EXPECTED_START = 45
PATIENCE = 15  # seconds in which the server gives its memory back
LEFT = 2**30  # bytes that it may keep


@dataclass(frozen=True)
class Job:
    """One run to be made."""

    model: Model
    batch: int
    checkpointing: bool
    peer: str
    repeats: int
    """timed one after the other within the run"""

    @property
    def expected(self) -> float:
        run, compilation = EXPECTED[self.model.name]
        return run + (compilation if self.peer in ("diffusers-compile", "diffusers-blocks") else 0)


def jobs(
    models: Sequence[Model], peers: Sequence[str], batches: Sequence[int], checkpointing: Sequence[bool], repeats: int
) -> Iterator[Job]:
    """All runs in their order: a model at a time, and of it the repeats outermost."""
    for model in models:
        for repeat in range(repeats):
            for batch in batches:
                for checkpointed in checkpointing:
                    for peer in peers:
                        compiles = bool(COMPILES.get(peer))
                        if not compiles or repeat == 0:
                            yield Job(model, batch, checkpointed, peer, repeats if compiles else 1)


class Bench:
    """A running server, the diffusers child, and what is known so far."""

    def __init__(self, server: Server, client: Client, child: Child, limit: float, steps: int | None) -> None:
        self.server, self.client, self.child = server, client, child
        self.limit, self.steps = limit, steps
        self.info = client.object_info()
        self.precision = "bf16" if has_cuda() else "fp32"
        self._loaded = ""
        self._runs = 0

    def load(self, model: Model) -> None:
        """Loads a model in the server, and lets go of the one before."""
        if self._loaded != model.name:
            if self._loaded:
                self.client.post("/free", {"unload_models": True, "free_memory": True})
            self.client.run(load_only(model))
            self._loaded = model.name

    def run(self, job: Job) -> Cell:
        """Makes a run. Its failure is its result."""
        cell = Cell(job.model.name, job.batch, job.checkpointing, job.peer, "")
        if job.peer in COMPILES:
            return self._ask_diffusers(job, cell)
        is_ours = job.peer in OURS
        steps = self.steps or (job.model.steps if is_ours else job.model.slow_steps)
        skip = min(OUR_WARM_UP if is_ours else WARM_UP, steps // 2)
        try:
            self.load(job.model)
            run = self.train(job.model, job.peer, job.batch, job.checkpointing, steps, skip, f"{PICTURES}")
        except (HostError, KeyError) as error:
            run = Run(failed=f"{error}"[:300])
        cell.failed = run.failed
        cell.seconds_per_step = [run.seconds_per_step] if run.seconds_per_step and not run.failed else []
        cell.reserved, cell.gpu = run.figures.get("reserved"), run.figures.get("gpu")
        cell.notes = {"run_seconds": round(run.seconds, 1), "first_step": run.first_step and round(run.first_step, 2)}
        cell.notes |= {"told": told} if (told := told_slower(run.notes)) else {}
        return cell

    def train(
        self,
        model: Model,
        peer: str,
        batch: int,
        checkpointing: bool,
        steps: int,
        skip: int,
        folder: str,
        **config: Any,
    ) -> Run:
        """A run of ours or the core's in the server.

        Args:
            config: further fields of our recipe, which win.
        """
        self._runs += 1
        name, folder = f"{time.time()} {self._runs}", f"kiln_bench/{model.name}-{folder}"
        if peer in OURS:
            recipe: dict[str, Any] = {
                "steps": steps, "batch_size": batch, "gradient_checkpointing": checkpointing,
                "precision": self.precision, "fit_memory": False, "base_precision": OURS[peer], **config,
            }  # fmt: skip
            prompt = our_prompt(self.info, model, folder, name, **recipe)
        else:
            prompt = core_prompt(
                self.info, model, folder, name, steps=steps, batch_size=batch, gradient_checkpointing=checkpointing,
                checkpoint_depth=BLOCK_LEVEL, training_dtype=self.precision, bypass_mode=peer == "core-bypass",
                lora_dtype="fp32",
            )  # fmt: skip
        return run_prompt(self.client, prompt, steps, skip, self.limit)

    def _ask_diffusers(self, job: Job, cell: Cell) -> Cell:
        steps = self.steps or job.model.slow_steps
        question = {
            "model": job.model.name, "batch": job.batch, "checkpointing": job.checkpointing,
            "compile": COMPILES[job.peer], "steps": steps, "skip": min(WARM_UP, steps // 2), "repeats": job.repeats,
        }  # fmt: skip
        self._make_way()
        started = time.monotonic()
        answer = self.child.ask(question, self.limit + (EXPECTED[job.model.name][1] if question["compile"] else 0))
        cell.failed = answer.get("failed", "")
        cell.seconds_per_step = answer.get("seconds_per_step", [])
        cell.reserved = cell.gpu = answer.get("reserved")
        cell.notes = {"run_seconds": round(time.monotonic() - started, 1), "adapters": answer.get("adapters")}
        return cell

    def _make_way(self) -> None:
        """Lets the server give its memory back to the GPU; its models stay in RAM."""
        self.client.post("/free", {"unload_models": True, "free_memory": False})
        deadline = time.monotonic() + PATIENCE
        while has_cuda() and time.monotonic() < deadline:
            if self.client.get("/system_stats")["devices"][0]["torch_vram_total"] < LEFT:
                return
            time.sleep(0.2)

    def preparation(self, model: Model, peer: str) -> dict[str, Any]:
        """Seconds from Run to the first step, at first and again."""
        found: dict[str, Any] = {"model": model.name, "peer": peer, "pictures": PREPARED}
        for which in ("first", "again"):
            try:
                self.load(model)
                run = self.train(model, peer, 1, False, 3, 1, f"new-{peer}")
            except (HostError, KeyError) as error:
                run = Run(failed=f"{error}"[:300])
            found[which] = run.first_step and round(run.first_step, 2)
            found["failed"] = "" if run.first_step else run.failed
            if run.failed and not run.first_step:
                break
        return found


def measure(
    bench: Bench, todo: Iterable[Job], device: str, on_cell: Callable[[Cell], None], say: Callable[[str], None] = print
) -> list[Cell]:
    """Makes all runs; a cell that failed is not tried again. `on_cell` gets each."""
    waiting, cells = list(todo), []
    failed: set[tuple] = set()
    planned = spent = 0.0
    while waiting:
        job = waiting.pop(0)
        started = time.monotonic()
        cell = bench.run(job)
        cell.device = device
        cells.append(cell)
        if cell.failed:
            failed.add(cell.key[:4])
            waiting = [
                each for each in waiting
                if (each.model.name, each.batch, each.checkpointing, each.peer) not in failed
            ]  # fmt: skip
        planned, spent = planned + job.expected, spent + time.monotonic() - started
        left = sum(each.expected for each in waiting) * spent / planned
        result = cell.failed or f"{(cell.median or 0) * 1000:.4g} ms a step"
        say(
            f"{job.model.name:5} batch {job.batch}{' checkpointing' if job.checkpointing else ''}  {job.peer:18} "
            f"{result}   ({time.monotonic() - started:.0f} s; about {left / 60:.0f} min left)"
        )
        for note in cell.notes.get("told", []):
            say(f"      {note}")
        on_cell(cell)
    return cells


def estimate(todo: Sequence[Job], models: Sequence[Model]) -> float:
    """Seconds that all will take on an H100, roughly."""
    files = sum(EXPECTED_FILES[model.name] for model in models)
    return EXPECTED_START + files + sum(job.expected for job in todo)


def parser() -> argparse.ArgumentParser:
    on_gpu = has_cuda()
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--host-dir", type=Path, required=True)
    made.add_argument("--workspace", type=Path, required=True)
    made.add_argument("--kit", type=Path)
    made.add_argument("--models", nargs="+", choices=MODELS, default=["sd15", "sdxl", "flux"] if on_gpu else ["kit"])
    made.add_argument("--peers", nargs="+", choices=PEERS, default=DEFAULT_PEERS if on_gpu else DEFAULT_PEERS[:3])
    made.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    made.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"] if on_gpu else ["off"])
    made.add_argument("--repeats", type=int, default=3 if on_gpu else 1)
    made.add_argument("--steps", type=int, help="of each run (default: by model and trainer)")
    made.add_argument("--limit", type=float, default=240 if on_gpu else 1800, help="seconds that a run may take")
    made.add_argument(
        "--preparation", nargs="*", choices=MODELS, help="models whose preparation is timed (default: sdxl, or the kit)"
    )
    made.add_argument("--add", type=Path, nargs="+", default=[], help="figures of earlier runs to join")
    made.add_argument("--json", type=Path)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options, host_arguments = parser().parse_known_args(arguments)  # the rest goes to ComfyUI's main.py
    models = [MODELS[name] for name in options.models]
    if any(model.name == "kit" for model in models) and options.kit is None:
        raise SystemExit("The model kit needs the built demo kit: start with `python3 dev.py bench speed`.")
    preparation = options.preparation
    if preparation is None:
        preparation = [name for name in ("sdxl", "kit") if name in options.models]
    todo = list(jobs(models, options.peers, options.batch, [c == "on" for c in options.checkpointing], options.repeats))
    print(f"{len(todo)} runs; on an H100 about {estimate(todo, models) / 60:.0f} min with all preparations", flush=True)

    facts = prepare(options.host_dir, options.workspace, list(dict.fromkeys([*options.models, *preparation])))
    earlier = [json.loads(path.read_text("utf-8")) for path in options.add]
    inputs = options.workspace / "input"
    for name in dict.fromkeys([*options.models, *preparation]):
        write_pictures(inputs, f"{name}-{PICTURES}", PICTURES, MODELS[name].side)
    served = [peer for peer in options.peers if peer not in COMPILES]
    for seed, (name, peer) in enumerate((name, peer) for name in preparation for peer in served):
        never_seen = (time.time_ns() + seed) % 2**32
        write_pictures(inputs, f"{name}-new-{peer}", PREPARED, MODELS[name].side, never_seen)

    lay_out(options.workspace)
    server = Server(options.host_dir, options.workspace, [*SERVER_ARGS, *host_arguments], kit=options.kit)
    with server, server.client() as client, Child("bench.diffusers_peer", options.workspace / "diffusers.log") as child:
        bench = Bench(server, client, child, options.limit, options.steps)
        cells: list[Cell] = [figures.read_cell(cell) for each in earlier for cell in each["cells"]]
        prepared: list[dict[str, Any]] = [row for each in earlier for row in each.get("preparation", [])]
        known = {**{name: fact for each in earlier for name, fact in each["models"].items()}, **facts["models"]}
        rates = {each["device"]: each["matmul_flops"] for each in earlier} | {facts["device"]: facts["matmul_flops"]}
        about = {**facts, "models": known, "versions": versions(client), "host_arguments": host_arguments}

        def written() -> dict[str, Any]:
            rows = []
            for cell in figures.joined(cells):
                flops = 2 * known[cell.model]["forward_flops"] if cell.model in known else None
                rows.append(cell.summary(flops, rates.get(cell.device)))
            return {**about, "cells": rows, "preparation": prepared}

        def on_cell(cell: Cell) -> None:
            cells.append(cell)
            figures.write(options.json, written())

        # A model's preparation comes before its other runs, while the model is loaded.
        for model in dict.fromkeys([*models, *(MODELS[name] for name in preparation)]):
            for peer in served if model.name in preparation else ():
                prepared.append({**bench.preparation(model, peer), "device": facts["device"]})
                print(preparation_line(prepared[-1]), flush=True)
                figures.write(options.json, written())
            measure(bench, [job for job in todo if job.model == model], facts["device"], on_cell, _say)
        found = written()
    print(figures.table(found["cells"]))
    print("\nFrom Run to the first step, the model loaded:")
    for row in prepared:
        print("  " + preparation_line(row))
    figures.write(options.json, found)
    return 0


def preparation_line(row: dict[str, Any]) -> str:
    times = " ".join(f"{which} {row[which]:.1f} s" for which in ("first", "again") if row.get(which))
    return f"{row['model']}, {row['pictures']} pictures, {row['peer']}: {times or row['failed']}"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
