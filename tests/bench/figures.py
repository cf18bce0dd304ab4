"""What the benches measured, cell by cell: joined with earlier figures, summed up, printed, written."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclass
class Cell:
    """One trainer on one model, batch size and checkpointing."""

    model: str
    batch: int
    checkpointing: bool
    peer: str
    device: str
    seconds_per_step: list[float] = field(default_factory=list)
    """one a repeat"""
    failed: str = ""
    reserved: int | None = None
    """bytes: the most that torch held of the GPU"""
    gpu: int | None = None
    """bytes: the most that was in use of the GPU beyond what was before, the host's own weights included"""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, bool, str, str]:
        return self.model, self.batch, self.checkpointing, self.peer, self.device

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds_per_step) if self.seconds_per_step else None

    def summary(self, flops: int | None, rate: float | None) -> dict[str, Any]:
        """The cell as it is written.

        Args:
            flops: of one picture's step.
            rate: measured operations per second of a matrix product.
        """
        found: dict[str, Any] = {**asdict(self), "seconds_per_step_all": self.seconds_per_step}
        del found["seconds_per_step"]
        if (seconds := self.median) is not None:
            found |= {
                "ms_per_step": round(seconds * 1000, 3),
                "ms_lowest": round(min(self.seconds_per_step) * 1000, 3),
                "ms_highest": round(max(self.seconds_per_step) * 1000, 3),
                "spread": round(spread(self.seconds_per_step), 4),
                "pictures_per_second": round(self.batch / seconds, 3),
                "share_of_matmul": round(flops * self.batch / seconds / rate, 4) if flops and rate else None,
            }
        return found


def read_cell(written: dict[str, Any]) -> Cell:
    """The inverse of `Cell.summary`."""
    names = Cell.__dataclass_fields__.keys() - {"seconds_per_step"}
    values = {name: written[name] for name in names if name in written}
    return Cell(**values, seconds_per_step=written.get("seconds_per_step_all", []))


def spread(values: Sequence[float]) -> float:
    """Highest less lowest, as a share of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def joined(cells: Iterable[Cell]) -> list[Cell]:
    """One cell a key: repeats are put together, and a cell that failed once and went well once went well."""
    found: dict[tuple, Cell] = {}
    for cell in cells:
        known = found.get(cell.key)
        if known is None:
            found[cell.key] = Cell(**asdict(cell))
            continue
        known.seconds_per_step = known.seconds_per_step + cell.seconds_per_step
        known.failed = "" if known.seconds_per_step else cell.failed or known.failed
        known.reserved, known.gpu = (_most(getattr(known, name), getattr(cell, name)) for name in ("reserved", "gpu"))
        known.notes = {**known.notes, **cell.notes}
    return list(found.values())


def _most(a: int | None, b: int | None) -> int | None:
    known = [value for value in (a, b) if value is not None]
    return max(known) if known else None


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Lines for people, the cells of one model, batch and checkpointing together."""
    line = "{:24} {:>10} {:>9} {:>11} {:>10} {:>8} {:>8} {:>8}"
    lines: list[str] = []
    head = line.format("", "ms / step", "spread", "pictures/s", "of matmul", "torch", "GPU", "to ours")
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["model"], cell["batch"], cell["checkpointing"], cell["device"]), []).append(cell)
    for (model, batch, checkpointing, device), group in groups.items():
        heading = f"{model}, batch {batch}{', checkpointing' if checkpointing else ''} ({device})"
        lines += ["", heading, head] if not lines else ["", heading]
        ours = next((each.get("ms_per_step") for each in group if each["peer"] == "ours"), None)
        for cell in group:
            memory = [_gib(cell["reserved"]), _gib(cell["gpu"])]
            if (ms := cell.get("ms_per_step")) is None:
                lines.append(f"{cell['peer']:24} {cell['failed'] or 'not run'}")
                continue
            share = cell["share_of_matmul"]
            lines.append(
                line.format(
                    cell["peer"], f"{ms:.4g}", f"{cell['spread']:.1%}", f"{cell['pictures_per_second']:.3g}",
                    "" if share is None else f"{share:.1%}", *memory, f"{ms / ours:.2f} x" if ours else "",
                )
            )  # fmt: skip
    return "\n".join(lines)


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.1f}"


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Writes the figures where wanted; a file that is read meanwhile is whole."""
    if path is None:
        return
    part = path.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
