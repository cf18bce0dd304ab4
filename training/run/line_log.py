"""A file of lines that grows: a line that cannot be written now is written later."""

from collections.abc import Iterable
from io import SEEK_END, FileIO
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
        self._torn_at: int | None = None
        """bytes of the file before a line of which a part alone could be written; the line is still unwritten"""

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
            self.is_anew, self._torn_at = False, None
            self._unwritten.clear()
        if self._unwritten and not self.is_anew:
            raise_if_leading_out(self.path, self.path.parent)
            # Without a buffer, so that it is known what has been written when the disk is full.
            with patiently(self._opened) if waits else self._opened() as file:
                if self._torn_at is not None and file.tell() > self._torn_at:
                    file.truncate(self._torn_at)
                self._torn_at = None
                self._append(file)

    def _append(self, file: FileIO) -> None:
        begin, written = file.seek(0, SEEK_END), 0
        try:
            while written < len(self._unwritten):
                written += file.write(self._unwritten[written:])
        finally:
            whole = self._unwritten.rfind(b"\n", 0, written) + 1
            if written > whole:
                self._torn_at = begin + whole
            del self._unwritten[:whole]

    def _opened(self) -> FileIO:
        return self.path.open("ab", buffering=0)
