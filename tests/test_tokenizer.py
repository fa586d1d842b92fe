"""Tokens of a prompt, counted with tiktoken's real tables (those that litellm carries along)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigw_middleware import ModelAccess, RateLimiter
from aigw_middleware.body import Body
from aigw_middleware.counters.memory import MemoryCounters
from aigw_middleware.limits import tokenizer

from .support import CHAT, Inner, call, make_environ

PROMPT = "Tell me all that you know of the history of the printing press, please. " * 20


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The directory of tables is litellm's."""
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    directory = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(directory))
    _forget()
    yield
    _forget()


def _forget() -> None:
    tokenizer._encoding_for.cache_clear()
    tokenizer._encoding.cache_clear()


def count(model: str | None, data: bytes) -> int | None:
    return tokenizer.count(model, Body(BytesIO(data), len(data)))


def chat(content: str = PROMPT, model: str = "gpt-4o", **fields: Any) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": model, "messages": messages, **fields}).encode()


@pytest.mark.parametrize(
    ("model", "encoding"),
    [("gpt-4o", "o200k_base"), ("openai/gpt-4o-2024-08-06", "o200k_base"),
     ("GPT-4.1-mini", "o200k_base"), ("gpt-3.5-turbo", "cl100k_base"),
     ("gpt-oss-120b", "o200k_base")],
)  # fmt: skip
def test_a_model_of_openais_is_counted_by_its_encoding(model: str, encoding: str) -> None:
    """As tiktoken counts it, whatever stands before the name."""
    body = chat()
    expected = len(tiktoken.get_encoding(encoding).encode_ordinary(body.decode()))
    assert count(model, body) == expected


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "my-own", "", None])
def test_others_are_not(model: str | None) -> None:
    """Of another vendor's model nobody here knows the tokens."""
    assert count(model, chat()) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_the_body_has_no_fewer_tokens_than_what_it_says(content: str) -> None:
    """However it is escaped, what is reserved covers what the model reads."""
    read = tiktoken.get_encoding("o200k_base").encode_ordinary(content)
    assert (count("gpt-4o", chat(content)) or 0) >= len(read)


def test_a_long_run_of_spaces_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million spaces, on which tiktoken's own matching gives up, cost no worker its life."""
    monkeypatch.setattr(tokenizer, "MOST", 1_000_000)
    assert count("gpt-4o", b" " * 1_000_000) == -(-1_000_000 // 128)


def test_a_long_body_is_not_counted() -> None:
    """Nobody else waits for it: bytes are its bound."""
    assert count("gpt-4o", b"word " * 60_000) is None


def test_a_body_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several limits, or a bound on the input besides, have one count."""
    body = Body(BytesIO(chat()), len(chat()))
    first = tokenizer.count("gpt-4o", body)
    monkeypatch.setattr(tokenizer, "_PIECE", 0)  # with which counting fails
    assert tokenizer.count("openai/gpt-4o", body) == first


def test_a_limit_reserves_what_is_counted() -> None:
    """A quarter of the bytes or so, where the bound by bytes would be all of them."""
    counters = MemoryCounters()
    app = RateLimiter(Inner(), "100000 tokens/min", by="global", counters=counters)
    body = chat(max_tokens=10)
    app(make_environ(CHAT, body=body), lambda *_: lambda _: None)
    (seen,) = counters.counts()
    assert seen.used == (count("gpt-4o", body) or 0) + 10
    assert seen.used < len(body) / 3


def test_a_bound_on_the_input_is_judged_by_the_count() -> None:
    """`max_input_tokens` lets in what has fewer tokens, though it has more than four times the bytes."""
    body = chat("word " * 2000)
    counted = count("gpt-4o", body) or 0
    assert counted < len(body) // 4
    assert call(ModelAccess(Inner(), max_input_tokens=counted), CHAT, body=body).status == 200
    assert (
        call(ModelAccess(Inner(), max_input_tokens=counted - 1), CHAT, body=body).code
        == "input_tokens_exceeded"
    )


def test_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A table that is not there, or is damaged, leaves bytes as the bound; it is said once."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    damaged = tmp_path / "fb374d419588a4632f3f557e76b4b70aebbca790"
    for data in (None, b"half of it"):
        if data is not None:
            damaged.write_bytes(data)
        _forget()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert [count("gpt-4o", chat()) for _ in range(3)] == [None] * 3
        assert len(caplog.records) == 1
    assert damaged.read_bytes() == b"half of it"
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    _forget()
    assert count("gpt-4o", chat()) is None
