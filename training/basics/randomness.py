"""Random numbers as a function of a key that names their purpose, not of how often a generator was called.

So a resumed run is exact by construction, and sample pictures or validation cannot change training.
"""

import hashlib
import random

import torch


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as (run seed, step, sample, "noise")."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def tensor_generator(*key: int | str) -> torch.Generator:
    """A CPU generator for the key, so that its numbers are the same for every device."""
    return torch.Generator().manual_seed(derive_seed(*key))


def python_random(*key: int | str) -> random.Random:
    """Python's generator for the key, for shuffles and choices."""
    return random.Random(derive_seed(*key))
