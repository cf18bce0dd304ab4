"""A cache on disk of what takes long to compute: latents, text embeddings, facts about picture files."""

import hashlib
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from .. import host
from ..basics.files import delete, replace
from ..basics.folders import file_state, is_stable
from ..basics.long_paths import try_length
from .packing import pack, unpack
from .pictures import LARGEST_AREA, SMALLEST_SIDE, PictureFacts, picture_facts

FILE = "encoded.sqlite"
BUSY_SECONDS = 30.0
"""longest wait while another process writes"""
STATEMENTS = (
    """CREATE TABLE IF NOT EXISTS blobs (
        key TEXT PRIMARY KEY, used_at REAL NOT NULL, size INTEGER NOT NULL, digest BLOB NOT NULL, blob BLOB NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS blobs_used_at ON blobs (used_at, size)",
    "CREATE TABLE IF NOT EXISTS picture_files (path TEXT PRIMARY KEY, state TEXT NOT NULL, facts TEXT NOT NULL)",
    "DROP TABLE IF EXISTS pictures",  # of earlier versions
)
COLUMNS = {"blobs": ["key", "used_at", "size", "digest", "blob"], "picture_files": ["path", "state", "facts"]}
KEYS_PER_QUERY = 500
"""SQLite limits the parameters of a statement"""

Result = TypeVar("Result")
_FACTS = TypeAdapter(PictureFacts)


def open_cache() -> "Cache | None":
    """The host's cache; None if the environment variable of its size turns it off.

    Raises:
        InputError: that variable is not a number.
    """
    limit = host.cache_limit()
    return Cache(host.cache_folder() / FILE, limit) if limit else None


class Cache:
    """Values and facts by key in one SQLite file, which several processes may share.

    An error of the file or its disk never stops a run. A damaged file, or one with other tables, is renamed and a new
    one begun; if nothing can be written, new values are held in memory. Either is logged once. A value that does not
    match its digest or was packed otherwise, and facts that no picture can have, are absent.

    Args:
        path: of the file; it and its folder are created if they do not exist.
        limit: bytes that `trim` leaves.
    """

    def __init__(self, path: Path, limit: int):
        self.path = path
        self.limit = limit
        self.notes: list[str] = []
        """what went wrong, for the run's report"""
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
        """Closes the file and drops the values held in memory."""
        with self._lock:
            self._memory.clear()
            if self._db is not None:
                self._db.close()
                self._db = None

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those keys that have a value; they are marked as used now."""
        wanted = list(keys)
        found = []
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            part = wanted[start : start + KEYS_PER_QUERY]
            found += self._read(f"SELECT key FROM blobs WHERE key IN ({','.join('?' * len(part))})", part)
        rows = [(time.time(), key) for (key,) in found]
        self._write(lambda db: db.executemany("UPDATE blobs SET used_at = ? WHERE key = ?", rows))
        return {key for (key,) in found} | (self._memory.keys() & wanted)

    def get(self, key: str) -> Any | None:
        """The value of a key, or None."""
        blob = self._memory.get(key)
        if blob is None:
            rows = self._read("SELECT digest, blob FROM blobs WHERE key = ?", (key,))
            if not rows or not isinstance(rows[0][1], bytes) or _digest(rows[0][1]) != rows[0][0]:
                return None
            blob = rows[0][1]
        try:
            return unpack(blob)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError):
            return None  # whole, but not packed by this version

    def put(self, key: str, value: Any) -> None:
        """Stores a value.

        Raises:
            TypeError: `pack` cannot store it.
        """
        blob = pack(value)
        row = (key, time.time(), len(blob), _digest(blob), blob)
        if not self._write(lambda db: db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?)", row)):
            self._memory[key] = blob

    def picture_facts(self, path: Path) -> PictureFacts:
        """`pictures.picture_facts` of a file, cached while its `file_state` stays the same.

        Raises:
            PictureError: the file cannot be used; this is not cached.
        """
        stat, name = path.stat(), os.path.abspath(path)
        state = str(file_state(stat))
        rows = self._read("SELECT facts FROM picture_files WHERE path = ? AND state = ?", (name, state))
        known = _facts(rows[0][0]) if rows else None
        if known is not None:
            return known
        facts = picture_facts(path)
        if is_stable(stat.st_mtime_ns):
            row = (name, state, json.dumps(asdict(facts)))
            self._write(lambda db: db.execute("INSERT OR REPLACE INTO picture_files VALUES (?, ?, ?)", row))
        return facts

    def trim(self) -> None:
        """Deletes the least recently used values above the limit, but none used since the cache was opened."""
        total = sum(size for (size,) in self._read("SELECT TOTAL(size) FROM blobs", ()))
        if total <= self.limit:
            return
        query = "SELECT key, CAST(size AS INTEGER) FROM blobs WHERE used_at < ? ORDER BY used_at"
        old = []
        for key, size in self._read(query, (self._started_at,)):
            if total <= self.limit:
                break
            old.append((key,))
            total -= size
        if self._write(lambda db: db.executemany("DELETE FROM blobs WHERE key = ?", old)):
            self._attempt(lambda db: db.executescript("PRAGMA incremental_vacuum"), None)

    def _read(self, statement: str, values: Iterable[Any]) -> list[tuple]:
        return self._attempt(lambda db: db.execute(statement, tuple(values)).fetchall(), [])

    def _write(self, action: Callable[[sqlite3.Connection], Any]) -> bool:
        """False where it could not be written."""

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
                    self._replace_damaged(error)
                else:
                    self._stop_writing(error)
        return otherwise

    def _open(self) -> None:
        for attempt in range(2):
            try:
                self._db = self._connected()
                return
            except OSError as error:
                return self._stop_writing(error)
            except sqlite3.Error as error:
                if not _is_damage(error) or attempt:
                    return self._stop_writing(error)
                self._rename_damaged(error)

    def _connected(self) -> sqlite3.Connection:
        try_length(self.path.absolute().with_name(f"{self.path.name}-wal"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _use_write_ahead_log(db)
            db.execute("PRAGMA synchronous = NORMAL")
            with db:
                for statement in STATEMENTS:
                    db.execute(statement)
                _check_columns(db)
            self._file = _identity(self.path)
        except BaseException:
            db.close()
            raise
        return db

    def _replace_damaged(self, error: sqlite3.Error) -> None:
        """Begins a new file after damage, unless another process has done so already."""
        assert self._db is not None
        self._db.close()
        self._db = None
        if _identity(self.path) == self._file:
            self._rename_damaged(error)
        self._open()

    def _rename_damaged(self, error: sqlite3.Error) -> None:
        damaged = self.path.with_name(f"{self.path.name}.damaged")
        try:
            for ending in ("-wal", "-shm"):
                delete(self.path.with_name(self.path.name + ending))
            replace(self.path, damaged)
        except OSError as problem:
            self._stop_writing(problem)
        else:
            self._note(f"The cache {self.path} was damaged ({error}); it begins again, the old file is {damaged.name}.")

    def _stop_writing(self, error: Exception) -> None:
        if self._can_write:
            self._note(f"The cache {self.path} cannot be written ({error}): what is new is held in memory.")
        self._can_write = False

    def _note(self, note: str) -> None:
        self.notes.append(note)
        host.log("%s", note)


def _digest(blob: bytes) -> bytes:
    return hashlib.blake2b(blob, digest_size=16).digest()


def _check_columns(db: sqlite3.Connection) -> None:
    """Raises an error that counts as damage if the tables have other columns than ours."""
    for table, columns in COLUMNS.items():
        if [row[1] for row in db.execute(f"PRAGMA table_info({table})")] != columns:
            raise sqlite3.DatabaseError(f"its table {table} is not one that this version makes")


def _facts(text: Any) -> PictureFacts | None:
    """The facts of a row; None if they are not what `picture_facts` may give."""
    try:
        facts = _FACTS.validate_json(text, strict=True)
    except (ValidationError, TypeError):
        return None
    sides = (facts.width, facts.height)
    is_possible = min(sides) >= SMALLEST_SIDE and facts.width * facts.height <= LARGEST_AREA
    return facts if is_possible and re.fullmatch("[0-9a-f]{64}", facts.digest) else None


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is damaged; errors of access, locks and space are subclasses of DatabaseError."""
    return type(error) is sqlite3.DatabaseError


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at a path."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    """Lets readers and a writer work at the same time. SQLite's timeout does not cover this switch: it is retried."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
