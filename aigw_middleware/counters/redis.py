"""Counts that many machines share, in Redis 6.2 and up or Valkey.

One script call a decision, by the server's clock, which never runs backwards for a record. All
keys have one hash tag, so that a cluster keeps them together, on the node that any other names
(https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/, "MOVED Redirection").
Nothing is retried: a call that was not answered in time may have been done, and then its units
stay reserved until they leave their window, which errs on the side of the limit.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import StoreUnavailable
from ..limits.states import ARITHMETIC, Outcome, Rule, takes
from .engine import DEADLINE, Count, Decision, Demand, Settlement, new_lease
from .memory import count_of
from .redis_script import SCRIPT

logger = logging.getLogger(__name__)

REST_SECONDS = 1.0
"""How long a server that gave no answer is not asked again."""
_LISTING_SECONDS = 10.0
"""How long it may take to list or reset counts, which no request waits for."""
_TAG = "{aigw2}:"
"""The hash tag, with the number of the records' form."""
_KINDS = tuple(ARITHMETIC)
_KIND_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_NO_CALENDAR = (0,) * 7
_Numbers = tuple[int, ...]
CONNECTIONS = 256
T = TypeVar("T")


class RedisCounters:
    """Counts in a Redis database.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads them; of a cluster any node.
        deadline: seconds that a decision may take, connecting included.
        wall_clock: returns microseconds since 1970, by which calendars are looked up.

    Raises:
        ValueError: the URL cannot be read.
    """

    shared = True
    native = False

    def __init__(
        self,
        url: str,
        *,
        deadline: float = DEADLINE,
        wall_clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._deadline = deadline
        self._clock = threading.local()
        try:
            parts = urlsplit(url)
            self._named = redis.Redis.from_url(
                url,
                connection_class=_bounded(parts.scheme, self._clock),
                socket_timeout=deadline,
                socket_connect_timeout=deadline,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
                max_connections=CONNECTIONS,
                decode_responses=False,
            )
            self._shown = f"{parts.scheme}://{parts.hostname or parts.path}"
        except ValueError:
            # Whatever it says may repeat a password.
            raise ValueError("counters: the redis URL cannot be read") from None
        self._client = self._named  # or the node of a cluster that has the counts
        self._place: tuple[str, int] | None = None  # where that is
        self._moving = threading.Lock()
        self._kind = _bounded("redis" if parts.scheme == "unix" else parts.scheme, self._clock)
        self._use(SCRIPT)
        self._wall_clock = wall_clock
        self._resting_until = 0.0
        self._checked = False
        self.closed = False

    def _use(self, source: str) -> None:
        self._source = source
        self._sha = sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self._shown}>"

    def reserve(self, demands: Sequence[Demand]) -> Decision:
        """Meet all demands or none."""
        return self._decide("reserve", demands)

    def test(self, demands: Sequence[Demand]) -> Decision:
        """Tell what `reserve` would answer, spending nothing."""
        return self._decide("test", demands)

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Count what was used in the place of what was reserved."""
        if not settlements:
            return []
        keys = [_TAG + settlement.demand.name for settlement in settlements]
        arguments = [
            self._arguments(demand, mark=mark, used=used) for demand, mark, used in settlements
        ]
        with self._asking():
            answer = self._run("settle", keys, arguments)
        return [bool(known) for known in _unpacked(answer)]

    def counts(self, prefix: str = "") -> list[Count]:
        """Return what is counted under the names that begin with `prefix`."""
        with self._asking(_LISTING_SECONDS):
            keys = self._keys(prefix)
            seconds, rest = self._client.time()
            now = seconds * 1_000_000 + rest
            values: list[Any] = [self._client.get(key) for key in keys]
        found = []
        for key, value in zip(keys, values, strict=True):
            count = _count(key.decode("utf-8", "replace").removeprefix(_TAG), value, now)
            if count is not None:
                found.append(count)
        return found

    def reset(self, prefix: str = "") -> int:
        """Forget those counts."""
        with self._asking(_LISTING_SECONDS):
            keys = self._keys(prefix)
            return sum(int(self._client.delete(key)) for key in keys)

    def forget(self, names: Sequence[str]) -> int:
        """Forget the counts of just these names."""
        if not names:
            return 0
        keys = [_TAG + name for name in names]
        with self._asking(_LISTING_SECONDS):
            return self._on_its_node(lambda client: int(client.delete(*keys)))

    def close(self) -> None:
        """Close the connections of this process."""
        self.closed = True
        self._client.close()
        self._named.close()

    def _decide(self, what: str, demands: Sequence[Demand]) -> Decision:
        keys = [_TAG + demand.name for demand in demands]
        arguments = [
            self._arguments(demand, mark=new_lease() if demand.rule.kind == "leases" else 0, used=0)
            for demand in demands
        ]
        with self._asking():
            answer = self._run(what, keys, arguments)
        first, *told = _unpacked(answer)
        outcomes = list(map(Outcome, told[0::4], told[1::4], told[2::4]))
        admitted = bool(first)
        marks = told[3::4] if what == "reserve" and admitted else []
        return Decision(admitted, outcomes, marks)

    def _run(self, what: str, keys: Sequence[str], arguments: Sequence[_Numbers]) -> bytes:
        """Run the script, which the server knows after the first time."""
        numbers = [number for some in arguments for number in some]
        packed = struct.pack(f">{len(numbers)}d", *numbers)

        def run(client: Any) -> bytes:
            try:
                answer: bytes = client.evalsha(self._sha, len(keys), *keys, what, packed)
            except redis.exceptions.NoScriptError:
                client.script_load(self._source)
                answer = client.evalsha(self._sha, len(keys), *keys, what, packed)
            return answer

        return self._on_its_node(run)

    def _on_its_node(self, ask: Callable[[Any], T]) -> T:
        """Ask the server; where that is a node of a cluster, the one that it names."""
        try:
            return ask(self._client)
        except redis.exceptions.MovedError as moved:
            # Refused before anything was done, so that it may be asked again.
            self._follow(moved.host, moved.port)
            return ask(self._client)

    def _follow(self, host: str, port: int) -> None:
        """Ask another node from now on."""
        options: dict[str, Any] = {**self._named.connection_pool.connection_kwargs}
        if options.pop("path", None) is not None:
            host = host or "127.0.0.1"  # by a Unix socket, and others by TCP
        options |= {"host": host or options.get("host"), "port": port}
        place = (options["host"], port)
        with self._moving:  # of many threads that are told at once one makes the connections
            if place == self._place:
                return
            left, self._place = self._client, place
            self._client = redis.Redis(
                connection_pool=redis.ConnectionPool(
                    connection_class=self._kind, max_connections=CONNECTIONS, **options
                )
            )
        self._checked = False
        if left is not self._named:
            left.connection_pool.disconnect(inuse_connections=False)

    def _return(self) -> None:
        """Ask the node that is named again."""
        with self._moving:
            self._client, self._place = self._named, None

    def _arguments(self, demand: Demand, *, mark: int, used: int) -> _Numbers:
        """Return what the script gets of a demand, always as many numbers."""
        _, rule, units, calendar = demand
        head = (_KIND_NUMBERS[rule.kind], rule.amount, rule.window, units, mark, used)
        if rule.kind == "pace":
            more = max(0, used - units)
            costs = (takes(rule, units), takes(rule, 1), takes(rule, more or used))
            return (*head, 0, 0, 0, *costs, 0)
        if calendar is None:
            return head + _NO_CALENDAR
        begins, ends = calendar.period(self._wall_clock())
        # The server's clock may be in another period.
        next_ends = calendar.period(ends).ends
        last_begins = calendar.period(begins - 1).begins
        return (*head, begins, ends, next_ends, 0, 0, 0, last_begins)

    def _keys(self, prefix: str) -> list[bytes]:
        self._on_its_node(lambda client: client.exists(_TAG))  # a scan is refused by none
        escaped = "".join(f"\\{c}" if c in "*?[]\\^-" else c for c in _TAG + prefix)
        return list(self._client.scan_iter(match=escaped + "*", count=1000))

    def _asking(self, seconds: float | None = None) -> _Asking:
        """Return what bounds asking the server, by default by the deadline; to be entered."""
        return _Asking(self, seconds or self._deadline)

    def _check(self) -> None:
        """Look whether the server may forget counts to make room, which would lift a limit."""
        self._checked = True
        try:
            found = self._client.config_get("maxmemory*")
        except (redis.ConnectionError, redis.TimeoutError):
            self._checked = False  # the next decision finds out what that means
            return
        except redis.RedisError:
            return  # many hosted servers don't tell
        policy = str(found.get("maxmemory-policy", "noeviction"))
        if policy != "noeviction" and str(found.get("maxmemory", "0")) != "0":
            logger.warning(
                "%s evicts keys (maxmemory-policy %s): limits are lifted where it does; use "
                "noeviction", self._shown, policy,
            )  # fmt: skip

    def _unavailable(self, what: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self._shown} {what}", engine="counters")


class _Asking:
    """Asks the server for so long at most, and not at all when it has just given no answer."""

    __slots__ = ("_counters", "_seconds")

    def __init__(self, counters: RedisCounters, seconds: float) -> None:
        self._counters = counters
        self._seconds = seconds

    def __enter__(self) -> None:
        counters, now = self._counters, time.monotonic()
        if now < counters._resting_until:
            raise counters._unavailable("has just given no answer")
        counters._clock.ends = now + self._seconds

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        counters = self._counters
        if error is None:
            if not counters._checked:
                counters._check()
        elif isinstance(error, redis.exceptions.MaxConnectionsError):
            raise counters._unavailable("has no connection left for this process") from None
        elif isinstance(error, redis.ConnectionError | redis.TimeoutError):
            counters._resting_until = time.monotonic() + REST_SECONDS
            counters._checked = False
            counters._return()  # of a cluster another node may know more by then
            raise counters._unavailable(f"gave no answer ({type(error).__name__})") from None
        elif isinstance(error, redis.RedisError) and _is_replica(error):
            # Another server is the master by now: its name leads there, old connections do not.
            counters._client.connection_pool.disconnect(inuse_connections=False)
            counters._checked = False
            raise counters._unavailable("refused (READONLY)") from None
        elif isinstance(error, redis.RedisError):
            raise counters._unavailable(f"refused ({_code(error)})") from None


def _is_replica(error: redis.RedisError) -> bool:
    """Whether a server takes no writes; within a script some versions tell it in another way."""
    told = isinstance(error, redis.ReadOnlyError | redis.exceptions.MasterDownError)
    return told or "READONLY" in str(error)


def _code(error: redis.RedisError) -> str:
    """Return why a server refused: without what it says, in which there may be anything."""
    if type(error) is redis.ResponseError:
        return str(error).partition(" ")[0][:40]  # BUSY, MISCONF, NOREPLICAS, ...
    return type(error).__name__.removesuffix("Error")  # of those redis-py drops the word


def _bounded(scheme: str, clock: Any) -> type[redis.Connection]:
    """Return a connection whose answers together take no longer than until `clock.ends`.

    redis-py's own timeout is one of each read: a new connection greets, names itself and then
    asks, and a slow server could take the deadline for each of these.
    """
    kind: Any = {"unix": redis.UnixDomainSocketConnection, "rediss": redis.SSLConnection}.get(
        scheme, redis.Connection
    )

    class Bounded(kind):  # type: ignore[misc]
        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            left = clock.ends - time.monotonic()
            if left <= 0:
                self.disconnect()
                raise redis.TimeoutError("no time left")
            self._sock.settimeout(left)
            return super().read_response(*args, **kwargs)

    return Bounded


def _unpacked(data: bytes) -> list[int]:
    """Return whole numbers that came as doubles."""
    return list(map(int, struct.unpack(f">{len(data) // 8}d", data)))


def _count(name: str, value: bytes | None, now: int) -> Count | None:
    if value is None:
        return None
    kind, last, amount, length, *state = _unpacked(value)
    # Of a pace, what one unit takes is kept in the place of its window.
    return count_of(name, state, Rule(_KINDS[kind], amount, length, 1), max(now, last))
