"""Tokens, static keys and the store of keys."""

from __future__ import annotations

import multiprocessing
import re
import string
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware import ApiKey, StaticKeys, StoreUnavailable, open_store
from aigw_middleware.keys import TOKEN_PATTERN
from aigw_middleware.keys.token import new_token, public_id_of

from .support import in_child


def test_a_token_has_the_published_form() -> None:
    """`aigw-<public id>-g1-<secret>`, found by the scanners' pattern, 190 random bits."""
    made = new_token()
    assert re.fullmatch(TOKEN_PATTERN, made.token)
    assert public_id_of(made.token) == made.public_id
    assert len(made.token) == 63


def test_no_two_tokens_share_anything() -> None:
    """A thousand tokens have a thousand ids and secrets."""
    made = [new_token() for _ in range(1000)]
    assert len({m.public_id for m in made}) == len({m.token[25:] for m in made}) == 1000


@given(st.integers(0, 62), st.sampled_from(string.ascii_letters + string.digits + "-_"))
def test_one_wrong_letter_is_noticed_without_the_store(position: int, letter: str) -> None:
    """The checksum finds every changed letter."""
    token = new_token().token
    changed = token[:position] + letter + token[position + 1 :]
    assert (public_id_of(changed) is None) == (changed != token)


@given(st.text(max_size=80))
def test_no_text_is_taken_for_a_token(text: str) -> None:
    """What was not made here has no public id, and never crashes the reader."""
    assert public_id_of(text) is None


def test_static_keys_know_their_secrets() -> None:
    """The name is the key's id; another secret is nobody's."""
    keys = StaticKeys({"ci": "s3cret", "web": "other"})
    key = keys.verify("s3cret")
    assert key is not None
    assert (key.id, key.name) == ("ci", "ci")
    assert keys.verify("S3cret") is None
    assert keys.verify("") is None


def test_static_keys_show_no_secret() -> None:
    """Neither repr nor the attributes hold a secret."""
    keys = StaticKeys({"ci": "s3cret-s3cret"})
    assert "s3cret" not in repr(keys) + repr(vars(keys))


@pytest.mark.parametrize(
    "secrets",
    [
        {"a": ""},
        {"a": "x y"},
        {"a": "x\n"},
        {"a": "é"},
        {"": "x"},
        {"a": "x", "b": "x"},
        {"a": None},
    ],
)
def test_secrets_that_could_not_be_presented_are_refused(secrets: Any) -> None:
    """A wrong secret is a ValueError that names its key and not the secret."""
    with pytest.raises(ValueError, match=r"^secrets: ") as error:
        StaticKeys(secrets)
    assert "x y" not in str(error.value)


def test_a_created_key_is_verified_listed_and_deleted(url: str) -> None:
    """The life of a key: its token works until it is deleted, and never again."""
    keys = open_store(url).keys
    key, token = keys.create(name="web", description="Production", metadata='{"a": 1}')
    assert keys.get(key.id) == key
    assert keys.verify(token) == key
    assert (key.name, key.description, key.metadata) == ("web", "Production", '{"a": 1}')
    assert key.created_at is not None
    assert abs(datetime.now(UTC) - key.created_at) < timedelta(minutes=1)
    assert keys.delete(key.id) is True
    assert keys.delete(key.id) is False
    assert keys.verify(token) is None
    with pytest.raises(KeyError):
        keys.get(key.id)


def test_the_token_is_nowhere_but_in_the_answer(url: str, tmp_path: Path) -> None:
    """Neither the record nor the files hold any part of the secret."""
    store = open_store(url)
    key, token = store.keys.create()
    secret = token.rpartition("-")[2]
    store.backup(str(tmp_path / "copy"))
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for start in range(len(secret) - 7):
        run = secret[start : start + 8]
        assert run not in repr(key)
        assert run.encode() not in files


@pytest.mark.parametrize("wrong", ["nope", "aigk_", "aigk_unknown", "", None, "aigw-x"])
def test_unknown_ids(url: str, wrong: Any) -> None:
    """An id that names no key: KeyError to read, False to delete."""
    keys = open_store(url).keys
    with pytest.raises(KeyError):
        keys.get(wrong)
    assert keys.delete(wrong) is False


def test_an_expired_key_is_not_verified(url: str) -> None:
    """`expires_at` is when it stops."""
    keys = open_store(url).keys
    now = datetime.now(UTC)
    _, gone = keys.create(expires_at=now - timedelta(seconds=1))
    key, good = keys.create(expires_at=now + timedelta(days=1))
    assert keys.verify(gone) is None
    assert keys.verify(good) == key
    assert key.expires_at == now + timedelta(days=1)


def test_a_key_is_for_its_endpoint(url: str) -> None:
    """A key of one endpoint is none at another; one without is for all."""
    keys = open_store(url).keys
    _, bound = keys.create(endpoint_id="ep_1")
    _, free = keys.create()
    assert keys.verify(bound, endpoint="ep_1") is not None
    assert keys.verify(bound, endpoint="ep_2") is None
    assert keys.verify(bound) is not None
    assert keys.verify(free, endpoint="ep_2") is not None


def test_lists_page_from_the_newest(url: str) -> None:
    """`before_id` goes on where a page ended, whatever was created or deleted meanwhile."""
    keys = open_store(url).keys
    made = [keys.create(name=str(n))[0] for n in range(5)]
    first = keys.list(limit=2)
    assert [key.name for key in first] == ["4", "3"]
    keys.create(name="later")
    keys.delete(made[2].id)
    keys.delete(first[-1].id)
    assert [key.name for key in keys.list(limit=2, before_id=first[-1].id)] == ["1", "0"]
    with pytest.raises(KeyError):
        keys.list(before_id="aigk_unknown")


@pytest.mark.parametrize("limit", [0, -1, 101])
def test_a_page_is_bounded(url: str, limit: int) -> None:
    """A page holds 1 to 100 keys."""
    with pytest.raises(ValueError, match=r"^limit: "):
        open_store(url).keys.list(limit=limit)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("name", "x" * 256),
        ("description", "x" * 256),
        ("description", 3),
        ("metadata", "x" * 4097),
        ("metadata", "a\0b"),
        ("expires_at", datetime(2030, 1, 1)),
        ("expires_at", "2030-01-01"),
        ("limits", ["ten/min"]),
        ("models", ["gpt 4"]),
        ("networks", ["10.0.0.1/8"]),
        ("active", ["mon-fri"]),
        ("active", ["mon-fry 08:00-18:00"]),
        ("active", ["08:00-25:00"]),
        ("active", ["08:00-18:00 Mars/Olympus"]),
    ],
)
def test_wrong_fields_are_named_and_nothing_is_made(url: str, option: str, value: Any) -> None:
    """A wrong field is a ValueError with its name; no key comes of it."""
    keys = open_store(url).keys
    with pytest.raises(ValueError, match=f"^{option}: "):
        keys.create(**{option: value})
    assert keys.list() == []


def test_the_rules_of_a_key_are_kept(url: str) -> None:
    """Limits, models and networks come back as they were given; None and empty differ."""
    keys = open_store(url).keys
    key, _ = keys.create(limits="5/min", models=["openai/*"], networks=["10.0.0.0/8"])
    assert (key.limits, key.models, key.networks) == (("5/min",), ("openai/*",), ("10.0.0.0/8",))
    assert keys.create()[0].models is None
    assert keys.create(models=[])[0].models == ()


@pytest.mark.parametrize(
    "wrong",
    [
        "aigw.db",
        "sqlite:/x",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://u:s3cret@h/d",
        "sqlite:///a?b",
        None,
    ],
)
def test_a_url_that_names_no_store(wrong: Any) -> None:
    """A wrong URL is a ValueError that does not repeat a password."""
    with pytest.raises(ValueError, match=r"^store: ") as error:
        open_store(wrong)
    assert "s3cret" not in str(error.value)


def test_eight_threads_create_and_verify_at_once(url: str) -> None:
    """Connections are lent to one thread at a time; nothing is lost."""
    keys = open_store(url).keys
    good = []

    def work() -> None:
        for _ in range(10):
            key, token = keys.create()
            found = keys.verify(token)
            good.append(found is not None and found.id == key.id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 80


def _open_and_create(url: str, start: Any, results: Any) -> None:
    start.wait()
    results.put(len(open_store(url).keys.create()))


def test_processes_make_the_schema_at_once(url: str) -> None:
    """Workers that start together find one schema and lose no key."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_open_and_create, args=(url, start, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [results.get() for _ in processes] == [2] * 4
    assert len(open_store(url).keys.list()) == 4


def test_a_forked_child_uses_connections_of_its_own(url: str) -> None:
    """RUN-2: a store that was used before the fork works in the children and in the parent."""
    store = open_store(url)
    key, token = store.keys.create()
    for _ in range(4):
        assert in_child(lambda: store.keys.verify(token) == key and bool(store.keys.create()))
    assert len(store.keys.list()) == 5
    assert store.keys.delete(key.id)
    assert store.keys.verify(token) is None


def test_a_fork_while_threads_verify_leaves_no_lock_taken(url: str) -> None:
    """A child that is forked in the middle of its parent's work verifies keys."""
    store = open_store(url)
    key, token = store.keys.create()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            store.keys.verify(token)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with store.keys._cache_lock:
            assert in_child(lambda: store.keys.verify(token) == key)
        for _ in range(10):
            assert in_child(lambda: store.keys.verify(token) == key)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_stream_is_watched_by_its_token(url: str) -> None:
    """After a rotation without grace the streams of the old token end, those of the new go on."""
    keys = open_store(url).keys
    key, old = keys.create()
    of_old = keys.watch(key.id, old)
    _, new = keys.rotate(key.id, grace=0)
    assert (of_old(), keys.watch(key.id, new)()) == (False, True)


def test_a_secret_is_a_text(url: str) -> None:
    """Anything else is a ValueError that names the option."""
    with pytest.raises(ValueError, match=r"^secret: "):
        open_store(url, secret=b"bytes of a secret")  # type: ignore[arg-type]


def test_an_open_store_will_do_for_its_url(url: str) -> None:
    """Where a URL is expected an opened store will do."""
    store = open_store(url)
    assert open_store(store) is store


def test_a_password_in_brackets_is_not_repeated() -> None:
    """Whatever reads a URL, its password stays out of the error."""
    with pytest.raises((ValueError, StoreUnavailable)) as error:
        open_store("postgresql://u:pa[hunter2secret]x@[::1]:9/db")
    assert "hunter2" not in str(error.value)


WINDOWS = [
    ("08:00-18:00", "2026-11-26T08:00:00", True),
    ("08:00-18:00", "2026-11-26T07:59:59", False),
    ("08:00-18:00", "2026-11-26T18:00:00", False),
    ("mon-fri 08:00-18:00", "2026-11-27T12:00:00", True),  # a Friday
    ("mon-fri 08:00-18:00", "2026-11-28T12:00:00", False),
    ("sat,sun 00:00-24:00", "2026-11-28T23:59:59", True),
    ("fri-mon 08:00-09:00", "2026-11-30T08:30:00", True),
    ("fri-mon 08:00-09:00", "2026-12-01T08:30:00", False),
    ("fri 22:00-06:00", "2026-11-27T23:00:00", True),
    ("fri 22:00-06:00", "2026-11-28T05:59:00", True),
    ("fri 22:00-06:00", "2026-11-27T05:00:00", False),
    ("08:00-09:00 Europe/Berlin", "2026-11-26T07:30:00", True),
    ("08:00-09:00 Europe/Berlin", "2026-07-26T06:30:00", True),  # summer time
    ("mon 00:00-01:00 Asia/Tokyo", "2026-11-29T15:30:00", True),
    ("00:00-00:00", "2026-11-29T15:30:00", True),
]


@pytest.mark.parametrize(("window", "now", "good"), WINDOWS)
def test_a_key_is_good_in_its_windows(window: str, now: str, good: bool) -> None:
    """Days, hours, nights and zones; one of several is enough."""
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert ApiKey(id="x", active=[window]).is_live(moment) is good
    assert ApiKey(id="x", active=[window, "00:00-24:00"]).is_live(moment) is True
    assert ApiKey(id="x", active=["00:00-24:00"], disabled=True).is_live(moment) is False


def test_a_key_outside_its_windows_is_refused_like_any_bad_one(url: str) -> None:
    """401, the same answer; an older store is given the field."""
    keys = open_store(url).keys
    hour = (datetime.now(UTC) + timedelta(hours=2)).strftime("%H:00")
    later = (datetime.now(UTC) + timedelta(hours=3)).strftime("%H:00")
    key, token = keys.create(active=f"{hour}-{later}")
    assert keys.verify(token) is None
    keys.update(key.id, active=())
    assert keys.verify(token) is not None
