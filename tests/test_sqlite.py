"""What is SQLite's own: one file beside others, in WAL mode."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aigw_middleware import StoreUnavailable, open_store
from aigw_middleware.store import Store
from aigw_middleware.store.schema import MIGRATIONS

from .support import delete_elsewhere, run_python


@pytest.fixture
def url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def test_the_same_store_is_opened_once(url: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Two ways to write one file give one store; a closed one is opened anew."""
    store = open_store(url)
    monkeypatch.chdir(tmp_path)
    assert open_store("sqlite:///aigw.db") is store
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.keys.list()
    assert open_store(url) is not store
    assert open_store(url).keys.list() == []


def test_files_are_for_their_owner_alone(url: str, tmp_path: Path) -> None:
    """STO-4: the database, its -wal and its -shm give group and others nothing."""
    mask = os.umask(0)
    try:
        store = open_store(url)
        store.keys.create()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(
        (
            "aigw.db",
            "aigw.db-wal",
            "aigw.db-shm",
            "aigw.db-word",
            "aigw.db-usage",
            "aigw.db-usage-wal",
            "aigw.db-usage-shm",
        ),
        0o600,
    )


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    """A store that cannot be made says so when it is opened."""
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        open_store(f"sqlite:///{tmp_path}/none/aigw.db")


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    """A file of something else is left as it is."""
    path = tmp_path / "aigw.db"
    path.write_bytes(b"not a database at all, but a text of some length" * 10)
    with pytest.raises(StoreUnavailable, match="not a database"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes().startswith(b"not a database")


def test_a_schema_from_the_future_is_refused(url: str, tmp_path: Path) -> None:
    """A store that a newer version has written is not touched."""
    open_store(url).close()
    with sqlite3.connect(tmp_path / "aigw.db") as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreUnavailable, match="upgrade"):
        open_store(url)


def test_a_removed_file_is_noticed(url: str, tmp_path: Path) -> None:
    """KEY-6: open connections to a file that was removed answer for nobody."""
    store = open_store(url)
    _, token = store.keys.create()
    assert store.keys.verify(token) is not None
    (tmp_path / "aigw.db").unlink()
    with pytest.raises(StoreUnavailable):
        store.keys.verify(token)


def test_a_bad_checksum_needs_no_store(url: str, tmp_path: Path) -> None:
    """KEY-5: with the file gone a wrong token is still just wrong."""
    store = open_store(url)
    _, token = store.keys.create()
    (tmp_path / "aigw.db").unlink()
    assert store.keys.verify(token[:-1] + ("a" if token[-1] != "a" else "b")) is None


def test_a_restored_copy_is_taken_up(url: str, tmp_path: Path) -> None:
    """A file that takes the place of the old one is read from the next request on."""
    store = open_store(url)
    _, token = store.keys.create()
    with (
        sqlite3.connect(tmp_path / "aigw.db") as source,
        sqlite3.connect(tmp_path / "copy") as copy,
    ):
        source.backup(copy)
    source.close()
    copy.close()
    key, later = store.keys.create()
    assert store.keys.verify(later) == key
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"aigw.db{suffix}").unlink()
    (tmp_path / "copy").rename(tmp_path / "aigw.db")
    assert store.keys.verify(token) is not None
    assert store.keys.verify(later) is None


def test_a_locked_store_recovers_by_itself(url: str, tmp_path: Path, monkeypatch: Any) -> None:
    """STO-1: while another process holds the file, writing says so; then it works again."""
    monkeypatch.setattr("aigw_middleware.store.sqlite.BUSY_SECONDS", 0.05)
    store = open_store(url)
    _, token = store.keys.create()
    store.close()
    store = open_store(url)
    other = sqlite3.connect(tmp_path / "aigw.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.keys.create()
    assert store.keys.verify(token) is not None  # WAL: readers go on
    other.execute("ROLLBACK")
    other.close()
    assert store.keys.create()


def test_garbage_in_the_wal_is_discarded(url: str, tmp_path: Path) -> None:
    """STO-3: a torn write-ahead log loses no key that was checkpointed."""
    store = open_store(url)
    _, token = store.keys.create()
    store.close()
    (tmp_path / "aigw.db-wal").write_bytes(os.urandom(5000))
    assert open_store(url).keys.verify(token) is not None


def test_a_change_that_nobody_announced_is_noticed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hand at the file, or a process killed between commit and word, counts within a second."""
    monkeypatch.setattr("aigw_middleware.store.sqlite.POLL_SECONDS", 0.02)
    _, token = store.keys.create()
    assert store.keys.verify(token) is not None
    with sqlite3.connect(tmp_path / "aigw.db") as connection:
        connection.execute("DELETE FROM keys")
    connection.close()
    for _ in range(1_000_000):
        if store.keys.verify(token) is None:
            return
    raise AssertionError("the change was never noticed")


def test_a_full_disk_is_503_for_writing_and_reading_goes_on(url: str, tmp_path: Path) -> None:
    """STO-2: where nothing more can be written, keys are verified all the same."""
    store = open_store(url)
    _, token = store.keys.create()
    code = (
        "import resource, signal, sys\n"
        "from aigw_middleware import StoreUnavailable, open_store\n"
        "store = open_store(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))\n"
        "try:\n    store.keys.create()\n"
        "except StoreUnavailable:\n    print('full', store.keys.verify(sys.argv[2]) is not None)\n"
    )
    assert run_python(code, url, token) == "full True\n"


def test_a_file_that_cannot_be_written_is_said(url: str, tmp_path: Path, monkeypatch: Any) -> None:
    """STO-2: a read-only database answers for keys and says so for changes."""
    store = open_store(url)
    _, token = store.keys.create()
    monkeypatch.setattr(
        "aigw_middleware.store.sqlite.SQLiteDatabase._connect",
        lambda self: sqlite3.connect(
            f"file:{tmp_path}/aigw.db?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        ),
    )
    store._database._close_connections()
    assert store.keys.verify(token) is not None
    with pytest.raises(StoreUnavailable, match="readonly"):
        store.keys.create()


def test_a_removed_word_lets_no_deleted_key_in(store: Store, url: str, tmp_path: Path) -> None:
    """With the word's file gone, a change of another process is seen all the same."""
    key, token = store.keys.create()
    assert store.keys.verify(token) is not None
    (tmp_path / "aigw.db-word").unlink()
    delete_elsewhere(url, key.id)
    assert store.keys.verify(token) is None


def test_files_of_before_are_closed_to_others(url: str, tmp_path: Path) -> None:
    """STO-4: a copy that was made by hand, readable by all, is for its owner alone once opened."""
    open_store(url).close()
    for path in tmp_path.iterdir():
        path.chmod(0o666)
    open_store(url).keys.create()
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_a_backup_that_cannot_be_whole_is_not_begun(store: Store, tmp_path: Path) -> None:
    """Where one of its two files is there already, none is written."""
    (tmp_path / "copy-usage").touch()
    with pytest.raises(StoreUnavailable, match="there already"):
        store.backup(str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_an_older_store_is_brought_up_to_date(url: str, tmp_path: Path) -> None:
    """A file of the schema before the last step opens, with what it held."""
    key, token = open_store(url).keys.create(name="old")
    path = tmp_path / "aigw.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE keys DROP COLUMN active")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) - 1}")
    told = run_python(
        "import sys; from aigw_middleware import open_store\n"
        "keys = open_store(sys.argv[1]).keys\n"
        "print(keys.verify(sys.argv[2]).name, keys.get(sys.argv[3]).active)",
        url,
        token,
        key.id,
    )
    assert told.strip() == "old ()"
