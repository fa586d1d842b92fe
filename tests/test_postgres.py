"""What is PostgreSQL's own: a server that may be far away, stand still or be gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from aigw_middleware import KeyAuth, StoreUnavailable, open_store
from aigw_middleware.store.postgres import PostgresDatabase
from aigw_middleware.store.schema import MIGRATIONS

from .postgres import PostgresServer, running_postgres
from .support import Inner, call


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


OTHER_MACHINE = """
import sys
from aigw_middleware import open_store
store = open_store(sys.argv[1])
print("ready", store.keys.verify(sys.argv[2]) is not None, flush=True)
sys.stdin.readline()
while store.keys.verify(sys.argv[2]) is not None:
    pass
print("refused", flush=True)
"""


def test_a_change_reaches_another_machine(url: str, tmp_path: Path) -> None:
    """A process that shares no directory with us refuses a deleted key within a second."""
    store = open_store(url)
    key, token = store.keys.create()
    environ = {**os.environ, "AIGW_STATE": str(tmp_path / "another machine")}
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_MACHINE, url, token],
        env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready True\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        store.keys.delete(key.id)
        deleted = time.monotonic()
        assert other.stdout.readline() == "refused\n"
        assert time.monotonic() - deleted < 1


def test_a_process_that_hears_nothing_asks(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no announcement arrives the count in the table is looked at."""
    monkeypatch.setattr("aigw_middleware.store.postgres._CHANNEL", "another_channel")
    store = open_store(url)
    key, token = store.keys.create()
    assert store.keys.verify(token) is not None
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE aigw.keys SET disabled = 1")
    changed = time.monotonic()
    while store.keys.verify(token) is not None:
        assert time.monotonic() - changed < 1.5
    assert store.keys.get(key.id).disabled


def test_a_known_key_costs_no_query(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server says that nothing has changed, it is not asked for the key."""
    store = open_store(url)
    _, token = store.keys.create()
    while not isinstance(store._database.tag(), tuple):
        store.keys.verify(token)  # until the first answer of the thread that listens
    store.keys.verify(token)
    asked: list[int] = []
    monkeypatch.setattr(store._database, "read", lambda work: asked.append(1))
    for _ in range(20):
        assert store.keys.verify(token) is not None
    assert asked == []


def test_a_server_that_is_stopped_and_started(tmp_path: Path, monkeypatch: Any) -> None:
    """Without the server 503 and never 401; once it is back all works without a restart."""
    monkeypatch.setenv("AIGW_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("aigw_middleware.store.postgres.TRUST_SECONDS", 0.0)
    with running_postgres(tmp_path) as server:
        store = open_store(server.new_database())
        app = KeyAuth(Inner(), store.keys)
        _, token = store.keys.create()
        assert call(app, HTTP_X_API_KEY=token).status == 200
        server.stop()
        answer = call(app, HTTP_X_API_KEY=token)
        assert (answer.status, answer.code) == (503, "store_unavailable")
        with pytest.raises(StoreUnavailable):
            store.keys.create()
        server.start()
        assert call(app, HTTP_X_API_KEY=token).status == 200
        assert store.keys.create()
        store.close()


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    process = psutil.Process(pid)
    family = [process, *process.children()]
    for member in family:
        member.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for member in family:
            member.send_signal(signal.SIGCONT)


def test_a_server_that_stands_still(tmp_path: Path, monkeypatch: Any) -> None:
    """A server that is frozen holds a request for some seconds, not for ever; then it goes on."""
    monkeypatch.setenv("AIGW_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("aigw_middleware.store.postgres.TRUST_SECONDS", 0.0)
    monkeypatch.setattr("aigw_middleware.store.postgres._Bounded._seconds", 0.3)
    monkeypatch.setattr("aigw_middleware.store.postgres.ANSWER_SECONDS", 0.3)
    with running_postgres(tmp_path) as server:
        store = open_store(server.new_database())
        app = KeyAuth(Inner(), store.keys)
        _, token = store.keys.create()
        assert call(app, HTTP_X_API_KEY=token).status == 200
        with standing_still(server.pid):
            answer = call(app, HTTP_X_API_KEY=token)
            assert (answer.status, answer.code) == (503, "store_unavailable")
        assert call(app, HTTP_X_API_KEY=token).status == 200
        store.close()


def test_a_schema_from_the_future_is_refused(url: str) -> None:
    """A store that a newer version has written is not touched."""
    open_store(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE aigw.versions SET version = %s", (len(MIGRATIONS) + 1,))
    with pytest.raises(StoreUnavailable, match="upgrade"):
        open_store(url)


def test_a_copy_opens_as_a_store_of_its_own(url: str, tmp_path: Path) -> None:
    """A backup is a SQLite store with every record, the audit and what was used."""
    store = open_store(url, secret="a master secret for the tests")
    key, token = store.keys.create(name="web")
    store.provider_keys.create(provider="openai", secret="sk-one")
    store.usage.book(
        request_id="r", key_id=key.id, provider=None, model=None, path="/", status=200, usage=None,
        duration=1, first_byte=None,
    )  # fmt: skip
    store.backup(str(tmp_path / "copy"))
    copy = open_store(f"sqlite:///{tmp_path}/copy", secret="a master secret for the tests")
    assert copy.keys.verify(token) == key
    assert copy.provider_keys.secrets("openai") == ("sk-one",)
    assert copy.audit.verify() == []
    assert copy.usage.totals()[0]["requests"] == 1
    assert copy.keys.create()
    with pytest.raises(StoreUnavailable, match="there already"):
        store.backup(str(tmp_path / "copy"))


def test_a_copy_may_have_a_relative_path_and_half_of_one_is_not_left(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a copy would open as a store with nothing in it."""
    monkeypatch.chdir(tmp_path)
    store = open_store(url)
    store.keys.create()
    store.backup("copy")
    assert open_store(f"sqlite:///{tmp_path}/copy").keys.list()
    database = store._database
    assert isinstance(database, PostgresDatabase)

    def broken(*args: Any) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(database, "_copy", broken)
    with pytest.raises(StoreUnavailable, match="gone"):
        store.backup("half")
    assert not list(tmp_path.glob("half*"))


@pytest.mark.parametrize("wrong", ["postgresql://u:s3cret%zz@h/d", "postgresql://u:s3cret@h/d?x=y"])
def test_a_url_that_cannot_be_read_keeps_its_password(wrong: str) -> None:
    """Libpq repeats what it cannot read; we don't."""
    with pytest.raises(ValueError, match=r"^store: ") as error:
        open_store(wrong)
    assert "s3cret" not in repr(error.value)


def test_a_server_that_is_not_there_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    """Opening says which server gave no answer, without the password."""
    monkeypatch.setenv("AIGW_STATE", str(tmp_path))
    with pytest.raises(StoreUnavailable, match=r"^postgresql://u@127\.0\.0\.1:9/d gave") as error:
        open_store("postgresql://u:s3cret@127.0.0.1:9/d")
    assert "s3cret" not in str(error.value)


def test_the_state_directory_must_be_usable(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: Any
) -> None:
    """Where a machine's processes cannot share anything, it is said what to set."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIGW_STATE", str(tmp_path / "file"))
    with pytest.raises(StoreUnavailable, match="AIGW_STATE"):
        open_store(postgres.uri)


def test_connections_that_were_cut_cost_no_request(url: str) -> None:
    """STO-6: a restart or a firewall leaves a pool of dead ones; the next request is answered."""
    store = open_store(url)
    key, token = store.keys.create()
    server = store.keys._database._server  # type: ignore[attr-defined]
    gate = threading.Barrier(6)

    def hold() -> None:
        with server.connection():
            gate.wait(20)

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with server.alone() as other:
        cut = other.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name = 'aigw-middleware' AND pid <> pg_backend_pid() "
            "AND datname = current_database()"
        ).fetchone()
    assert cut is not None
    assert cut[0] >= 6
    assert store.keys.get(key.id).id == key.id
    assert store.keys.verify(token) is not None
    store.close()


def test_threads_are_bounded_by_the_pool(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than connections wait for one another and lose nothing."""
    monkeypatch.setattr("aigw_middleware.store.postgres.CONNECTIONS", 2)
    store = open_store(url)
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(store.keys.create()[0].id)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 12
    assert store.audit.verify() == []
