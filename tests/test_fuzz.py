"""The fuzzer's targets without the fuzzer: their seeds, the same damage to them each time, and what once broke them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz.targets import SCRATCH, TARGETS, of_file

DAMAGED = 150


def damaged(seed: bytes, random: random.Random) -> bytes:
    """A seed with some bytes changed, taken out, doubled or put elsewhere."""
    data = bytearray(seed)
    for _ in range(random.randint(1, 4)):
        at, length = random.randrange(len(data) + 1), random.randint(0, 8)
        part = bytes(data[at : at + length])
        data[at : at + length] = random.choice([random.randbytes(length), b"", part * 2, part[::-1], b"9" * 400])
        to = random.randrange(len(data) + 1)
        data[to:to] = random.choice([b"", part])
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged pictures
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_takes_its_seeds_and_survives_their_damage(name: str) -> None:
    target, dice = TARGETS[name], random.Random(name)
    for seed in target.seeds:
        target(seed)
    for _ in range(DAMAGED):
        target(damaged(dice.choice(target.seeds), dice))


FOUND = [
    pytest.param("fields", "031c1c1c1c1c1c3737382c313234", id="extra_resolutions: a separator that int() keeps"),
    pytest.param("lora", "88a91b30ab9c583da35217c9fc", id="merge: a kernel that is not the model's"),
    pytest.param(
        "lora",
        "040505010005010301020200050000040502020000010204020402040501000202040300040004020304000103"
        "03010305020104000503030103040503050401",
        id="LoKr: a factor of another shape",
    ),
    pytest.param(
        "lora",
        "0121dd3a5d1cf3c4a68defb9d695c2b3fa6a3c065a1a30da94fd7165860fa2120ae0e1a0f5c39cbae72dac2013"
        "0666f9f825b9ed9e3676256d",
        id="save: numbers of 8 bit",
    ),
    pytest.param(
        "lora",
        "010500040500000103030403050204030504040104050404050100010004050105030202030405000400040501"
        "0300050401040303050004020103030502020403",
        id="LoHa: factors that do not multiply",
    ),
    pytest.param("lora", "0d2a39f970806d6bc7a6aaac09ca8f0c57cc0b337a47e798", id="merge: differences of two lengths"),
    pytest.param("lora", "0104070a0d504108000000000000001900005d12000000000000501316ff", id="merge: no number"),
]
"""Inputs that once let an error out which the reader does not document: target, bytes."""


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_once_broke_a_reader_no_longer_does(name: str, data: str) -> None:
    TARGETS[name](bytes.fromhex(data))


def test_a_broken_reader_is_found() -> None:
    def read(path: Path) -> None:
        if b"!" in path.read_bytes():
            raise KeyError("not documented")

    target = of_file("broken.txt", read, (ValueError,), [b"a"])
    target(b"all is well")
    assert (SCRATCH / "broken.txt").exists()
    with pytest.raises(KeyError):
        target(b"boom!")
