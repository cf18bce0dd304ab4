"""Many runs one after another in one real server: memory, open files and threads must stay what they are.

python3 dev.py leaks [--runs 50]

Each run is short and trains anew on the kit's example. After each the server's process is looked at from outside
(Linux): its memory (resident, and not a file's), open files, threads, and on a GPU the memory that PyTorch holds.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client import Client
from host import Server
from kit.demo import node, write_data
from soak import CONCEPT, prompt_for

CONFIG = {"steps": 2, "sample_every": 2, "save_every": 1}
WARM_UP = 10
"""runs until all is loaded, and the allocator has what it needs"""
FEWEST = WARM_UP + 2
"""runs that can tell anything: two to compare"""
MOST_GROWTH = 0.5
"""MB a run that memory may grow: a tenth of what the numbers that a run learns take"""


@dataclass(frozen=True)
class Held:
    """What a server's process holds."""

    ram: float
    """MB"""
    gpu: float
    """MB"""
    files: int
    threads: int


def held_by(server: Server) -> Held:
    assert server.process is not None
    process = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    devices = server.client().get("/system_stats")["devices"]
    gpu = sum(each["torch_vram_total"] - each["torch_vram_free"] for each in devices if each["type"] == "cuda")
    files = [each for each in (process / "fd").iterdir() if not _is_socket(each)]
    threads = len(list((process / "task").iterdir()))
    return Held(int(status["RssAnon"].split()[0]) / 1024, gpu / 2**20, len(files), threads)


def _is_socket(handle: Path) -> bool:
    """Connections of pages come and go; one that is just closing may be gone already."""
    try:
        return handle.readlink().name.startswith("socket:")
    except OSError:
        return True


def short_prompt(client: Client, name: str, **config: Any) -> dict[str, Any]:
    """A short run that trains, draws, saves on the way and writes checkpoints."""
    prompt = prompt_for(client, name)
    node(prompt, "KilnLoRAConfig")["inputs"].update({**CONFIG, **config})
    return prompt


def leaks(server: Server, runs: int) -> list[Held]:
    """What the server holds after each of so many runs."""
    found = []
    for number in range(runs):
        with server.client() as client:
            client.run(short_prompt(client, "leaks", seed=number + 1))
        found.append(held_by(server))
    return found


def growth(found: list[Held]) -> Held:
    """How much more is held after the last run than after the first of them."""
    first, last = asdict(found[0]), asdict(found[-1])
    return Held(**{key: last[key] - first[key] for key in first})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host-dir", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    if options.runs < FEWEST:
        parser.error(f"--runs is {options.runs}: the first {WARM_UP} only warm up, so it takes {FEWEST} or more.")
    with Server(options.host_dir, options.workspace, kit=options.kit) as server:
        write_data(options.workspace / "input", CONCEPT)
        found = leaks(server, options.runs)
    for number, each in enumerate(found, start=1):
        print(f"run {number}: {each.ram:.1f} MB, GPU {each.gpu:.1f} MB, {each.files} files, {each.threads} threads")
    grown = growth(found[WARM_UP - 1 :])
    print(f"since run {WARM_UP}: {grown}")
    most = MOST_GROWTH * options.runs
    return int(grown.ram > most or grown.gpu > 1.0 or grown.files > 0 or grown.threads > 0)


if __name__ == "__main__":
    raise SystemExit(main())
