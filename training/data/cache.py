"""A memory on disk for what is dear to compute: latents, text embeddings, facts about picture files."""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save

from .. import host
from ..basics.folders import is_settled
from .pictures import PictureFacts, picture_facts

FILE = "encoded.sqlite"
PATIENCE = 30.0
"""seconds to wait while another process writes"""
TABLES = (
    """CREATE TABLE IF NOT EXISTS blobs (
        key TEXT PRIMARY KEY, used_at REAL NOT NULL, size INTEGER NOT NULL, digest BLOB NOT NULL, blob BLOB NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS blobs_used_at ON blobs (used_at, size)",
    """CREATE TABLE IF NOT EXISTS pictures (
        path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        width INTEGER NOT NULL, height INTEGER NOT NULL, is_transparent INTEGER NOT NULL, digest TEXT NOT NULL
    )""",
)
AT_ONCE = 500
"""keys asked for in one statement"""

Result = TypeVar("Result")


def open_cache() -> "Cache | None":
    """The host's cache; None where the person who runs the server wants none.

    Raises:
        InputError: the size set for it is no number.
    """
    limit = host.cache_limit()
    return Cache(host.cache_folder() / FILE, limit) if limit else None


class Cache:
    """Values and facts by key in one SQLite file, which several processes may share.

    What is wrong with the file or its disk never stops a run. A damaged file is set aside and begun again; where
    nothing can be written, what comes new is held in memory. Either is said once. A row whose content is no longer
    what was written counts as absent.

    Args:
        path: of the file; made, with its folder, where it is not there.
        limit: bytes that `trim` leaves.
    """

    def __init__(self, path: Path, limit: int):
        self.path = path
        self.limit = limit
        self.notes: list[str] = []
        """what went wrong, for people"""
        self._memory: dict[str, bytes] = {}
        self._started_at = time.time()
        self._lock = threading.RLock()
        self._can_write = True
        self._file: tuple[int, int] | None = None
        self._db: sqlite3.Connection | None = None
        with self._lock:
            self._open()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; what was held in memory is gone."""
        with self._lock:
            self._memory.clear()
            if self._db is not None:
                self._db.close()
                self._db = None

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that have a value. They count as used now."""
        wanted = list(keys)
        found = []
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            found += self._read(f"SELECT key FROM blobs WHERE key IN ({','.join('?' * len(part))})", part)
        rows = [(time.time(), key) for (key,) in found]
        self._write(lambda db: db.executemany("UPDATE blobs SET used_at = ? WHERE key = ?", rows))
        return {key for (key,) in found} | (self._memory.keys() & wanted)

    def get(self, key: str) -> Any | None:
        """The value of a key; None where there is none."""
        blob = self._memory.get(key)
        if blob is None:
            rows = self._read("SELECT digest, blob FROM blobs WHERE key = ?", (key,))
            if not rows or _digest(rows[0][1]) != rows[0][0]:
                return None
            blob = rows[0][1]
        return unpack(blob)

    def put(self, key: str, value: Any) -> None:
        """Remembers a value: tensors in lists and dicts with what JSON knows.

        Raises:
            TypeError: anything else in it.
        """
        blob = pack(value)
        row = (key, time.time(), len(blob), _digest(blob), blob)
        if not self._write(lambda db: db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?)", row)):
            self._memory[key] = blob

    def picture_facts(self, path: Path) -> PictureFacts:
        """What `pictures.picture_facts` says of a file, remembered as long as its size and time of change stay.

        Raises:
            PictureError: it cannot be used; that is not remembered.
        """
        stat, name = path.stat(), os.path.abspath(path)
        rows = self._read(
            "SELECT width, height, is_transparent, digest FROM pictures WHERE path = ? AND size = ? AND mtime_ns = ?",
            (name, stat.st_size, stat.st_mtime_ns),
        )
        if rows:
            width, height, is_transparent, digest = rows[0]
            return PictureFacts(width, height, bool(is_transparent), digest)
        facts = picture_facts(path)
        if is_settled(stat.st_mtime_ns):
            row = (name, stat.st_size, stat.st_mtime_ns, facts.width, facts.height, facts.is_transparent, facts.digest)
            self._write(lambda db: db.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?)", row))
        return facts

    def trim(self) -> None:
        """Forgets what was not used for longest until the limit is kept; never what this run has used."""
        total = sum(size or 0 for (size,) in self._read("SELECT SUM(size) FROM blobs", ()))
        if total <= self.limit:
            return
        oldest = self._read(
            "SELECT key, size FROM blobs WHERE used_at < ? ORDER BY used_at", (self._started_at,)
        )  # fmt: skip
        old = []
        for key, size in oldest:
            if total <= self.limit:
                break
            old.append((key,))
            total -= size
        if self._write(lambda db: db.executemany("DELETE FROM blobs WHERE key = ?", old)):
            self._attempt(lambda db: db.executescript("PRAGMA incremental_vacuum"), None)

    def _read(self, statement: str, values: Iterable[Any]) -> list[tuple]:
        return self._attempt(lambda db: db.execute(statement, tuple(values)).fetchall(), [])

    def _write(self, action: Callable[[sqlite3.Connection], Any]) -> bool:
        """Whether it was written."""

        def write(db: sqlite3.Connection) -> bool:
            with db:  # commits, or rolls back
                action(db)
            return True

        return self._can_write and self._attempt(write, False)

    def _attempt(self, action: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        with self._lock:
            if self._db is None:
                return otherwise
            try:
                return action(self._db)
            except sqlite3.Error as error:
                if _is_damage(error):
                    self._set_aside(error)
                else:
                    self._go_on_in_memory(error)
        return otherwise

    def _open(self) -> None:
        for attempt in range(2):
            try:
                self._db = self._connected()
                return
            except OSError as error:
                return self._go_on_in_memory(error)
            except sqlite3.Error as error:
                if not _is_damage(error) or attempt:
                    return self._go_on_in_memory(error)
                self._move_away(error)

    def _connected(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=PATIENCE, check_same_thread=False)
        try:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _use_write_ahead_log(db)
            db.execute("PRAGMA synchronous = NORMAL")
            with db:
                for table in TABLES:
                    db.execute(table)
            self._file = _identity(self.path)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Begins again after damage was met; another process may have done so already."""
        assert self._db is not None
        self._db.close()
        self._db = None
        if _identity(self.path) == self._file:
            self._move_away(error)
        self._open()

    def _move_away(self, error: sqlite3.Error) -> None:
        damaged = self.path.with_name(f"{self.path.name}.damaged")
        try:
            for ending in ("-wal", "-shm"):
                self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
            os.replace(self.path, damaged)
        except OSError as problem:
            self._go_on_in_memory(problem)
        else:
            self._say(f"The cache {self.path} was damaged ({error}); it begins again, the old file is {damaged.name}.")

    def _go_on_in_memory(self, error: Exception) -> None:
        if self._can_write:
            self._say(f"The cache {self.path} cannot be written ({error}): what is new is held in memory.")
        self._can_write = False

    def _say(self, note: str) -> None:
        self.notes.append(note)
        host.log("%s", note)


def pack(value: Any) -> bytes:
    """A value as safetensors bytes, its structure as JSON in their header.

    Raises:
        TypeError: something other than tensors, lists, tuples, dicts with text keys, text, numbers, booleans and None.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_structure(value, tensors))
    return save(tensors, {"structure": structure})


def unpack(blob: bytes) -> Any:
    """The inverse of `pack`."""
    length = int.from_bytes(blob[:8], "little")
    structure = json.loads(blob[8 : 8 + length])["__metadata__"]["structure"]
    return _value(json.loads(structure), load(blob))


def _structure(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value in JSON's terms, each container and tensor as [its kind, its content]."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if type(value) in (list, tuple):
        return [type(value).__name__, [_structure(item, tensors) for item in value]]
    if type(value) is dict and all(type(key) is str for key in value):
        return ["dict", {key: _structure(item, tensors) for key, item in value.items()}]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError(f"{type(value).__name__} cannot be kept in the cache")


def _value(structure: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(structure, list):
        return structure
    kind, content = structure
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _value(item, tensors) for key, item in content.items()}
    items = [_value(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _digest(blob: bytes) -> bytes:
    return hashlib.blake2b(blob, digest_size=16).digest()


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is no sound database; SQLite's errors about access and space have classes of their own."""
    return type(error) is sqlite3.DatabaseError


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at a path."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    """Readers and a writer then do not wait for each other. SQLite does not wait for its turn to switch: we do."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_at:
                raise
        time.sleep(0.02)
