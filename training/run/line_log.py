"""A file of lines that grows: a line that cannot be written now is written later."""

from collections.abc import Iterable
from pathlib import Path

from ..basics.files import atomic_write, patiently
from ..basics.paths import raise_if_leading_out


class LineLog:
    """Lines for a file. Each is written once and in order, even after errors; the file is open only meanwhile.

    Args:
        path: of the file; a link that leads out of its folder is not followed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.is_anew = False
        """whether what is unwritten is to replace the file"""
        self._unwritten = bytearray()

    @property
    def unwritten(self) -> bytes:
        return bytes(self._unwritten)

    def add(self, line: str) -> None:
        """Takes a line, to be written by `write`."""
        self._unwritten += f"{line}\n".encode()

    def begin_anew(self, lines: Iterable[str]) -> None:
        """Takes lines that `write` will put in place of all that is in the file."""
        self.is_anew = True
        self._unwritten.clear()
        for line in lines:
            self.add(line)

    def write(self, waits: bool = True) -> None:
        """Writes what is unwritten.

        Args:
            waits: whether it is patient if another program holds the file. Else the file is not replaced.

        Raises:
            OSError: the disk is full ...; what is unwritten is kept.
        """
        if self.is_anew and waits:
            with atomic_write(self.path) as unfinished:
                unfinished.write_bytes(self._unwritten)
            self.is_anew = False
            self._unwritten.clear()
        if self._unwritten and not self.is_anew:
            raise_if_leading_out(self.path, self.path.parent)
            # Without a buffer, so that it is known what has been written when the disk is full.
            with patiently(self._opened) if waits else self._opened() as file:
                while self._unwritten:
                    del self._unwritten[: file.write(self._unwritten)]

    def _opened(self):
        return self.path.open("ab", buffering=0)
