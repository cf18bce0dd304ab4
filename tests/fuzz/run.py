"""Fuzzes the readers of strangers' files, a target after the other: `python3 dev.py fuzz`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import atheris

READERS = ("Png", "Jpeg", "WebP", "Bmp", "Tiff", "Gif", "Avif")
with atheris.instrument_imports(
    include=["lora_kiln", "tomllib", "yaml", "json", *(f"PIL.{kind}ImagePlugin" for kind in READERS)]
):
    import conftest  # noqa: F401  (puts the host and the pack on the path)
    from fuzz.targets import TARGETS, Target

SLOWEST = 10
"""seconds for one input; more is a hang"""
MEMORY = 4096
"""MiB"""
LONGEST = 4096
"""bytes of an input: the limits on size have tests of their own"""


def fuzz(name: str, runs: int, workspace: Path) -> tuple[int, bool]:
    """(executions, whether all went well) of one target; what broke it is kept in the workspace."""
    target, corpus, crashes = TARGETS[name], workspace / "corpus" / name, workspace / "crashes"
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = workspace / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words or ["0"]))  # it may not be empty
    options = {
        "runs": runs, "timeout": SLOWEST, "rss_limit_mb": MEMORY, "max_len": LONGEST, "dict": words, "seed": 1,
        "artifact_prefix": crashes / f"{name}-", "print_final_stats": 1,
    }  # fmt: skip
    log = workspace / f"{name}.log"
    sys.stdout.flush()
    child = os.fork()  # libFuzzer ends its process, and the imports are slow
    if child == 0:
        _become_fuzzer(target, ["fuzz", *(f"-{key}={value}" for key, value in options.items()), str(corpus)], log)
    _, status = os.waitpid(child, 0)
    said = log.read_text(errors="replace")
    if status:
        print(said[-6000:], flush=True)
    counts = re.findall(r"number_of_executed_units:\s*(\d+)|^#(\d+)\s", said, re.MULTILINE)
    return max((int(final or running) for final, running in counts), default=0), status == 0


def _become_fuzzer(target: Target, arguments: list[str], log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    atheris.Setup(arguments, target)
    atheris.Fuzz()
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py fuzz")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=20_000, help="executions of each target")
    parser.add_argument("--target", choices=TARGETS, help="one target alone")
    options = parser.parse_args()
    os.nice(max(0, 10 - os.nice(0)))
    results = {}
    for name in [options.target] if options.target else TARGETS:
        results[name] = executions, is_good = fuzz(name, options.runs, options.workspace)
        print(f"[kiln] {'held  ' if is_good else 'BROKEN'}  {name:14} {executions:>10,} executions", flush=True)
    print(f"[kiln] {sum(count for count, _ in results.values()):,} executions in all; {options.workspace}", flush=True)
    return 0 if all(is_good for _, is_good in results.values()) else 1


def _escaped(word: str) -> str:
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    raise SystemExit(main())
