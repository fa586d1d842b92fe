"""The servers, each started once a session (and worker), when a test first asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .facts import SERVERS, Facts
from .running import Running, running


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a server under every one, one server after the other."""
    marked = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "server" in metafunc.fixturenames and "server" not in marked:
        marks = [
            pytest.param(name, id=name, marks=pytest.mark.xdist_group(name)) for name in SERVERS
        ]
        metafunc.parametrize("server", marks, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A running server."""
    with running(request.param) as started:
        yield started


@pytest.fixture
def facts(server: Running) -> Facts:
    """What is expected of it."""
    return SERVERS[server.name]
