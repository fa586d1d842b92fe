"""Engines that are down, stopped, full or gone (LIM-8): told in time, and resumed by themselves."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from aigw_middleware import RateLimiter, StoreUnavailable, open_counters
from aigw_middleware.counters import lmdb as lmdb_module
from aigw_middleware.counters import redis as redis_module
from aigw_middleware.counters.engine import Demand, Engine, Settlement
from aigw_middleware.counters.lmdb import LMDBCounters
from aigw_middleware.limits import parse_limits

from .redis_server import RedisServer, running_redis
from .support import Inner, call, in_child

(LIMIT,) = parse_limits("1000/min")


def reserve(engine: Any, name: str = "n", units: int = 1) -> bool:
    admitted: bool = engine.reserve([Demand(name, LIMIT.rule, units)]).admitted
    return admitted


def used(engine: Any) -> dict[str, int]:
    return {count.name: count.used for count in engine.counts()}


# --- LMDB


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "counters"


def test_processes_share_their_counts(directory: Path) -> None:
    """RUN-2: an engine that was used before the fork counts in the children and in the parent."""
    engine = open_counters(f"lmdb:///{directory}")
    reserve(engine)
    for _ in range(3):
        assert in_child(lambda: reserve(engine))
    assert reserve(engine)
    assert used(engine) == {"n": 5}
    engine.close()


def test_the_same_directory_is_opened_once(directory: Path, monkeypatch: Any) -> None:
    """Two ways to write one directory give one engine; a closed one is opened anew."""
    engine = open_counters(f"lmdb:///{directory}")
    monkeypatch.chdir(directory.parent)
    assert open_counters("lmdb:///counters") is engine
    reserve(engine)
    engine.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        reserve(engine)
    again = open_counters(f"lmdb:///{directory}")
    assert used(again) == {"n": 1}
    again.close()


def test_files_are_for_their_owner_alone(directory: Path) -> None:
    """Buckets may hold addresses: group and others get nothing."""
    engine = LMDBCounters(str(directory))
    reserve(engine)
    engine.save()
    for path in [directory, *directory.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    engine.close()


def test_a_directory_that_is_removed_is_refused(directory: Path, monkeypatch: Any) -> None:
    """Nobody goes on counting in a file that others cannot see: 503 until there is one again."""
    monkeypatch.setattr(lmdb_module, "LOOK_SECONDS", 0.0)
    engine = LMDBCounters(str(directory))
    app = RateLimiter(Inner(), "5/min", counters=engine)
    assert call(app).status == 200
    shutil.rmtree(directory)
    answer = call(app)
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (
        503, "store_unavailable", "1",
    )  # fmt: skip
    directory.mkdir()
    assert call(app).status == 200
    engine.close()


def test_it_grows_by_itself(directory: Path, monkeypatch: Any) -> None:
    """More buckets than the first map holds: no decision is refused, in other processes neither."""
    monkeypatch.setattr(lmdb_module, "FIRST_SIZE", 256 * 1024)
    engine = LMDBCounters(str(directory))
    read, write = os.pipe()
    back, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        reserve(engine, "another process")
        os.write(ready, b"x")
        os.read(read, 1)  # until the parent has grown the map
        os._exit(0 if all(reserve(engine, f"other {n}") for n in range(50)) else 1)
    os.read(back, 1)
    for number in range(3000):
        assert reserve(engine, f"bucket {number}")
    os.write(write, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    assert len(engine.counts()) == 3051
    engine.close()


def test_a_full_disk_is_told_and_nothing_dies(directory: Path, monkeypatch: Any) -> None:
    """Without space for a larger map 503, and what is there goes on counting."""
    monkeypatch.setattr(lmdb_module, "FIRST_SIZE", 128 * 1024)
    engine = LMDBCounters(str(directory))
    reserve(engine)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)

    def fill() -> None:
        for number in range(2000):
            reserve(engine, f"bucket {number}")

    with pytest.raises(StoreUnavailable, match="no space"):
        fill()
    assert reserve(engine)
    monkeypatch.undo()
    engine.close()


def test_a_reboot_gives_nothing_back_early(directory: Path, monkeypatch: Any) -> None:
    """The saved copy is taken over by the next boot as if no time had passed."""
    boot = ["first"]
    now = [10**12]
    monkeypatch.setattr(lmdb_module, "_boot_id", lambda: boot[0])
    engine = LMDBCounters(str(directory), clock=lambda: now[0])
    reserve(engine, units=1000)
    now[0] += 50_000_000
    engine.save()
    engine.close()
    boot[0], now[0] = "second", 5
    again = LMDBCounters(str(directory), clock=lambda: now[0])
    assert not reserve(again)
    now[0] += 11_000_000  # 50 s before, 11 after
    assert reserve(again)
    again.close()


def test_a_copy_is_saved_by_itself(directory: Path, monkeypatch: Any) -> None:
    """What a reboot may lose is bounded."""
    monkeypatch.setattr(lmdb_module, "SAVE_SECONDS", 0.05)
    engine = LMDBCounters(str(directory))
    while not (directory / "counters2-saved").exists():
        assert reserve(engine) or True
    engine.close()


def test_many_counts_are_saved_some_at_a_time(directory: Path, monkeypatch: Any) -> None:
    """All of them are in the copy, and a decision has its turn between any two parts."""
    boot = ["first"]
    monkeypatch.setattr(lmdb_module, "_boot_id", lambda: boot[0])
    monkeypatch.setattr(lmdb_module, "_SAVED_AT_ONCE", 7)
    engine = LMDBCounters(str(directory), clock=lambda: 10**12)
    names = [f"name {number:03}" for number in range(50)] + ["é", "n" * 500]
    for name in names:
        reserve(engine, name)
    parts = 0
    some = engine._some

    def counted(first: bytes) -> Any:
        nonlocal parts
        parts += 1
        assert reserve(engine, "name 000")  # which nothing holds up
        return some(first)

    monkeypatch.setattr(engine, "_some", counted)
    engine.save()
    before = len(engine.counts())
    engine.close()
    assert parts > 50 // 7
    boot[0] = "second"
    again = LMDBCounters(str(directory), clock=lambda: 10**12)
    assert len(again.counts()) == before == len(names)
    again.close()


def test_a_copy_that_fails_takes_no_space(directory: Path, monkeypatch: Any) -> None:
    """Of a full disk half a copy would take what is left; one of who was killed goes too."""
    engine = LMDBCounters(str(directory))
    reserve(engine)
    old = directory / "counters2-saved.1-0.new"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreUnavailable, match="cannot be saved"):
        engine.save()
    monkeypatch.undo()
    assert not list(directory.glob("*.new"))
    engine.close()


DAMAGED = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"no database " * 1000,
    "half": lambda data: data[: len(data) // 2],
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_copy_is_named(directory: Path, monkeypatch: Any, how: str) -> None:
    """After a reboot it is neither used nor taken for none; without it the counts begin anew."""
    boot = ["first"]
    monkeypatch.setattr(lmdb_module, "_boot_id", lambda: boot[0])
    engine = LMDBCounters(str(directory))
    for number in range(300):
        reserve(engine, f"name {number}")
    engine.save()
    engine.close()
    saved = directory / "counters2-saved"
    saved.write_bytes(DAMAGED[how](saved.read_bytes()))
    boot[0] = "second"
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="counters2-saved are damaged"):
            LMDBCounters(str(directory))
    saved.unlink()
    again = LMDBCounters(str(directory))
    assert reserve(again)
    again.close()


def test_processes_that_save_at_once_do_not_meet(directory: Path) -> None:
    """Each writes a copy of its own: none fails, and what is there in the end is a whole one."""
    engine = LMDBCounters(str(directory))
    reserve(engine)
    read, write = os.pipe()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            with suppress(BaseException):
                os.read(read, 1)
                for _ in range(30):
                    engine.save()
                code = 0
            os._exit(code)
        pids.append(pid)
    os.write(write, b"abc")
    os.close(write)
    os.close(read)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert [path.name for path in directory.glob("counters2-saved*")] == ["counters2-saved"]
    engine.close()


def test_counts_that_have_expired_are_dropped(directory: Path) -> None:
    """A hundred thousand names leave no more than those that count."""
    now = [10**12]
    engine = LMDBCounters(str(directory), clock=lambda: now[0])
    (limit,) = parse_limits("5/s")
    for number in range(3000):
        engine.reserve([Demand(f"{number:06}", limit.rule, 1)])
        now[0] += 10_000
    with engine._transaction() as transaction:
        assert transaction.stat()["entries"] < 1000
    engine.close()


# --- Redis


@pytest.fixture
def server() -> Any:
    with TemporaryDirectory(prefix="aigw-redis-") as path, running_redis(Path(path)) as found:
        yield found


def patient(server: RedisServer) -> Engine:
    """Return an engine of which a machine under load, that pauses for long, is no failure."""
    return redis_module.RedisCounters(server.url, deadline=60)


def test_a_redis_that_is_gone_and_comes_back(server: RedisServer, monkeypatch: Any) -> None:
    """503 while it is away, at once after the first time; then it counts again by itself."""
    monkeypatch.setattr(redis_module, "REST_SECONDS", 0.2)
    engine = open_counters(server.url)
    app = RateLimiter(Inner(), "5/min", counters=engine)
    assert call(app).status == 200
    server.stop()
    assert call(app).code == "store_unavailable"
    before = time.monotonic()
    for _ in range(50):
        assert call(app).code == "store_unavailable"
    assert time.monotonic() - before < 5
    server.start()
    while call(app).status != 200:
        assert time.monotonic() - before < 20
    engine.close()


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    """By the operating system."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def paused(server: RedisServer) -> Iterator[None]:
    """By an operator's CLIENT PAUSE."""
    client = server.client()
    client.client_pause(3000)
    yield
    assert client.ping()  # once it is over


@contextmanager
def asleep(server: RedisServer) -> Iterator[None]:
    """Busy with something that takes long."""
    connection = server.client().connection_pool.get_connection()
    connection.send_command("DEBUG", "SLEEP", "3")
    yield
    assert connection.read_response() == b"OK"
    connection.disconnect()


@pytest.mark.parametrize("still", [stopped, paused, asleep])
def test_a_redis_that_stands_still(server: RedisServer, still: Any) -> None:
    """A stopped server holds a request for the deadline and no longer; nothing is sent twice."""
    engine = redis_module.RedisCounters(server.url)
    assert reserve(engine)
    with still(server):
        before = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no answer"):
            reserve(engine)
        assert time.monotonic() - before < 10
    engine._resting_until = 0.0
    engine._deadline = 60.0
    assert reserve(engine)
    # The one whose answer was not awaited may have been counted, but only once.
    assert used(engine)["n"] in (2, 3)
    engine.close()


@pytest.mark.parametrize(
    ("setting", "back"),
    [("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
     ("REPLICAOF 127.0.0.1 9", "REPLICAOF NO ONE")],
    ids=["out of memory", "read-only"],
)  # fmt: skip
def test_a_redis_that_refuses_to_write(server: RedisServer, setting: str, back: str) -> None:
    """Out of memory or read-only is 503, never let through; when it is over it goes on."""
    engine = patient(server)
    assert reserve(engine)
    server.client().execute_command(*setting.split())
    with pytest.raises(StoreUnavailable, match="refused"):
        reserve(engine)
    server.client().execute_command(*back.split())
    assert reserve(engine)
    engine.close()


def test_a_redis_that_is_master_no_more_is_left(server: RedisServer, tmp_path: Path) -> None:
    """CNT-3: after a failover the name leads to another server; no restart is needed to go there."""
    name = tmp_path / "name.sock"
    name.symlink_to(server.path)
    engine = redis_module.RedisCounters(f"unix://{name}", deadline=60)
    assert reserve(engine)
    other = tmp_path / "other"
    other.mkdir()
    with running_redis(other) as successor:
        server.client().execute_command("REPLICAOF", "127.0.0.1", "1")
        name.unlink()
        name.symlink_to(successor.path)
        with pytest.raises(StoreUnavailable, match="READONLY"):
            reserve(engine)
        assert reserve(engine)
        engine.close()
    server.client().execute_command("REPLICAOF", "NO", "ONE")


def test_a_redis_that_forgets_is_warned_of(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that may evict keys lifts limits: that is said once it is connected."""
    server.client().config_set("maxmemory", "100mb")
    server.client().config_set("maxmemory-policy", "allkeys-lru")
    engine = patient(server)
    with caplog.at_level(logging.WARNING):
        reserve(engine)
        reserve(engine)
    assert len([r for r in caplog.records if "noeviction" in r.getMessage()]) == 1
    engine.close()


def test_a_flushed_redis_counts_anew(server: RedisServer) -> None:
    """The script is loaded again, and the counts begin at nothing."""
    engine = patient(server)
    reserve(engine)
    server.client().flushall()
    server.client().script_flush()
    assert reserve(engine)
    assert used(engine) == {"n": 1}
    engine.close()


def test_thousands_of_slots_are_held_and_renewed(server: RedisServer) -> None:
    """More than a script's stack takes: on one bucket, and in one renewal of a process."""
    engine = patient(server)
    (limit,) = parse_limits("5000 concurrent")
    demand = Demand("many", limit.rule, 1)
    marks = [engine.reserve([demand] * 10).marks for _ in range(450)]
    held = [Settlement(demand, mark, 1) for some in marks for mark in some]
    assert used(engine) == {"many": 4500}
    assert all(engine.settle(held[:700]))
    given = [Settlement(demand, settlement.mark, 0) for settlement in held]
    assert all(all(engine.settle(given[start : start + 100])) for start in range(0, 4500, 100))
    assert used(engine) == {}
    engine.close()


def test_keys_share_one_slot_of_a_cluster_and_expire(server: RedisServer) -> None:
    """One hash tag, and a lifetime: nothing is left for ever."""
    engine = patient(server)
    reserve(engine, "a*b")
    (key,) = server.client().keys()
    assert key == b"{aigw2}:a*b"
    assert 60_000 <= server.client().pttl(key) <= 64_000
    assert engine.reset("a*") == 1
    assert engine.reset("x") == 0
    engine.close()


def test_a_password_stays_out_of_everything() -> None:
    """Neither `repr` nor an error holds what stands in the URL."""
    engine = redis_module.RedisCounters("redis://u:s3cret@127.0.0.1:9/0")
    assert "s3cret" not in repr(engine)
    with pytest.raises(StoreUnavailable) as error:
        reserve(engine)
    assert "s3cret" not in str(error.value)
    with pytest.raises(ValueError, match=r"^counters: ") as wrong:
        open_counters("redis://u:s3cret@h:port/x")
    assert "s3cret" not in str(wrong.value)


# --- failing open


def test_fail_open_lets_in_and_says_so_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """LIM-8: with `fail_open=True` requests pass uncounted, and the log tells, not each time."""

    class Down:
        shared = native = True

        def reserve(self, demands: Any) -> Any:
            raise StoreUnavailable("down", engine="counters")

    app = RateLimiter(Inner(), "5/min", counters=Down(), fail_open=True)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        assert [call(app).status for _ in range(20)] == [200] * 20
    assert len(caplog.records) == 1
    closed = RateLimiter(Inner(), "5/min", counters=Down())  # type: ignore[arg-type]
    assert call(closed).code == "store_unavailable"


@contextmanager
def slow_front(path: Path, server: RedisServer, seconds: float) -> Iterator[str]:
    """A socket that hands each answer of `server` on after a while; yields its URL."""
    pause = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as upstream, suppress(OSError):
            upstream.connect(str(server.path))
            while data := client.recv(65536):
                upstream.sendall(data)
                answer = upstream.recv(65536)
                pause.wait(seconds)
                client.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"unix://{path}"
        pause.set()


def test_answers_that_are_each_slow_have_one_deadline_together(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A greeting and a script, each a little under 250 ms: one deadline for both, then 503."""
    redis_server.client().script_flush()
    with slow_front(Path(os.path.relpath(tmp_path)) / "s", redis_server, 0.2) as url:
        engine = open_counters(url)
        before = time.monotonic()
        with pytest.raises(StoreUnavailable, match="gave no answer"):
            reserve(engine)
        assert time.monotonic() - before < 5
        engine.close()
