"""Usage and `last_used`: booked without a wait, and nothing lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aigw_middleware import (
    KeyAuth,
    Provider,
    StoreUnavailable,
    UpstreamForwarder,
    Usage,
    open_store,
    stack,
)
from aigw_middleware.store import Store
from aigw_middleware.usage import figures_of
from aigw_middleware.usage.figures import Figures
from aigw_middleware.usage.journal import read_rows

from .support import CHAT, answering, call, in_child, make_environ, raw_provider, send

BODY = b'{"model": "gpt-4o"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def book(store: Store, **fields: Any) -> None:
    row: dict[str, Any] = {
        "request_id": "r", "key_id": "aigk_1", "provider": "openai", "model": "gpt-4o",
        "path": CHAT, "status": 200, "usage": Usage(10, 5, 2, cost=0.1), "duration": 1.5,
        "first_byte": 0.5,
    }  # fmt: skip
    store.usage.book(**{**row, **fields})


def test_usage_is_summed_up_by_each_dimension(store: Store) -> None:
    """By key, model, provider and day; costs add up without an error of rounding."""
    book(store)
    book(store, usage=Usage(1, 1, 0, cost=0.2))
    book(store, key_id="aigk_2", model="claude", provider="anthropic", usage=None)
    assert store.usage.totals() == [
        {"key": "aigk_1", "requests": 2, "input_tokens": 11, "output_tokens": 6,
         "cached_input_tokens": 2, "cost": 0.3},
        {"key": "aigk_2", "requests": 1, "input_tokens": 0, "output_tokens": 0,
         "cached_input_tokens": 0, "cost": None},
    ]  # fmt: skip
    assert [row["model"] for row in store.usage.totals(by="model")] == ["gpt-4o", "claude"]
    assert [row["provider"] for row in store.usage.totals(by="provider")] == ["openai", "anthropic"]
    (day,) = store.usage.totals(by="day")
    assert (day["day"], day["requests"]) == (datetime.now(UTC).strftime("%Y-%m-%d"), 3)


def test_a_span_of_time(store: Store) -> None:
    """`since` is within, `until` is not."""
    book(store)
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    assert len(store.usage.totals(since=now - hour, until=now + hour)) == 1
    assert store.usage.totals(since=now + hour) == []
    assert store.usage.totals(until=now - hour) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"by": "x"}, "by"), ({"since": 5}, "since"), ({"until": datetime(2030, 1, 1)}, "until")],
)
def test_wrong_arguments_are_named(store: Store, arguments: Any, named: str) -> None:
    """A wrong argument is a ValueError."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        store.usage.totals(**arguments)


class Odd:
    input_tokens = -5
    output_tokens = 10**30
    cached_input_tokens = "7"
    cost = float("nan")


@pytest.mark.parametrize(
    ("usage", "figures"),
    [
        (None, (0, 0, 0, 0, None)),
        (object(), (0, 0, 0, 0, None)),
        (Usage(1, 2, 3, 4, 0.000000001), (1, 2, 3, 4, 1)),
        (Odd(), (0, 10**12, 0, 0, None)),
        ({"input_tokens": 1, "output_tokens": 2, "cost": "0.5"}, (1, 2, 0, 0, 500_000_000)),
        (Usage(True, 1.5, None, 0, -1), (0, 0, 0, 0, 0)),  # type: ignore[arg-type]
    ],
)
def test_figures_are_clamped_to_sane_integers(usage: Any, figures: Any) -> None:
    """Nothing that an app or a provider says ever adds to a balance."""
    assert figures_of(usage) == Figures(*figures)


def forwarder(store: Store, url: str) -> Any:
    upstream = Provider("openai", base_url=url, api_keys=["sk-x"])
    return stack(
        UpstreamForwarder(upstream=upstream, store=store), partial(KeyAuth, keys=store.keys)
    )


def test_a_forwarded_request_is_booked_before_its_last_bytes(store: Store) -> None:
    """With a known length the row is there when the last chunk is; status and key are right."""
    key, token = store.keys.create()
    with raw_provider(answering(OK)) as provider:
        environ = make_environ(CHAT, body=BODY, HTTP_X_API_KEY=token)
        iterable = iter(forwarder(store, provider.url)(environ, lambda *args: lambda data: None))
        assert next(iterable) == b"ok"
        (row,) = store.usage.totals()
        assert list(iterable) == []
    assert (row["key"], row["requests"]) == (key.id, 1)
    assert store.usage.totals()[0]["requests"] == 1


def test_a_whole_answer_is_over_when_the_app_returns(store: Store) -> None:
    """What came in one piece holds nothing open: booked, its slot free, though nobody closes it."""
    _, token = store.keys.create(limits=["1 concurrent"])
    with raw_provider(answering(OK, keep=True)) as provider:
        app = forwarder(store, provider.url)
        for count in (1, 2):
            environ = make_environ(CHAT, body=BODY, HTTP_X_API_KEY=token)
            statuses: list[str] = []
            app(environ, lambda status, *_, into=statuses: into.append(status))  # type: ignore[arg-type]
            assert statuses == ["200 OK"]
            assert store.usage.totals()[0]["requests"] == count


@pytest.mark.parametrize("leave", [True, False])
def test_a_stream_is_booked_once(store: Store, leave: bool) -> None:
    """At its end, or when the client leaves it, and never twice."""
    _, token = store.keys.create()
    events = STREAM + b"3\r\n1\n\n\r\n" + b"0\r\n\r\n"
    with raw_provider(answering(events)) as provider:
        environ = make_environ(CHAT, body=BODY, HTTP_X_API_KEY=token)
        iterable = forwarder(store, provider.url)(environ, lambda *args: lambda data: None)
        next(iterable)
        if not leave:
            assert list(iterable) == []
            assert len(store.usage.totals()) == 1
        iterable.close()
        iterable.close()
    assert store.usage.totals()[0]["requests"] == 1


def test_an_answer_without_a_body_is_booked(store: Store) -> None:
    """204 counts as well, and a refused request does not."""
    _, token = store.keys.create()
    with raw_provider(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as provider:
        app = forwarder(store, provider.url)
        send(app, make_environ("/v1/files/x", REQUEST_METHOD="DELETE", HTTP_X_API_KEY=token))
        send(app, make_environ("/v1/files/x", HTTP_X_API_KEY="wrong"))
    assert [row["requests"] for row in store.usage.totals(by="model")] == [1]


def test_a_request_that_was_sent_and_not_answered_is_booked(store: Store) -> None:
    """Its provider may bill it: one that never came to anybody is none."""
    key, token = store.keys.create()
    with raw_provider(answering(b"")) as provider:
        app = forwarder(store, provider.url)
        assert call(app, CHAT, body=BODY, HTTP_X_API_KEY=token).status == 502
        assert call(app, CHAT, body=b"{", HTTP_X_API_KEY=token).status == 400
    assert call(app, CHAT, body=BODY, HTTP_X_API_KEY=token).status == 502  # nobody is there now
    (row,) = store.usage.totals()
    assert (row["key"], row["requests"], row["output_tokens"]) == (key.id, 1, 0)


def test_last_used_is_right_to_the_second(store: Store) -> None:
    """None until a request was let in; then the second of the last one."""
    key, token = store.keys.create()
    assert store.keys.get(key.id).last_used is None
    before = datetime.now(UTC).replace(microsecond=0)
    store.keys.verify(token)
    (listed,) = store.keys.list()
    assert listed.last_used is not None
    assert before <= listed.last_used <= datetime.now(UTC)
    assert store.keys.update(key.id, name="x").last_used == listed.last_used


def test_usage_does_not_make_anybody_read_the_keys_anew(store: Store) -> None:
    """Booking and `last_used` are kept apart from the records."""
    _, token = store.keys.create()
    store.keys.verify(token)
    word = store._database._word  # type: ignore[attr-defined]
    before = word.read()
    book(store)
    store.usage.merge()
    assert word.read() == before


KILLED = """
import sys
from aigw_middleware import Usage, open_store
store = open_store(sys.argv[1])
number = 0
while True:
    store.usage.book(request_id=str(number), key_id="k", provider=None, model=None, path="/",
                     status=200, usage=Usage(1), duration=0.1, first_byte=None)
    number += 1
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_a_killed_process_loses_no_row(store: Store, url: str) -> None:
    """`kill -9` in the middle of booking: every row that was handed out is there, none twice."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(500):
        process.stdout.readline()
    store.usage.merge()  # in the middle of it
    process.send_signal(signal.SIGKILL)
    booked = 500 + len(process.stdout.read().splitlines())
    process.wait()
    process.stdout.close()
    (row,) = store.usage.totals()
    assert booked <= row["requests"] <= booked + 1
    assert row["requests"] == row["input_tokens"]
    store.usage.merge()
    assert [path.name for path in Path(store.usage._journal.directory).glob("*.journal")] == []


def test_processes_and_threads_book_together(store: Store) -> None:
    """Four children and four threads at once: the sum is exact, whoever merges."""

    def work() -> bool:
        for _ in range(50):
            book(store)
        return True

    assert all(in_child(work) for _ in range(4))
    threads = [threading.Thread(target=lambda: [book(store) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        store.usage.merge()
    for thread in threads:
        thread.join()
    (row,) = store.usage.totals()
    assert row["requests"] == 400
    assert row["cost"] == 40


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    """A half row of a full disk costs that row alone; an unfinished tail is left for later."""
    path = tmp_path / "x.journal"
    path.write_bytes(b'["u",1]\n["u",2\n["u",3]\n["u",4')
    rows, offset = read_rows(path, 0, 10_000)
    assert rows == [["u", 1], ["u", 3]]
    path.write_bytes(path.read_bytes() + b"]\n")
    assert read_rows(path, offset, 10_000)[0] == [["u", 4]]


def test_a_long_journal_is_followed_by_another(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has grown gives way, and is removed when it was merged."""
    monkeypatch.setattr("aigw_middleware.usage.journal.LARGEST", 1000)
    for _ in range(100):
        book(store)
    directory = Path(store.usage._journal.directory)
    assert len(list(directory.glob("*.journal"))) > 5
    assert store.usage.totals()[0]["requests"] == 100
    store.usage.merge()
    assert len(list(directory.glob("*.journal"))) == 1


def test_a_key_lets_in_also_where_nothing_can_be_kept(store: Store, monkeypatch: Any) -> None:
    """STO-2: a full disk costs `last_used`, not the request, and the log says so."""
    _, token = store.keys.create()

    def full(row: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.usage._journal, "append", full)
    assert store.keys.verify(token) is not None


def test_the_command_and_the_api_tell_the_sums(store: Store, url: str) -> None:
    """`aigw usage` and `GET /usage` show what `totals` returns."""
    from click.testing import CliRunner

    from aigw_middleware import ManagementAPI
    from aigw_middleware.cli.root import aigw

    book(store)
    expected = store.usage.totals(by="provider")
    result = CliRunner().invoke(aigw, ["usage", "--by", "provider", "--json", "--store", url])
    assert json.loads(result.stdout) == expected
    assert (
        "openai" in CliRunner().invoke(aigw, ["usage", "--by", "provider", "--store", url]).stdout
    )
    api = ManagementAPI(store, "admin-token")
    head = {"HTTP_AUTHORIZATION": "Bearer admin-token"}
    query = "by=provider&since=2020-01-01T00:00:00Z&until=2099-01-01T00:00:00%2B01:00"
    answer = send(api, make_environ("/usage", QUERY_STRING=query, **head))
    assert answer.json["usage"] == expected
    for wrong in ("by=x", "since=x", "until=2020-01-01T00:00:00", "limit=5"):
        assert send(api, make_environ("/usage", QUERY_STRING=wrong, **head)).status == 400


def test_files_of_usage_are_for_their_owner_alone(store: Store, tmp_path: Path) -> None:
    """STO-4: journals and their directory give group and others nothing."""
    book(store)
    for directory, _, files in os.walk(tmp_path):
        for name in files:
            assert (Path(directory) / name).stat().st_mode & 0o077 == 0
    assert Path(store.usage._journal.directory).stat().st_mode & 0o077 == 0


def test_a_merge_elsewhere_hinders_no_change_of_a_key(store: Store) -> None:
    """While another process merges, keys are changed, rotated, shown and listed all the same."""
    key, _ = store.keys.create()
    store.usage.touch(key.id)
    lock = os.path.join(store.usage._journal.directory, "lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert store.keys.update(key.id, name="x").name == "x"
        _, token = store.keys.rotate(key.id, grace=0)
        assert store.keys.get(key.id).name == "x"
        assert len(store.keys.list()) == 1
    assert store.keys.verify(token) is not None


def test_a_rotation_survives_a_usage_database_that_is_gone(store: Store, monkeypatch: Any) -> None:
    """What was committed is answered: the new token is not lost with `last_used`."""
    key, _ = store.keys.create()

    def down(key_ids: Any) -> Any:
        raise StoreUnavailable

    monkeypatch.setattr(store.usage, "last_used", down)
    _, token = store.keys.rotate(key.id, grace=0)
    assert store.keys.verify(token) is not None


def test_a_fork_during_a_merge_keeps_no_lock(store: Store) -> None:
    """A child that was forked while its parent merged does not hold the journals for ever."""
    book(store)
    with store.usage._merging():
        pid = os.fork()
        if pid == 0:
            signal.pause()
    try:
        assert store.usage.totals()[0]["requests"] == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_journal_is_seen_by_mergers_only_when_it_is_locked(
    store: Store, monkeypatch: Any
) -> None:
    """A merger in the moment when a journal is made takes it for nobody's and loses nothing."""
    flock = fcntl.flock

    def slow(fd: Any, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        assert store.usage.totals() == []  # as another process would, in between
        flock(fd, operation)

    monkeypatch.setattr("aigw_middleware.usage.journal.fcntl.flock", slow)
    book(store)
    assert store.usage.totals()[0]["requests"] == 1


def test_a_spool_that_is_removed_is_made_again(store: Store) -> None:
    """Rows go to a file that somebody can find."""
    book(store)
    store.usage.merge()
    shutil.rmtree(store.usage._journal.directory)
    book(store)
    assert store.usage.totals()[0]["requests"] == 2


def test_a_row_that_no_database_takes_stops_no_other(store: Store) -> None:
    """Odd characters are replaced, and a row of another form is left out, loudly."""
    book(store, key_id="a\0b", model="\ud800", provider="x\0")
    store.usage._journal.append(["u", "nonsense"])
    book(store, key_id="good")
    assert {row["key"] for row in store.usage.totals()} == {"a\ufffdb", "good"}
