"""Random numbers as a function of a key that names their purpose, not of how often a generator was called.

So a resumed run is exact by construction, and sample pictures or validation cannot change training.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

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


def seed_generators(*key: int | str) -> None:
    """Seeds torch's global generators with the key, for code of others that draws from them."""
    seed = derive_seed(*key)
    torch.default_generator.manual_seed(seed)
    for _, module in _accelerators():
        module.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """torch's global generators have their states back when the context ends."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([]))
        for kind, module in _accelerators():
            devices = range(module.device_count())
            stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
        if torch.backends.mps.is_available():
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        yield


def _accelerators() -> list[tuple[str, Any]]:
    """(name, module) of torch's GPU backends that are in use; others need no seed, and asking would start them."""
    return [(kind, module) for kind in ("cuda", "xpu") if (module := getattr(torch, kind)).is_initialized()]
