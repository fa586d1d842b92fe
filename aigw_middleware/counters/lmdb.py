"""Counts that all processes of one machine share, in a memory-mapped file without a server.

LMDB's own writer lock has no bound: with its holder stopped the next writer would wait for ever.
So there is a lock of ours in front, `flock` with a deadline, and LMDB is told to take none. A
writer that is killed leaves nothing locked (the kernel lets go of its flock) and nothing half
done (LMDB's transactions).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from itertools import count, islice
from pathlib import Path
from typing import Any

import lmdb

from .. import _native
from .._forks import in_child
from ..errors import StoreUnavailable
from ..limits.calendar import Calendar
from ..limits.states import ARITHMETIC, SLOTS, Arithmetic, Moment, Rule, State, new_tuple, takes
from .engine import DEADLINE, Count, Decision, Demand, Settlement, new_lease
from .memory import count_of, moment

logger = logging.getLogger(__name__)

FIRST_SIZE = 16 * 1024 * 1024
"""Bytes of the map at first; it doubles when it is full."""
LOOK_SECONDS = 0.1
"""How long it may take until a file that was removed is noticed."""
SAVE_SECONDS = 10.0
"""How much of the counts a power loss or a reboot may lose."""
_SAVED_AT_ONCE = 2000
"""Records that are read under the lock at once, in about a millisecond."""
_PAUSES = 20
"""How many times as long as it took to save them the counts are left alone after it."""
_LEFT_OVER_SECONDS = 3600.0
_numbers = count()
_PREFIX = "counters2-"
"""Of the files' names, with the number of the records' form."""
_YIELDS = 20
_NAP = 50e-6
_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
_SWEEP_AT = 8
_LONGEST_NAME = 400
_HEAD = struct.Struct("=qqqq")
_EXPIRES = struct.Struct("=q")
_CLOCK = b"\0clock"
_KINDS = tuple(ARITHMETIC)


class LMDBCounters:
    """Counts in a directory of this machine.

    The live file is named by the kernel's boot: after a reboot the copy that was saved last is
    taken over as if no time had passed, so nothing that it holds is given back early.

    Args:
        directory: where the files are; made, for its owner alone, where there is none.
        deadline: seconds that a decision may wait for its turn.
        clock: returns microseconds that never step back, also while the machine sleeps.
        wall_clock: returns microseconds since 1970.

    Raises:
        StoreUnavailable: the directory cannot be used.
    """

    shared = True
    native = True

    def __init__(
        self,
        directory: str,
        *,
        deadline: float = DEADLINE,
        clock: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000,
        wall_clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._directory = os.path.abspath(directory)
        self._path = os.path.join(self._directory, f"{_PREFIX}{_boot_id()}")
        self._saved = os.path.join(self._directory, f"{_PREFIX}saved")
        self._deadline = deadline
        self._clock = clock
        self._wall_clock = wall_clock
        self.closed = False
        self._step = _Step(self)
        self._reset()
        in_child(self._forget)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unavailable(f"{self._directory} cannot be made: {error.strerror}") from error
        with self._transaction():
            pass

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in {self._directory}>"

    def _reset(self) -> None:
        self._thread_lock = _native.allocate_lock()
        self._environment: Any = None
        self._lock_fd = -1
        self._identity: tuple[int, int] | None = None
        self._looked = 0.0
        self._offset = 0
        self._cursor = b""
        self._new = 0
        self._wants_room = False
        self._saving = False

    def _forget(self) -> None:
        """In a forked child: let go of what is the parent's, and open anew when it is needed."""
        if self._environment is not None:
            # py-lmdb refuses to open a path twice in one process, and knows nothing of the fork.
            self._environment.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._reset()

    def reserve(self, demands: Sequence[Demand]) -> Decision:
        """Meet all demands or none."""
        with self._transaction() as transaction:
            present, get = self._now(), transaction.get
            marks, outcomes, written = [], [], []
            for name, rule, units, calendar in demands:
                key = _key(name)
                value = get(key)
                state = _read(value)
                when = present if calendar is None else self._at(present, calendar)
                kind = ARITHMETIC[rule[0]]
                found = kind.reserve(state, rule, when, units, new_lease)
                if found is None:
                    return self._told(transaction, demands, present)  # nothing was written
                marks.append(found[0])
                outcomes.append(found[1])
                written.append((key, value is None, _written(state, rule, kind, when)))
            for key, is_new, record in written:
                self._new += is_new
                transaction.put(key, record)
            if self._new >= _SWEEP_AT:
                self._sweep(transaction, present, 2 * self._new)
                self._wants_room = self._is_nearly_full()
                self._new = 0
            return new_tuple(Decision, (True, outcomes, marks))

    def test(self, demands: Sequence[Demand]) -> Decision:
        """Tell what `reserve` would answer, spending nothing."""
        with self._transaction() as transaction:
            told = self._told(transaction, demands, self._now())
        admitted = all(outcome.wait == 0 for outcome in told.outcomes)
        return Decision(admitted, told.outcomes, [])

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Count what was used in the place of what was reserved."""
        known = []
        with self._transaction() as transaction:
            present = self._now()
            for (name, rule, units, calendar), mark, used in settlements:
                key = _key(name)
                state = _read(transaction.get(key))
                when = present if calendar is None else self._at(present, calendar)
                kind = ARITHMETIC[rule[0]]
                kind.expire(state, rule, when)
                known.append(kind.settle(state, rule, when, mark, units, used))
                if state:
                    transaction.put(key, _written(state, rule, kind, when))
                else:
                    transaction.delete(key)
        return known

    def counts(self, prefix: str = "") -> list[Count]:
        """Return what is counted under the names that begin with `prefix`."""
        with self._transaction() as transaction:
            now = self._now().now
            found = [
                count_of(key.decode("utf-8", "replace"), _read(value), _rule_of(value), now)
                for key, value in _entries(transaction, prefix)
            ]
        return [one for one in found if one is not None]

    def reset(self, prefix: str = "") -> int:
        """Forget those counts."""
        with self._transaction() as transaction:
            keys = [key for key, _ in _entries(transaction, prefix)]
            for key in keys:
                transaction.delete(key)
        return len(keys)

    def forget(self, names: Sequence[str]) -> int:
        """Forget the counts of just these names."""
        with self._transaction() as transaction:
            return sum(transaction.delete(_key(name)) for name in names)

    def close(self) -> None:
        """Let go of the files."""
        with self._locked():
            self.closed = True
            if self._environment is not None:
                self._environment.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._reset()

    def save(self) -> None:
        """Copy the counts to the file that is taken over after a reboot.

        Some at a time, so that no decision waits for all of them: each record is whole, and the
        clock that is saved is that of the beginning, by which nothing leaves a window too early.
        """
        # Others, of this process and of others, may be at it as well.
        temporary = f"{self._saved}.{os.getpid()}-{next(_numbers)}.new"
        try:
            self._remove_left_over()
            try:
                self._write_copy(temporary)
                os.replace(temporary, self._saved)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)  # half a copy would take the space of what still counts
        except (lmdb.Error, OSError) as error:
            raise _unavailable(f"the counts cannot be saved: {error}") from error

    def _remove_left_over(self) -> None:
        """Remove copies on which nobody works any more: who did was killed."""
        for path in Path(self._directory).glob(f"{_PREFIX}saved.*.new"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:
                    path.unlink()

    def _write_copy(self, path: str) -> None:
        with self._locked():
            size = self._opened().info()["map_size"]
        # Without `writemap`: a disk that is full is told, and ends no process.
        copy = lmdb.open(
            path, subdir=False, lock=False, sync=False, map_size=size, mode=0o600, max_dbs=0
        )
        try:
            with copy.begin(write=True) as transaction:
                transaction.put(_CLOCK, struct.pack("=q", self._now().now))
                after = b"\1"
                while some := self._some(after):
                    with transaction.cursor() as cursor:
                        cursor.putmulti(some, append=True)
                    after = some[-1][0] + b"\0"
            copy.sync(True)  # which takes its time, and holds nobody up
        finally:
            copy.close()

    def _some(self, first: bytes) -> list[tuple[bytes, bytes]]:
        """Return the next records from a key on."""
        with self._transaction() as transaction, transaction.cursor() as cursor:
            found = cursor.set_range(first)
            return list(islice(cursor.iternext(), _SAVED_AT_ONCE)) if found else []

    def _now(self) -> Moment:
        return new_tuple(Moment, (self._clock() + self._offset, 0, 0))

    def _at(self, present: Moment, calendar: Calendar) -> Moment:
        return moment(present, calendar, self._wall_clock())

    def _told(self, transaction: Any, demands: Sequence[Demand], present: Moment) -> Decision:
        outcomes = []
        for name, rule, units, calendar in demands:
            state = _read(transaction.get(_key(name)))
            when = present if calendar is None else self._at(present, calendar)
            kind = ARITHMETIC[rule.kind]
            kind.expire(state, rule, when)
            outcomes.append(kind.outcome(state, rule, when, units))
        return Decision(False, outcomes, [])

    def _sweep(self, transaction: Any, present: Moment, most: int) -> None:
        """Look at `most` records, in turn, and drop those that no longer count.

        At more than have come in since the last time, so that none are left over.
        """
        with transaction.cursor() as cursor:
            if not cursor.set_range(self._cursor):
                self._cursor = b""
                return
            for _ in range(most):
                key, value = cursor.key(), cursor.value()
                gone = key[:1] != b"\0" and _HEAD.unpack_from(value)[0] <= present.now
                if gone:
                    cursor.delete()  # and go to the next one
                else:
                    cursor.next()
                if not cursor.key():  # that was the last one
                    break
            self._cursor = cursor.key()

    def _transaction(self) -> _Step:
        """Return a transaction under the lock, to be entered: one at a time, so one for all."""
        return self._step

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock over threads and processes."""
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _acquire(self) -> None:
        """Take the lock; nothing that holds it waits for anything, or logs."""
        until = None
        if not self._thread_lock.acquire(False):
            until = time.monotonic() + self._deadline
            if not self._thread_lock.acquire(timeout=self._deadline):
                raise _unavailable("another thread holds the counts")
        try:
            if self.closed:
                raise _unavailable(f"the counts in {self._directory} are closed")
            now = time.monotonic()
            if now - self._looked >= LOOK_SECONDS:
                self._look(now)
            fd = self._lock_fd if self._lock_fd >= 0 else self._lock_file()
            try:
                fcntl.flock(fd, _EXCLUSIVE)
            except BlockingIOError:
                self._wait_for(fd, until or now + self._deadline)
        except BaseException:
            self._thread_lock.release()
            raise

    def _release(self) -> None:
        if self._lock_fd >= 0:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        self._thread_lock.release()

    @staticmethod
    def _wait_for(fd: int, deadline: float) -> None:
        """Wait for another process, until the deadline."""
        for attempt in count():
            if attempt < _YIELDS:
                os.sched_yield()
            else:
                _native.sleep(_NAP)
            try:
                fcntl.flock(fd, _EXCLUSIVE)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _unavailable("another process holds the counts") from None

    def _look(self, now: float) -> None:
        """Notice that the files are no longer those that were opened."""
        if self._identity is None:
            return
        self._looked = now
        if _identity(self._path) == self._identity:
            return
        # Others may have made a new file, or nobody has: then there is nothing to count in.
        if self._environment is not None:
            self._environment.close()
        os.close(self._lock_fd)
        self._environment, self._lock_fd, self._identity = None, -1, None

    def _lock_file(self) -> int:
        # The directory itself: a file of the lock's own could be removed by itself.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._lock_fd = os.open(self._directory, flags)
        except OSError as error:
            raise _unavailable(f"{self._directory} cannot be used: {error.strerror}") from error
        return self._lock_fd

    def _opened(self) -> Any:
        """Return the environment of this process, which is saved by a thread; the lock is held."""
        if self._environment is None:
            self._environment = self._open()
            self._identity = _identity(self._path)
            self._looked = time.monotonic()
        if not self._saving:
            self._saving = True
            _native.start_thread(self._keep_saving)
        return self._environment

    def _open(self) -> Any:
        known = os.path.exists(self._path)
        if not known:
            self._remove_old_boots()
            if os.path.exists(self._saved):
                _copy(self._saved, self._path)
        size = max(FIRST_SIZE, os.path.getsize(self._path) if os.path.exists(self._path) else 0)
        try:
            environment = lmdb.open(
                self._path, subdir=False, lock=False, writemap=True, sync=False, metasync=False,
                map_size=size, mode=0o600, max_dbs=0,
            )  # fmt: skip
        except (lmdb.Error, OSError) as error:
            raise _unavailable(f"the counts in {self._directory}: {error}") from error
        try:
            self._allocate(size)
            self._offset = self._clock_offset(environment)
        except BaseException:
            environment.close()
            raise
        return environment

    def _remove_old_boots(self) -> None:
        """Remove the live files of earlier boots, of which the saved copy is what counts."""
        for name in os.listdir(self._directory):
            path = os.path.join(self._directory, name)
            if name.startswith("counters") and path not in (self._path, self._saved):
                with suppress(OSError):
                    os.unlink(path)

    def _allocate(self, size: int) -> None:
        """Take the disk's space now: a mapped write without it would end the process."""
        try:
            fd = os.open(self._path, os.O_RDWR)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise _unavailable(f"no space for the counts: {error.strerror}") from error

    def _clock_offset(self, environment: Any) -> int:
        """Return what is added to the clock, so that it goes on where a saved file ended.

        It is kept in the file, so that all processes of this boot have the same.
        """
        name = b"\0offset-" + _boot_id().encode()
        with environment.begin(write=True) as transaction:
            known = transaction.get(name)
            if known is not None:
                return int(struct.unpack("=q", known)[0])
            saved = transaction.get(_CLOCK)
            offset = 0 if saved is None else struct.unpack("=q", saved)[0] - self._clock()
            for key, _ in list(_entries(transaction, "\0")):
                transaction.delete(key)
            transaction.put(name, struct.pack("=q", offset))
            return int(offset)

    def _is_nearly_full(self) -> bool:
        information = self._environment.info()
        used = (information["last_pgno"] + 1) * self._environment.stat()["psize"]
        return bool(used > information["map_size"] * 0.8)

    def _grow(self, environment: Any) -> None:
        size = environment.info()["map_size"] * 2
        self._allocate(size)
        environment.set_mapsize(size)

    def _grow_ahead(self) -> None:
        """Grow before it is full, so that no decision meets the end; without space then."""
        try:
            self._grow(self._environment)
        except StoreUnavailable:
            return  # whoever meets the end is told

    def _keep_saving(self) -> None:
        pause = SAVE_SECONDS
        while not self.closed:
            _native.sleep(pause)
            try:
                age = time.time() - os.stat(self._saved).st_mtime
            except OSError:
                age = SAVE_SECONDS
            if self.closed or age < SAVE_SECONDS / 2:
                continue  # another process has just done it
            began = time.monotonic()
            try:
                self.save()
            except StoreUnavailable as error:
                logger.error("%s", error)
            # A million records take seconds, which are not to be spent all the time.
            pause = max(SAVE_SECONDS, _PAUSES * (time.monotonic() - began))


class _Step:
    """A transaction under the lock; what was done in it is kept where nothing is raised."""

    __slots__ = ("_counters", "_transaction")

    def __init__(self, counters: LMDBCounters) -> None:
        self._counters = counters

    def __enter__(self) -> Any:
        counters = self._counters
        counters._acquire()
        try:
            environment = counters._opened()
            try:
                self._transaction = environment.begin(write=True)
            except lmdb.MapResizedError:
                environment.set_mapsize(0)  # another process has grown it: take its size over
                self._transaction = environment.begin(write=True)
        except BaseException as error:
            counters._release()
            if isinstance(error, lmdb.Error):
                raise _unavailable(f"the counts in {counters._directory}: {error}") from error
            raise
        return self._transaction

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        counters = self._counters
        try:
            if error is None:
                self._transaction.commit()
                if counters._wants_room:
                    counters._wants_room = False
                    counters._grow_ahead()
            else:
                self._transaction.abort()
                self._undone(error)
        except lmdb.Error as failed:
            self._undone(failed)
        finally:
            counters._release()

    def _undone(self, error: BaseException) -> None:
        """See to what has undone the transaction, where that was LMDB."""
        counters = self._counters
        if isinstance(error, lmdb.MapFullError):
            # What was done is undone; the next decision has room.
            counters._grow(counters._environment)
            raise _unavailable("the counts have just outgrown their file") from None
        if isinstance(error, lmdb.Error):
            raise _unavailable(f"the counts in {counters._directory}: {error}") from error


def _boot_id() -> str:
    """Return what distinguishes this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _key(name: str) -> bytes:
    key = name.encode("utf-8", "surrogatepass")
    if len(key) <= _LONGEST_NAME:
        return key
    return key[: _LONGEST_NAME - 32] + blake2b(key, digest_size=16).hexdigest().encode()


def _read(value: bytes | None) -> State:
    return array("q") if value is None else array("q", value[_HEAD.size :])


def _written(state: State, rule: Rule, kind: Arithmetic, when: Moment) -> bytes:
    lasts, told = _told_of(rule)
    # Until when the record is kept; at least for as long as anything in it counts.
    expires = when[0] + lasts if lasts else kind.expires(state, rule, when)
    return _EXPIRES.pack(expires) + told + state.tobytes()  # type: ignore[attr-defined,no-any-return]


@lru_cache(maxsize=1024)
def _told_of(rule: Rule) -> tuple[int, bytes]:
    """Return how long a record is kept, 0 for as its state says, and what it tells of its rule."""
    # What is counted now leaves a window at most two of its slots behind its length.
    lasts = rule.window + 2 * -(-rule.window // SLOTS) if rule.kind == "window" else 0
    # Of a pace, what one unit takes is kept in the place of its window.
    length = takes(rule, 1) if rule.kind == "pace" else rule.window
    return lasts, _HEAD.pack(0, _KINDS.index(rule.kind), rule.amount, length)[_EXPIRES.size :]


def _rule_of(value: bytes) -> Rule:
    _, kind, amount, length = _HEAD.unpack_from(value)
    return Rule(_KINDS[kind], amount, length, 1)


def _entries(transaction: Any, prefix: str) -> Iterator[tuple[bytes, bytes]]:
    beginning = prefix.encode("utf-8", "surrogatepass")
    with transaction.cursor() as cursor:
        if not cursor.set_range(beginning or b"\1"):
            return
        for key, value in cursor:
            if not key.startswith(beginning):
                return
            yield bytes(key), bytes(value)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _copy(source: str, target: str) -> None:
    """Take a saved file over; a copy that broke off, or is damaged, is never taken for one."""
    temporary = f"{target}.new"
    try:
        data = Path(source).read_bytes()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        if not _is_sound(temporary, len(data)):
            os.unlink(temporary)
            raise _unavailable(
                f"the saved counts in {source} are damaged; without that file they begin anew"
            )
        os.replace(temporary, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _unavailable("no space for the counts") from error
        raise _unavailable(f"the saved counts cannot be read: {error.strerror}") from error


def _is_sound(path: str, size: int) -> bool:
    """Whether a file is a database, and all of it is there."""
    if not size:
        return False
    try:
        environment = lmdb.open(
            path, subdir=False, lock=False, readonly=True, map_size=max(FIRST_SIZE, size), max_dbs=0
        )
    except lmdb.Error:
        return False
    try:
        # A page behind the file's end would end the process that reads it.
        pages = environment.info()["last_pgno"] + 1
        if pages * environment.stat()["psize"] > size:
            return False
        with environment.begin() as transaction:
            return transaction.get(_CLOCK) is not None
    except lmdb.Error:
        return False
    finally:
        environment.close()


def _unavailable(message: str) -> StoreUnavailable:
    return StoreUnavailable(message, engine="counters")
