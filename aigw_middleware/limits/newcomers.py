"""A bound on the buckets that one client makes with what it says of itself.

A header or a model's name costs a client nothing to change. Without a key or claims, each new
value would be a new bucket with a limit of its own, and an entry in the engine.
"""

from __future__ import annotations

import threading

from cachetools import TTLCache

MOST_BUCKETS = 1000
"""How many buckets one address may make in `WHILE` seconds, in each process."""
WHILE = 3600.0
_MOST_CLIENTS = 4096


class Newcomers:
    """Which buckets were made by whom; those not used for longest are forgotten first.

    Args:
        most: the most buckets of one client.
    """

    def __init__(self, most: int = MOST_BUCKETS) -> None:
        self._most = most
        self._made: TTLCache[str, set[int]] = TTLCache(_MOST_CLIENTS, WHILE)
        self._lock = threading.Lock()

    def has_room(self, client: str, bucket: str) -> bool:
        """Whether `client` has made `bucket`, or may still make it; changes nothing."""
        with self._lock:
            made = self._made.get(client)
        return made is None or len(made) < self._most or hash(bucket) in made

    def make(self, client: str, bucket: str) -> bool:
        """Note that `client` uses `bucket`; False where it has made too many others."""
        with self._lock:
            made = self._made.get(client)
            if made is None:
                made = self._made[client] = set()
            name = hash(bucket)
            if name in made:
                return True
            if len(made) >= self._most:
                return False
            made.add(name)
            return True
