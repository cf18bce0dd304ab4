"""The cache: what it gives back, what it forgets, and what it survives."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data import cache as room
from lora_kiln.training.data.cache import Cache, open_cache
from lora_kiln.training.data.packing import pack
from lora_kiln.training.data.pictures import PictureError
from PIL import Image

from disk import files_of_at_most
from host import PACK

LARGE = 10**9
VALUE = {"a": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cache.sqlite"


def same(first, second) -> bool:
    return isinstance(first, dict) and first.keys() == second.keys() and torch.equal(first["a"], second["a"])


# ---------------------------------------------------------------- remembering


def test_a_value_is_there_after_a_restart(path: Path) -> None:
    with Cache(path, LARGE) as cache:
        cache.put("key", VALUE)
    with Cache(path, LARGE) as cache:
        assert same(cache.get("key"), VALUE) and cache.known(["key", "other"]) == {"key"}
        assert cache.get("other") is None and not cache.notes


def test_many_keys_can_be_asked_for_at_once(path: Path) -> None:
    with Cache(path, LARGE) as cache:
        for number in range(0, 1500, 3):
            cache.put(str(number), number)
        assert cache.known(map(str, range(1500))) == {str(number) for number in range(0, 1500, 3)}


def test_a_later_value_takes_the_place_of_an_earlier_one(path: Path) -> None:
    with Cache(path, LARGE) as cache:
        cache.put("key", 1)
        cache.put("key", 2)
        assert cache.get("key") == 2


def test_a_row_that_rotted_counts_as_absent(path: Path) -> None:
    with Cache(path, LARGE) as cache:
        cache.put("key", VALUE)
    with sqlite3.connect(path) as db:
        (blob,) = db.execute("SELECT blob FROM blobs").fetchone()
        db.execute("UPDATE blobs SET blob = ?", (blob[:-1] + bytes([blob[-1] ^ 1]),))
    db.close()
    with Cache(path, LARGE) as cache:
        assert cache.get("key") is None


# ---------------------------------------------------------------- forgetting


def test_what_was_not_used_for_longest_is_forgotten(path: Path) -> None:
    values = {str(number): torch.full((1000,), float(number)) for number in range(10)}
    size = len(pack(values["0"]))
    with Cache(path, LARGE) as cache:
        for key, value in values.items():
            cache.put(key, value)
    with Cache(path, LARGE) as cache:
        cache.known(["0", "1"])  # used again
    with Cache(path, 5 * size) as cache:
        cache.trim()
        assert cache.known(values) == {"0", "1", "7", "8", "9"}


def test_what_a_run_uses_stays_though_it_is_too_much(path: Path) -> None:
    with Cache(path, LARGE) as cache:
        for key in "abc":
            cache.put(key, VALUE)
    with Cache(path, 1) as cache:
        cache.known("ab")
        cache.put("d", VALUE)
        cache.trim()
        assert cache.known("abcd") == {"a", "b", "d"}


def test_the_file_shrinks_with_what_is_forgotten(path: Path) -> None:
    with Cache(path, LARGE) as cache:
        for number in range(20):
            cache.put(str(number), torch.zeros(50_000))
    before = path.stat().st_size
    with Cache(path, 500_000) as cache:
        cache.trim()
    assert before > 4_000_000 and path.stat().st_size < 1_000_000


# ---------------------------------------------------------------- files of pictures


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(file)
    return age(file)


def age(file: Path, seconds: float = 100) -> Path:
    """Sets a file's time of change back; gives the file."""
    then = time.time() - seconds
    os.utime(file, (then, then))
    return file


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read as a whole from now on."""
    names, read = [], room.picture_facts
    monkeypatch.setattr(room, "picture_facts", lambda path: names.append(path.name) or read(path))
    return names


def test_a_picture_is_not_decoded_again_after_a_restart(path: Path, picture: Path, decoded: list[str]) -> None:
    with Cache(path, LARGE) as cache:
        first = cache.picture_facts(picture)
    with Cache(path, LARGE) as cache:
        assert cache.picture_facts(picture) == first
    assert (first.width, first.height) == (40, 30) and decoded == ["a.png"]


def test_a_changed_picture_is_decoded_again(path: Path, picture: Path, decoded: list[str]) -> None:
    with Cache(path, LARGE) as cache:
        first = cache.picture_facts(picture)
        Image.new("RGB", (40, 30), (0, 0, 1)).save(picture)
        second = cache.picture_facts(age(picture, 50))
    assert first.digest != second.digest and len(decoded) == 2


def test_exchanged_pictures_of_one_size_and_time_are_decoded_again(path: Path, tmp_path: Path) -> None:
    then = time.time() - 100
    for name, color in (("a", (200, 20, 10)), ("b", (20, 200, 10))):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{name}.bmp")
        os.utime(tmp_path / f"{name}.bmp", (then, then))
    with Cache(path, LARGE) as cache:
        first, second = (cache.picture_facts(tmp_path / f"{name}.bmp").digest for name in "ab")
        for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
            (tmp_path / f"{old}.bmp").rename(tmp_path / f"{new}.bmp")
        assert [cache.picture_facts(tmp_path / f"{name}.bmp").digest for name in "ab"] == [second, first]


IMPOSSIBLE = [
    *(dict(width=width) for width in (0, -40, 8, 10**30, "40", 40.5, None)),
    *(dict(height=height) for height in (10**8, True)),
    *(dict(digest=digest) for digest in ("", "x" * 64, 7)),
    dict(is_transparent=2),
    dict(more=1),
]


@pytest.mark.parametrize("changed", [*IMPOSSIBLE, "no json", "[]", b"\xff"])
def test_facts_that_no_picture_has_are_not_believed(path: Path, picture: Path, changed: object) -> None:
    with Cache(path, LARGE) as cache:
        first = cache.picture_facts(picture)
    facts = json.dumps(asdict(first) | changed) if isinstance(changed, dict) else changed
    with sqlite3.connect(path) as db:
        db.execute("UPDATE OR IGNORE picture_files SET facts = ?", (facts,))
    db.close()
    with Cache(path, LARGE) as cache:
        assert cache.picture_facts(picture) == first and not cache.notes


def test_a_picture_changed_just_now_is_not_trusted_yet(path: Path, picture: Path, decoded: list[str]) -> None:
    os.utime(picture)
    with Cache(path, LARGE) as cache:
        cache.picture_facts(picture)
        cache.picture_facts(picture)
    assert len(decoded) == 2


def test_a_bad_picture_is_said_every_time(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with Cache(path, LARGE) as cache:
        for _ in range(2):
            with pytest.raises(PictureError, match="bad.png is not a picture"):
                cache.picture_facts(age(tmp_path / "bad.png"))


# ---------------------------------------------------------------- several processes

OTHER_PROCESS = """
import importlib.util, sys
from pathlib import Path
host, pack, tests, path = sys.argv[1:]
sys.path += [host, tests]
from comfy.cli_args import args
args.cpu = True
import utils.extra_config
spec = importlib.util.spec_from_file_location("lora_kiln", f"{pack}/__init__.py", submodule_search_locations=[pack])
sys.modules["lora_kiln"] = importlib.util.module_from_spec(spec)
from lora_kiln.training.data.cache import Cache
import torch
with Cache(Path(path), 10**9) as cache:
    print("open", flush=True)
    sys.stdin.readline()
    for number in range(300):
        cache.put(f"other {number}", torch.full((1000,), float(number)))
        cache.known([f"other {number // 2}", f"own {number // 2}"])
    assert not cache.notes, cache.notes
"""


def test_two_processes_write_at_once(path: Path, host_dir: Path) -> None:
    arguments = [str(host_dir), str(PACK), str(PACK / "tests"), str(path)]
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin and other.stdout and other.stdout.readline() == "open\n"
    with Cache(path, LARGE) as cache:
        other.stdin.write("go\n")
        other.stdin.flush()
        number = 0
        while other.poll() is None:
            cache.put(f"own {number}", torch.full((1000,), float(number)))
            cache.known([f"other {number}"])
            number += 1
        assert other.returncode == 0 and number > 1 and not cache.notes
        other.communicate()
        for name, count in (("own", number), ("other", 300)):
            for each in range(count):
                assert torch.equal(cache.get(f"{name} {each}"), torch.full((1000,), float(each)))


def test_two_caches_of_one_file_see_each_others_values(path: Path) -> None:
    with Cache(path, LARGE) as first, Cache(path, LARGE) as second:
        first.put("a", 1)
        second.put("b", 2)
        assert first.get("b") == 2 and second.get("a") == 1


# ---------------------------------------------------------------- faults


def fill(path: Path) -> None:
    with Cache(path, LARGE) as cache:
        for number in range(50):
            cache.put(str(number), torch.full((2000,), float(number)))


def damage_all(path: Path) -> None:
    path.write_bytes(b"this is no database, though it is long enough to be one" * 100)


def damage_tables(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4096] = os.urandom(3996)
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [damage_all, damage_tables, cut_short])
def test_a_damaged_file_is_set_aside_and_begun_again(path: Path, damage) -> None:
    fill(path)
    damage(path)
    with Cache(path, LARGE) as cache:
        kept = [number for number in range(50) if cache.get(str(number)) is not None]
        assert all(torch.equal(cache.get(str(number)), torch.full((2000,), float(number))) for number in kept)
        assert len(kept) < 50
        cache.known(map(str, range(50)))
        cache.put("new", VALUE)
        assert same(cache.get("new"), VALUE)
        assert len(cache.notes) == 1 and "damaged" in cache.notes[0]
    assert path.with_name("cache.sqlite.damaged").exists()
    with Cache(path, LARGE) as cache:
        cache.put("later", VALUE)
        assert same(cache.get("later"), VALUE) and not cache.notes


OTHER_TABLES = [
    "CREATE TABLE blobs (key TEXT PRIMARY KEY, blob BLOB)",
    "CREATE TABLE picture_files (path TEXT PRIMARY KEY, state TEXT, facts TEXT, more TEXT)",
    "CREATE TABLE blobs (key TEXT, used_at REAL, size INTEGER, digest BLOB, blob BLOB, more TEXT)",
    "CREATE VIEW blobs AS SELECT 1 AS key",
]


@pytest.mark.parametrize("statement", OTHER_TABLES)
def test_a_file_with_other_tables_costs_one_sentence(path: Path, picture: Path, statement: str) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    with Cache(path, LARGE) as cache:
        cache.put("key", VALUE)
        assert same(cache.get("key"), VALUE) and cache.known(["key"]) == {"key"}
        assert cache.picture_facts(picture).width == 40
        cache.trim()
        assert len(cache.notes) == 1


def test_a_file_of_an_earlier_version_serves_on(path: Path) -> None:
    fill(path)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE picture_files")
        db.execute("CREATE TABLE pictures (path TEXT PRIMARY KEY, size INTEGER NOT NULL)")
    db.close()
    with Cache(path, LARGE) as cache:
        assert cache.known(map(str, range(50))) == set(map(str, range(50))) and not cache.notes


@pytest.mark.parametrize("column", ["used_at", "size", "digest", "blob"])
@pytest.mark.parametrize("value", ["text", -1, 10**18, b"\xff"])
def test_rows_that_are_not_ours_stop_nothing(path: Path, column: str, value: object) -> None:
    fill(path)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE blobs SET {column} = ? WHERE key IN ('3', '4', '5')", (value,))
    db.close()
    with Cache(path, 10_000) as cache:
        kept = cache.get("3")
        assert kept is None or torch.equal(kept, torch.full((2000,), 3.0))
        cache.trim()
        cache.put("new", VALUE)
        assert same(cache.get("new"), VALUE) and not cache.notes


HEADER = b'{"__metadata__":{"structure":"[1, 2]"}}'


@pytest.mark.parametrize("blob", [b"", b"\xff" * 40, len(HEADER).to_bytes(8, "little") + HEADER, b"[" * 5000])
def test_a_value_packed_by_another_program_counts_as_absent(path: Path, blob: bytes) -> None:
    fill(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE blobs SET blob = ?, digest = ?", (blob, hashlib.blake2b(blob, digest_size=16).digest()))
    db.close()
    with Cache(path, LARGE) as cache:
        assert cache.get("3") is None and not cache.notes


def test_on_a_full_disk_it_goes_on_in_memory(path: Path) -> None:
    with Cache(path, LARGE) as cache:
        cache.put("before", VALUE)
        with files_of_at_most(200_000):
            for number in range(20):
                cache.put(str(number), torch.full((20_000,), float(number)))
            for number in range(20):
                assert torch.equal(cache.get(str(number)), torch.full((20_000,), float(number)))
            assert cache.known(["before", "3", "none"]) == {"before", "3"} and same(cache.get("before"), VALUE)
            cache.trim()
        assert len(cache.notes) == 1 and "held in memory" in cache.notes[0]
    with Cache(path, LARGE) as cache:
        assert same(cache.get("before"), VALUE) and not cache.notes


def test_a_disk_that_is_full_from_the_start(path: Path) -> None:
    with files_of_at_most(100), Cache(path, LARGE) as cache:
        cache.put("key", VALUE)
        assert same(cache.get("key"), VALUE) and cache.known(["key"]) == {"key"}
        assert len(cache.notes) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with Cache(tmp_path / "folder" / "cache.sqlite", LARGE) as cache:
        cache.put("key", VALUE)
        assert same(cache.get("key"), VALUE) and "held in memory" in cache.notes[0]


# ---------------------------------------------------------------- the host's cache


def test_the_cache_lies_in_the_hosts_user_folder_out_of_a_browsers_reach(folders: Path) -> None:
    with open_cache() as cache:
        assert cache.path.is_relative_to(folders / "user") and cache.limit == 20e9
        assert cache.path.relative_to(folders / "user").parts[0].startswith("__")


@pytest.mark.parametrize(("text", "limit"), [("1.5", 1.5e9), ("", 20e9), (" 3 ", 3e9)])
def test_its_limit_can_be_set(folders: Path, monkeypatch: pytest.MonkeyPatch, text: str, limit: float) -> None:
    monkeypatch.setenv("LORA_KILN_CACHE_GB", text)
    with open_cache() as cache:
        assert cache.limit == limit


def test_it_can_be_switched_off(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_KILN_CACHE_GB", "0")
    assert open_cache() is None and not list((folders / "user").iterdir())


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(folders: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LORA_KILN_CACHE_GB", text)
    with pytest.raises(InputError, match="LORA_KILN_CACHE_GB is"):
        open_cache()
