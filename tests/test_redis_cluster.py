"""Limits that are counted in a Redis Cluster, of which one node has all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.crc import key_slot

from aigw_middleware import StoreUnavailable
from aigw_middleware.counters.engine import Demand, Settlement
from aigw_middleware.counters.redis import RedisCounters
from aigw_middleware.limits.grammar import parse_limit

from .redis_server import ClusterNode, running_cluster

SLOT = key_slot(b"aigw2")
LIMIT = parse_limit("2/day")
DEMAND = Demand("n", LIMIT.rule, 1)
PATIENCE = 60.0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[ClusterNode]]:
    """Two nodes that know each other, the second one with our slot."""
    with running_cluster(tmp_path, 2) as found:
        yield found


def test_any_node_leads_to_the_one_that_counts(nodes: list[ClusterNode]) -> None:
    """Decisions, settlements, listings and resets, each asked of the wrong node at first."""
    assert RedisCounters(nodes[0].url, deadline=PATIENCE).reserve([DEMAND]).admitted
    right = RedisCounters(nodes[1].url, deadline=PATIENCE)
    assert [count.used for count in right.counts()] == [1]
    mark = right.reserve([DEMAND]).marks[0]
    assert RedisCounters(nodes[0].url, deadline=PATIENCE).settle([Settlement(DEMAND, mark, 0)]) == [
        True
    ]
    assert [count.used for count in RedisCounters(nodes[0].url).counts("n")] == [1]
    assert RedisCounters(nodes[0].url).forget(["n"]) == 1
    right.reserve([DEMAND])
    assert RedisCounters(nodes[0].url).reset() == 1
    assert right.counts() == []


def test_a_slot_that_has_moved_is_followed(nodes: list[ClusterNode]) -> None:
    """Both ways, on connections that are open: no request is refused, and the count goes on."""
    engine = RedisCounters(nodes[0].url, deadline=PATIENCE)
    assert engine.reserve([DEMAND]).admitted
    for last, next_ in ((nodes[1], nodes[0]), (nodes[0], nodes[1])):
        with last.client() as old, next_.client() as new:
            value = old.dump("{aigw2}:n")
            old.flushall()
            last.give(SLOT, next_)
            next_.give(SLOT, next_)
            new.restore("{aigw2}:n", 60_000, value, replace=True)
        assert engine.test([DEMAND]).outcomes[0].remaining == 1
    assert engine.reserve([DEMAND]).admitted
    assert not engine.reserve([DEMAND]).admitted


def test_threads_that_are_told_at_once_make_the_connections_once(nodes: list[ClusterNode]) -> None:
    """And from a Unix socket the way leads on by TCP."""
    engine = RedisCounters("unix:///no/such/socket", deadline=PATIENCE)
    engine._follow("127.0.0.1", nodes[1].port)
    followed = engine._client
    engine._follow("127.0.0.1", nodes[1].port)
    assert engine._client is followed
    assert engine.reserve([DEMAND]).admitted


def test_a_slot_that_is_on_its_way_is_refused_and_counts_nothing_twice(
    nodes: list[ClusterNode],
) -> None:
    """While a node answers ASK nobody can tell what is used; afterwards it is well again."""
    engine = RedisCounters(nodes[1].url, deadline=PATIENCE)
    id_ = nodes[0].asked("CLUSTER MYID").decode()
    nodes[1].asked("CLUSTER SETSLOT", SLOT, "MIGRATING", id_)
    with pytest.raises(StoreUnavailable, match=r"refused \(Ask"):
        engine.reserve([DEMAND])
    nodes[1].asked("CLUSTER SETSLOT", SLOT, "STABLE")
    assert engine.reserve([DEMAND]).outcomes[0].remaining == 1


def test_when_its_node_has_died_the_named_one_is_asked_anew(nodes: list[ClusterNode]) -> None:
    """Another node has taken the slot: 503 until the one that is named says so, and no restart."""
    engine = RedisCounters(nodes[0].url, deadline=PATIENCE)
    assert engine.reserve([DEMAND]).admitted
    nodes[1].stop()
    with pytest.raises(StoreUnavailable, match="gave no answer"):
        engine.reserve([DEMAND])
    nodes[0].give(SLOT, nodes[0])
    until = time.monotonic() + PATIENCE
    while True:
        try:
            assert engine.reserve([DEMAND]).admitted
            return
        except StoreUnavailable:
            assert time.monotonic() < until
