"""Disks that are full or may not be written, for the tests: really so, without touching what is tested."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond so many bytes, as on a full disk (Linux, macOS)."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Writes:
    """What Python code of this process makes below a folder: files, folders, new names.

    Args:
        left: how many succeed; all that come later fail as on a full disk.
    """

    def __init__(self, folder: Path, left: int = sys.maxsize):
        self.folder, self.left, self.count = str(folder), left, 0

    def __enter__(self) -> "Writes":
        _watching.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watching.remove(self)

    def come(self, path: str) -> None:
        """Raises OSError where the disk is full."""
        if not path.startswith(self.folder):
            return
        self.count += 1
        if self.count > self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


class ShortPaths:
    """Below a folder, paths are refused as Windows refuses them without long paths.

    Args:
        longest: characters that are taken.
    """

    def __init__(self, folder: Path, longest: int = 259):
        self.folder, self.longest = str(folder), longest

    def __enter__(self) -> "ShortPaths":
        _watching.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watching.remove(self)

    def come(self, path: str) -> None:
        """Raises OSError where the path is too long."""
        if path.startswith(self.folder) and len(path) > self.longest:
            error = FileNotFoundError(errno.ENOENT, "The filename or extension is too long", path)
            error.winerror = 206  # type: ignore[attr-defined]  # an attribute of its own, where the system is another
            raise error


_watching: list[Writes | ShortPaths] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """What Python tells before it opens a file or makes a folder or a name; what is raised here is raised there."""
    if not _watching or event not in ("open", "os.mkdir", "os.rename"):
        return
    path = arguments[1] if event == "os.rename" else arguments[0]
    if isinstance(path, str | os.PathLike) and (event != "open" or arguments[2] & os.O_CREAT):
        for each in _watching:
            each.come(os.fspath(path))


sys.addaudithook(_audit)


class SmallDisk:
    """Where a server's folders lie on disks of their own: a small one, and one that may only be read.

    They are mounts that nobody but the server sees. Where the system allows no such mounts, a bound on the length of
    the server's files stands for the full disk, and a file in its place for the folder that may not be written.

    Args:
        folder: on the small disk.
        shut: below it, on the disk that may only be read.
        may_mount: False: as on a system that allows no such mounts.
    """

    SCRIPT = """
        mount -t tmpfs -o size=160m none "$0" && mkdir -p "$0/$1" && mount -t tmpfs -o ro none "$0/$1" || exit 1
        shift
        exec "$@"
    """
    LONGEST = 100_000
    """bytes of a file that stand for a full disk: more than the server's log has, less than a checkpoint"""

    def __init__(self, folder: Path, shut: str, may_mount: bool = True):
        own = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        folder.mkdir(parents=True, exist_ok=True)
        probe = [*own, 'mount -t tmpfs none "$0"', str(folder)]
        self.folder, self.is_mounted, self.pid = folder, may_mount and _succeeds(probe), 0
        self.through = [*own, self.SCRIPT, str(folder), shut] if self.is_mounted else []
        if not self.is_mounted:
            (folder / shut).parent.mkdir(parents=True, exist_ok=True)
            (folder / shut).write_text("in the way")

    @property
    def seen(self) -> Path:
        """The folder as the server sees it."""
        return Path(f"/proc/{self.pid}/root{self.folder}") if self.is_mounted else self.folder

    def fill(self) -> None:
        """Leaves no room."""
        if not self.is_mounted:
            self._bound(self.LONGEST)
            return
        with (self.seen / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def empty(self) -> None:
        """Makes room again."""
        if self.is_mounted:
            (self.seen / "ballast").unlink()
        else:
            self._bound(None)

    def _bound(self, size: int | None) -> None:
        """Bounds the length of the server's files; None: as far as its own bound goes."""
        import resource

        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
