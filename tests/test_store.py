"""Changing and rotating keys, sealed provider keys, and how a change reaches everyone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aigw_middleware import KeyAuth, Provider, UpstreamForwarder, open_store
from aigw_middleware.keys.sealing import Sealer, WrongSecret
from aigw_middleware.store import Store

from .support import CHAT, Inner, answering, call, delete_elsewhere, raw_provider

SECRET = "a master secret for the tests"
PROVIDER_SECRET = "sk-live-Qx7Lm2Vt9Rb4Zc8Nk1"
BODY = b'{"model": "gpt-4o"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url, secret=SECRET)


# --- update and rotate


CHANGES = [
    ("name", "n"),
    ("description", "d"),
    ("metadata", "{}"),
    ("endpoint_id", "ep_1"),
    ("expires_at", datetime(2031, 1, 1, tzinfo=UTC)),
    ("disabled", True),
    ("limits", ("5/min",)),
    ("models", ("gpt-4o",)),
    ("networks", ("10.0.0.0/8",)),
    ("active", ("mon-fri 08:00-18:00 Europe/Berlin",)),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_one_field_changes_and_the_others_stay(store: Store, field: str, value: Any) -> None:
    """`update` changes what is given, and says when."""
    before, _ = store.keys.create(name="a", limits=["9/min"])
    after = store.keys.update(before.id, **{field: value})
    assert getattr(after, field) == value
    assert store.keys.get(before.id) == after
    assert after.updated_at is not None
    assert before.updated_at is not None
    assert after.updated_at > before.updated_at
    for other in ("id", "name", "limits", "created_at", "redacted"):
        if other != field:
            assert getattr(after, other) == getattr(before, other)


def test_none_clears_where_none_means_something(store: Store) -> None:
    """Expiry, endpoint and models are taken back with None."""
    key, _ = store.keys.create(
        expires_at=datetime.now(UTC) + timedelta(1), endpoint_id="e", models=[]
    )
    key = store.keys.update(key.id, expires_at=None, endpoint_id=None, models=None)
    assert (key.expires_at, key.endpoint_id, key.models) == (None, None, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", None), ("description", "x" * 256), ("disabled", 1), ("disabled", "no"), ("limits", 5),
     ("models", 5), ("networks", ["x"]), ("expires_at", 5), ("active", ["always"])],
)  # fmt: skip
def test_a_wrong_change_is_named_and_changes_nothing(store: Store, field: str, value: Any) -> None:
    """A wrong value is a ValueError; the record is as it was."""
    key, _ = store.keys.create(name="a")
    with pytest.raises(ValueError, match=f"^{field}: "):
        store.keys.update(key.id, **{field: value})
    assert store.keys.get(key.id) == key


def test_what_is_not_there_cannot_be_changed(store: Store) -> None:
    """An unknown id is a KeyError, an unknown field a TypeError."""
    with pytest.raises(KeyError):
        store.keys.update("aigk_none", name="x")
    with pytest.raises(KeyError):
        store.keys.rotate("aigk_none")
    with pytest.raises(TypeError):
        store.keys.update("aigk_none", token="x")  # type: ignore[call-arg]


def test_a_disabled_key_is_refused_until_it_is_enabled(store: Store) -> None:
    """A change is in force with the next request."""
    key, token = store.keys.create()
    app = KeyAuth(Inner(), store.keys)
    seen = []
    for disabled in (False, True, False):
        store.keys.update(key.id, disabled=disabled)
        seen.append(call(app, HTTP_X_API_KEY=token).status)
    assert seen == [200, 401, 200]


def test_both_tokens_work_in_the_grace_after_a_rotation(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id stays, the new token works at once, the old one until its grace is over."""
    key, old = store.keys.create()
    again, new = store.keys.rotate(key.id, grace=60)
    assert again.id == key.id
    assert new != old
    assert [store.keys.verify(token) is not None for token in (old, new)] == [True, True]
    from aigw_middleware.store import rows

    later = rows.now() + 61_000_000
    monkeypatch.setattr(rows, "now", lambda: later)
    assert [store.keys.verify(token) is not None for token in (old, new)] == [False, True]


def test_a_second_rotation_ends_the_first_grace(store: Store) -> None:
    """Two tokens at most work at a time."""
    key, first = store.keys.create()
    _, second = store.keys.rotate(key.id)
    _, third = store.keys.rotate(key.id, grace=0)
    works = [store.keys.verify(token) is not None for token in (first, second, third)]
    assert works == [False, False, True]


@pytest.mark.parametrize("grace", [-1, 30 * 86_400 + 1, 1.5, None, True])
def test_a_grace_is_bounded(store: Store, grace: Any) -> None:
    """0 seconds to 30 days, whole."""
    key, _ = store.keys.create()
    with pytest.raises(ValueError, match=r"^grace: "):
        store.keys.rotate(key.id, grace=grace)


# --- verification that costs little


def counting(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    queries: list[int] = []
    read = store._database.read

    def counted(work: Callable[[Any], Any]) -> Any:
        queries.append(1)
        return read(work)

    monkeypatch.setattr(store._database, "read", counted)
    return queries


def test_a_known_key_costs_no_query_until_something_changes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good key is looked up once; a change of any record makes the next look a query."""
    key, token = store.keys.create()
    store.keys.verify(token)
    store._database._stop.set()
    queries = counting(store, monkeypatch)
    tag = store._database.tag()
    monkeypatch.setattr(store._database, "tag", lambda: tag)
    for _ in range(50):
        assert store.keys.verify(token) is not None
    assert len(queries) <= 1
    monkeypatch.undo()
    store.keys.delete(key.id)
    assert store.keys.verify(token) is None


def test_a_change_of_another_process_is_seen_by_the_next_request(store: Store, url: str) -> None:
    """KEY-8: after another process has deleted a key it is not accepted here once more."""
    key, token = store.keys.create()
    assert store.keys.verify(token) is not None
    delete_elsewhere(url, key.id)
    assert store.keys.verify(token) is None


# --- provider keys


def test_a_provider_key_is_kept_sealed(store: Store, tmp_path: Path) -> None:
    """The secret is nowhere in the record or the files, and opens for the forwarder alone."""
    record = store.provider_keys.create(
        provider="OpenAI", secret=PROVIDER_SECRET, description="main"
    )
    assert (record.provider, record.description, record.disabled) == ("openai", "main", False)
    assert record.id.startswith("aigpk_")
    assert store.provider_keys.get(record.id) == record
    assert store.provider_keys.list() == [record]
    assert store.provider_keys.secrets("openai") == (PROVIDER_SECRET,)
    store.backup(str(tmp_path / "copy"))
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for start in range(len(PROVIDER_SECRET) - 7):
        run = PROVIDER_SECRET[start : start + 8]
        assert run not in repr(record) + record.redacted + repr(vars(store.provider_keys))
        assert run.encode() not in files


def test_several_keys_have_an_order_and_a_state(store: Store) -> None:
    """The newest comes first; a disabled one is left out; a rotated one keeps its place."""
    keys = store.provider_keys
    first = keys.create(provider="openai", secret="sk-first")
    second = keys.create(provider="openai", secret="sk-second")
    keys.create(provider="anthropic", secret="sk-other")
    assert keys.secrets("openai") == ("sk-second", "sk-first")
    keys.update(second.id, disabled=True)
    assert keys.secrets("openai") == ("sk-first",)
    keys.rotate(first.id, secret="sk-again")
    assert keys.secrets("openai") == ("sk-again",)
    assert keys.delete(first.id) is True
    assert keys.delete(first.id) is False
    assert keys.secrets("openai") == ()
    assert keys.providers() == ("anthropic",)


def test_the_forwarder_reads_keys_from_the_store(store: Store) -> None:
    """A key that is added, rotated or deleted counts from the next request on."""
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("openai", base_url=provider.url)
        app = UpstreamForwarder(upstream=upstream, store=store)
        call(app, CHAT, body=BODY)
        record = store.provider_keys.create(provider="openai", secret="sk-one")
        call(app, CHAT, body=BODY)
        store.provider_keys.rotate(record.id, secret="sk-two")
        call(app, CHAT, body=BODY)
        store.provider_keys.delete(record.id)
        call(app, CHAT, body=BODY)
    sent = [request.headers.get("Authorization") for request in provider.requests]
    assert sent == [None, "Bearer sk-one", "Bearer sk-two", None]


def test_given_keys_come_before_the_stores(store: Store) -> None:
    """`api_keys` of a Provider are used alone."""
    store.provider_keys.create(provider="openai", secret="sk-stored")
    with raw_provider(answering(OK)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["sk-given"])
        call(UpstreamForwarder(upstream=upstream, store=store), CHAT, body=BODY)
    assert provider.requests[0].headers["Authorization"] == "Bearer sk-given"


def test_a_provider_without_any_key_is_no_candidate(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalogue provider whose keys are all gone is not asked without one."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    app = UpstreamForwarder(upstream=Provider("openai"), store=store)
    assert call(app, CHAT, body=BODY).code == "not_found"


def test_another_secret_opens_nothing_and_harms_nothing(store: Store, url: str) -> None:
    """STO-5: with a wrong AIGW_SECRET requests are 503, and the right one works as before."""
    record = store.provider_keys.create(provider="openai", secret=PROVIDER_SECRET)
    store.close()
    wrong = open_store(url, secret="another secret altogether")
    with pytest.raises(WrongSecret, match="another AIGW_SECRET"):
        wrong.provider_keys.secrets("openai")
    app = UpstreamForwarder(upstream=Provider("openai", base_url="http://127.0.0.1:9"), store=wrong)
    answer = call(app, CHAT, body=BODY)
    assert (answer.status, answer.code) == (503, "store_unavailable")
    wrong.close()
    right = open_store(url, secret=SECRET)
    assert right.provider_keys.secrets("openai") == (PROVIDER_SECRET,)
    assert right.provider_keys.get(record.id) == record


def test_without_a_secret_it_is_said_how_to_make_one(
    url: str, sqlite_url: str, monkeypatch: Any
) -> None:
    """No AIGW_SECRET, no silent default."""
    monkeypatch.delenv("AIGW_SECRET", raising=False)
    store = open_store(url)
    with pytest.raises(ValueError, match=r"secrets\.token_urlsafe"):
        store.provider_keys.create(provider="openai", secret="sk-x")
    with pytest.raises(ValueError, match=r"^secret: .*shorter"):
        open_store(sqlite_url.replace("aigw", "other"), secret="short")
    with pytest.raises(ValueError, match="another one"):
        open_store(url, secret=SECRET)


def test_a_ciphertext_that_was_moved_does_not_open(store: Store, tmp_path: Path) -> None:
    """A sealed secret is bound to its record: swapped between two, neither opens."""
    store.provider_keys.create(provider="openai", secret="sk-one")
    store.provider_keys.create(provider="openai", secret="sk-two")

    def swap(connection: Any) -> None:
        rows = connection.execute("SELECT number, wrapped, sealed FROM provider_keys").fetchall()
        for (number, _, _), (_, wrapped, sealed) in zip(rows, reversed(rows), strict=True):
            connection.execute(
                "UPDATE provider_keys SET wrapped = ?, sealed = ? WHERE number = ?",
                (wrapped, sealed, number),
            )

    store._database.write(swap)
    with pytest.raises(WrongSecret):
        store.provider_keys.check()


def test_the_master_key_can_be_changed_and_the_change_interrupted(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after each record, run again, run once more: nothing is lost."""
    for number in range(4):
        store.provider_keys.create(provider="openai", secret=f"sk-{number}")
    store.close()
    new = open_store(url, secret="the new master secret")
    write = new._database.write

    class Interrupted(Exception):
        pass

    def once(work: Any) -> Any:
        monkeypatch.setattr(new._database, "write", failing)
        return write(work)

    def failing(work: Any) -> Any:
        raise Interrupted

    for _ in range(3):
        monkeypatch.setattr(new._database, "write", once)
        with pytest.raises(Interrupted):
            new.provider_keys.rekey(Sealer(SECRET))
    monkeypatch.setattr(new._database, "write", write)
    assert new.provider_keys.rekey(Sealer(SECRET)) == 1
    assert new.provider_keys.rekey(Sealer(SECRET)) == 0
    assert new.provider_keys.secrets("openai") == ("sk-3", "sk-2", "sk-1", "sk-0")
    assert new.provider_keys.check() == 4


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"secret": ""}, "secret"),
        ({"secret": "sk x"}, "secret"),
        ({"secret": "sk\n"}, "secret"),
        ({"secret": 5}, "secret"),
        ({"provider": ""}, "provider"),
        ({"provider": "a/b"}, "provider"),
        ({"description": "x" * 256}, "description"),
    ],
)
def test_wrong_provider_keys_are_named(store: Store, fields: Any, named: str) -> None:
    """A wrong value is a ValueError that repeats no secret; nothing is kept."""
    with pytest.raises(ValueError, match=f"^{named}: ") as error:
        store.provider_keys.create(**{"provider": "openai", "secret": "sk-x", **fields})
    assert "sk x" not in str(error.value)
    assert store.provider_keys.list() == []


def test_ids_are_never_given_again(store: Store) -> None:
    """Deleting and creating many keys makes no id twice."""
    seen = set()
    for _ in range(50):
        key, _ = store.keys.create()
        seen.add(key.id)
        store.keys.delete(key.id)
    assert len(seen) == 50


def test_a_secret_is_bound_to_its_provider(store: Store) -> None:
    """A record that was given to another provider does not open there."""
    store.provider_keys.create(provider="openai", secret="sk-one")

    def work(connection: Any) -> None:
        connection.execute("UPDATE provider_keys SET provider = 'anthropic'")

    store._database.write(work)
    with pytest.raises(WrongSecret):
        store.provider_keys.secrets("anthropic")


def test_a_change_of_nothing_leaves_no_trace(store: Store) -> None:
    """An update without a field writes neither the record nor the audit."""
    key, _ = store.keys.create()
    assert store.keys.update(key.id) == key
    assert len(store.audit.list()) == 1
