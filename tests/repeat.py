"""The same deterministic run again and again, several at a time: all must be equal to the last bit.

python3 dev.py repeat [--runs 200] [--beside 10] [--model sdxl] [--recipe '{"precision": "bf16"}']

Several processes train at once, so each is load for the others: an order that depends on timing shows itself then. The
model is a tiny one of random weights (tests/models.py); the recipe's fields are those of LoRA Config. The exit status
is 0 when all runs are equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECIPE = {
    "precision": "bf16",
    "deterministic": True,
    "text_encoder_learning_rate": 1e-4,
    "gradient_checkpointing": True,
}


@dataclass(frozen=True)
class Result:
    """What a run gave."""

    losses: tuple[float, ...]
    lora: str
    """digest of the LoRA's tensors"""


def difference(results: Sequence[Result]) -> str:
    """In words how the runs differ from the most frequent one; empty where all are equal."""
    (usual, times), *others = Counter(results).most_common()
    if not others:
        return ""
    places = Counter(_first_other_loss(usual, other) for other, number in others for _ in range(number))
    told = ", ".join(f"{number} x {place}" for place, number in places.most_common())
    return f"{len(results) - times} of {len(results)} runs differ from the most frequent one: {told}"


def _first_other_loss(usual: Result, other: Result) -> str:
    for step, (expected, loss) in enumerate(zip(usual.losses, other.losses, strict=True), 1):
        if loss != expected:
            return f"from the loss of step {step} on"
    return "in the LoRA alone"


def repeat(model: str, recipe: Mapping[str, Any], runs: int, beside: int) -> list[Result]:
    """The results of so many runs, made by `beside` processes at a time."""
    shares = [len(range(number, runs, beside)) for number in range(min(beside, runs))]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.json" for number in range(len(shares))]
        commands = [
            [sys.executable, "-m", "repeat", "--runs", str(share), "--model", model, "--recipe", json.dumps(recipe)]
            for share in shares
        ]
        workers = [
            subprocess.Popen([*command, "--into", str(file)]) for command, file in zip(commands, files, strict=True)
        ]
        try:
            codes = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        if any(codes):
            raise SystemExit(f"a run failed: its process ended with {max(codes, key=abs)}")
        found = [each for file in files for each in json.loads(file.read_text())]
    return [Result(tuple(each["losses"]), each["lora"]) for each in found]


def results_of(model: str, recipe: Mapping[str, Any], runs: int) -> list[Result]:
    """The results of so many runs in this process, one after another."""
    from torch import uint8

    import conftest  # noqa: F401  (puts the host and the pack on the path)
    import models
    import test_gpu

    results = []
    for _ in range(runs):
        trained = test_gpu.run(getattr(models, model)(), **recipe)
        digest = hashlib.sha256()
        for name, tensor in sorted(trained.lora.items()):
            digest.update(name.encode() + tensor.cpu().flatten().view(uint8).numpy().tobytes())
        results.append(Result(tuple(trained.losses), digest.hexdigest()))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--beside", type=int, default=10)
    parser.add_argument("--model", default="sdxl")
    parser.add_argument("--recipe", type=json.loads, default={})
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    recipe = {**RECIPE, **options.recipe}
    if options.into:
        results = results_of(options.model, recipe, options.runs)
        options.into.write_text(json.dumps([asdict(each) for each in results]))
        return 0
    results = repeat(options.model, recipe, options.runs, options.beside)
    differs = difference(results)
    print(differs or f"{len(results)} runs, {options.beside} at a time: all equal to the last bit", flush=True)
    return 1 if differs else 0


if __name__ == "__main__":
    raise SystemExit(main())
