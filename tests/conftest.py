"""Settings of every test, and the two engines of the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from aigw_middleware.forwarding.health import health
from aigw_middleware.store import _opened

from .postgres import PostgresServer, running_postgres
from .redis_server import RedisServer, running_redis

# Deadlines of single examples say more of the machine's other work than of the code.
settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _healthy() -> None:
    """A port that another test has used is nothing that this process has seen fail."""
    health.forget()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test process."""
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a store that is not there yet."""
    return f"sqlite:///{tmp_path}/aigw.db"


@pytest.fixture
def postgres_url(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of a store that is not there yet."""
    monkeypatch.setenv("AIGW_STATE", str(tmp_path / "state"))
    yield postgres.new_database()
    # The server has a bound for the connections of all tests together.
    for store, _ in list(_opened.values()):
        store.close()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a store that is not there yet, of each engine."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server of this test process."""
    # Not in pytest's directory: a socket's path has 107 characters at most.
    with (
        TemporaryDirectory(prefix="aigw-redis-") as directory,
        running_redis(Path(directory)) as server,
    ):
        yield server
