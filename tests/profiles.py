"""ICC profiles: Adobe RGB, Display P3 (with a plain gamma), grey and inks, written by the rules of ICC.1:2001-04."""

import struct

import numpy as np
from PIL import ImageCms


def number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(number, values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def profile(colours: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", space: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2 with these tags."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"p\0" + bytes(78),
        b"wtpt": xyz(0.9642, 1, 0.8249),
        **tags,
    }
    body, table = b"", struct.pack(">I", len(tags))
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), b"lcms", 0x02200000, kind, colours, space)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + number(0.9642) + number(1) + number(0.8249)
    return head.ljust(128, b"\0") + table + body


def of_primaries(gamma: float, red: tuple, green: tuple, blue: tuple) -> bytes:
    points = {b"rXYZ": xyz(*red), b"gXYZ": xyz(*green), b"bXYZ": xyz(*blue)}
    return profile(b"RGB ", points | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma)))


def of_grey(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": curve(gamma)})


def of_inks() -> bytes:
    """A profile of CMYK in which each ink takes away its part of the light, and black a part of all."""
    steps = np.linspace(0, 1, 5)
    cyan, magenta, yellow, black = np.meshgrid(steps, steps, steps, steps, indexing="ij")
    light = np.stack([(1 - ink) ** 2.0 * (1 - black) ** 2.0 for ink in (cyan, magenta, yellow)], -1)
    to_xyz = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    white = np.array([0.9642, 1, 0.8249])
    part = light @ to_xyz.T / white
    bent = np.where(part > (6 / 29) ** 3, np.cbrt(part), part * 841 / 108 + 4 / 29)
    lab = [bent[..., 1] * 116 - 16, 500 * (bent[..., 0] - bent[..., 1]), 200 * (bent[..., 1] - bent[..., 2])]
    table = np.stack([lab[0] / 100 * 65280, (lab[1] + 128) * 256, (lab[2] + 128) * 256], -1)
    data = b"mft2\0\0\0\0" + bytes([4, 3, 5, 0]) + b"".join(map(number, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    data += struct.pack(">HH", 2, 2) + struct.pack(">2H", 0, 65535) * 4
    data += table.round().clip(0, 65535).astype(">u2").tobytes() + struct.pack(">2H", 0, 65535) * 3
    return profile(b"CMYK", {b"A2B0": data}, b"prtr", b"Lab ")


ADOBE = of_primaries(2.19921875, (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = of_primaries(2.2, (0.5151, 0.2412, -0.0011), (0.292, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
