"""Walking folders."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(root: Path, deepest: int | None = None) -> Iterator[Path]:
    """Every file in a folder and the folders in it, in name order; hidden ones left out.

    Links to folders are followed, each folder once.

    Args:
        deepest: levels of folders below root to go into; None = all.
    """
    seen: set[str] = set()
    for path, names, files in os.walk(root, followlinks=True):
        here = Path(path)
        is_new = os.path.realpath(path) not in seen
        seen.add(os.path.realpath(path))
        depth = len(here.relative_to(root).parts)
        goes_on = is_new and (deepest is None or depth < deepest)
        names[:] = sorted(name for name in names if goes_on and not name.startswith("."))
        if is_new:
            yield from (here / name for name in sorted(files) if not name.startswith("."))
