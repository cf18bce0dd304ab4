"""Values by key, in memory and on disk."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from ..basics.pytree import tensors_of
from ..learning.prefetch import NotHere
from .cache import Cache
from .slabs import Slabs

MEMORY = 512 * 2**20
"""bytes of cached values that are held in memory too"""


class ValueStore:
    """Values in the cache on disk, the latest of them in memory too; values that cannot be cached in memory alone.

    Any thread may read values; only the thread that created the store computes missing ones.
    """

    def __init__(self, cache: Cache | None):
        self._cache = cache
        self._uncached: dict[Hashable, Any] = {}
        self._recent: OrderedDict[Hashable, Any] = OrderedDict()
        self._recent_bytes = 0
        self._slabs = Slabs()
        self._lock = threading.RLock()
        self._owner = threading.get_ident()

    def missing(self, cache_keys: Mapping[Any, str | None]) -> list[Any]:
        """Those keys whose values are not in the cache.

        Args:
            cache_keys: key -> its key in the cache; None = it cannot be cached.
        """
        cached = self._cache.known(key for key in cache_keys.values() if key) if self._cache else set()
        return [key for key, cache_key in cache_keys.items() if cache_key not in cached]

    def get(self, key: Hashable, cache_key: str | None, compute: Callable[[], Any]) -> Any:
        """The value of a key, computed and stored if it is missing.

        Raises:
            NotHere: it is missing, and this is not the thread that computes.
        """
        with self._lock:
            if key in self._uncached:
                return self._uncached[key]
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key]
            value = self._cache.get(cache_key) if self._cache and cache_key else None
            if value is None:
                if threading.get_ident() != self._owner:
                    raise NotHere(f"{key} has gone from the cache")
                value = compute()
                if not self._put(cache_key, value):
                    self._uncached[key] = value
                    return value
            return self._remember(key, self._slabs.copy(value))

    def _put(self, cache_key: str | None, value: Any) -> bool:
        """Puts a value into the cache; False where that is not possible."""
        if not self._cache or not cache_key:
            return False
        try:
            self._cache.put(cache_key, value)
        except TypeError:  # a CONDITIONING with hooks of the host
            return False
        return True

    def _remember(self, key: Hashable, value: Any) -> Any:
        self._recent[key] = value
        self._recent_bytes += _bytes(value)
        while self._recent_bytes > MEMORY and len(self._recent) > 1:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= _bytes(oldest)
        return value


def _bytes(value: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(value))
