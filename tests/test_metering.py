"""Usage, read off answers as they pass: in every dialect, whole and streamed, and broken off."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import genai_prices
import openai
import pytest
from google import genai
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware import (
    KeyAuth,
    Provider,
    RateLimiter,
    StaticKeys,
    UpstreamForwarder,
    open_counters,
    open_store,
    stack,
)
from aigw_middleware._watchdog import watchdog
from aigw_middleware.dialects import DIALECTS
from aigw_middleware.forwarding import meter as meter_module
from aigw_middleware.forwarding.meter import EventMeter, WholeMeter
from aigw_middleware.forwarding.stream import ForwardedBody, WholeResponse
from aigw_middleware.splice import put, put_all
from aigw_middleware.testing import StandInProvider, serving
from aigw_middleware.usage.prices import Prices, _listed

from .support import (
    CHAT,
    Inner,
    RawRequest,
    answering,
    call,
    make_environ,
    raw_provider,
    three_providers,
)

KEY = "sk-provider-0123456789"
PRICES = {"gpt-4o": (1, 2)}


def whole(document: Any, *, coding: str = "") -> bytes:
    body = json.dumps(document).encode()
    extra = ""
    if coding == "gzip":
        body, extra = gzip.compress(body), "Content-Encoding: gzip\r\n"
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


def streamed(*events: Any, end: bool = True) -> bytes:
    data = b"".join(
        b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n"
        for e in events
    )
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head + b"%x\r\n%b\r\n" % (len(data), data) + (b"0\r\n\r\n" if end else b"")


def ask(answer_bytes: bytes, path: str, body: Any, **options: Any) -> Any:
    """Forward one request; return the answer, whose environ holds the usage."""
    with raw_provider(answering(answer_bytes)) as provider:
        name = {"/v1/messages": "anthropic"}.get(path, "openai")
        if path.startswith("/v1beta"):
            name = "google"
        upstream = Provider(name, base_url=provider.url, api_keys=[KEY])
        variables = {name: options.pop(name) for name in [*options] if name.isupper()}
        app = UpstreamForwarder(upstream=upstream, **options)
        answer = call(app, path, body=json.dumps(body).encode(), **variables)
        answer.sent = provider.requests
    return answer


def figures(usage: Any) -> tuple[int, int, int, int, int]:
    return (
        usage.input_tokens, usage.output_tokens, usage.cached_input_tokens,
        usage.cache_write_tokens, usage.reasoning_tokens,
    )  # fmt: skip


CHAT_USAGE = {
    "prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 7},
}  # fmt: skip
RESPONSES_USAGE = {
    "input_tokens": 20, "output_tokens": 30, "input_tokens_details": {"cached_tokens": 5},
    "output_tokens_details": {"reasoning_tokens": 7},
}  # fmt: skip
CLAUDE_USAGE = {
    "input_tokens": 10, "cache_read_input_tokens": 6, "cache_creation_input_tokens": 4,
    "output_tokens": 30,
}  # fmt: skip
GEMINI_USAGE = {
    "promptTokenCount": 18, "toolUsePromptTokenCount": 2, "candidatesTokenCount": 23,
    "thoughtsTokenCount": 7, "cachedContentTokenCount": 5,
}  # fmt: skip
# https://docs.x.ai/docs/guides/reasoning
XAI_USAGE = {
    "prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
    "prompt_tokens_details": {"text_tokens": 32, "cached_tokens": 6},
    "completion_tokens_details": {"reasoning_tokens": 94},
}  # fmt: skip
DEEPSEEK_USAGE = {
    "prompt_tokens": 70, "completion_tokens": 5, "total_tokens": 75,
    "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 6,
}  # fmt: skip
WRITING_USAGE = {
    "prompt_tokens": 20, "completion_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 8},
}  # fmt: skip
THINKING_USAGE = {**CLAUDE_USAGE, "output_tokens_details": {"thinking_tokens": 9}}
# https://docs.anthropic.com/en/docs/build-with-claude/compaction
COMPACTED_USAGE = {
    "input_tokens": 10, "output_tokens": 30,
    "iterations": [
        {"type": "compaction", "input_tokens": 100, "output_tokens": 7,
         "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2},
        {"type": "message", "input_tokens": 10, "output_tokens": 30},
    ],
}  # fmt: skip
# https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool
ADVISED_USAGE = {
    "input_tokens": 10, "output_tokens": 30,
    "iterations": [
        {"type": "message", "input_tokens": 10, "output_tokens": 30},
        {"type": "advisor_message", "model": "claude-opus-4-7", "input_tokens": 100, "output_tokens": 7,
         "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2},
    ],
}  # fmt: skip
# https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
FALLEN_BACK_USAGE = {
    "input_tokens": 100, "output_tokens": 20,
    "iterations": [
        {"type": "message", "model": "claude-sonnet-4-5", "input_tokens": 100, "output_tokens": 5},
        {"type": "fallback_message", "model": "claude-haiku-4-5", "input_tokens": 100, "output_tokens": 20,
         "cache_read_input_tokens": 3},
    ],
    "server_tool_use": {"web_search_requests": 1},
}  # fmt: skip
MIXED_USAGE = {
    "input_tokens": 100, "output_tokens": 20, "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_1h_input_tokens": 50},
    "iterations": [
        {"type": "compaction", "input_tokens": 7, "output_tokens": 1},
        {"type": "message", "input_tokens": 10, "output_tokens": 5},
        {"type": "fallback_message", "model": "claude-haiku-4-5", "input_tokens": 100, "output_tokens": 20,
         "cache_creation_input_tokens": 50, "cache_creation": {"ephemeral_1h_input_tokens": 50}},
    ],
}  # fmt: skip
# `tool_usage` of https://developers.openai.com/api/reference/resources/responses
PAINTED = {
    "usage": {"input_tokens": 20, "output_tokens": 30},
    "tools": [{"type": "web_search"}, {"type": "image_generation", "model": "gpt-image-1.5"}],
    "tool_usage": {
        "image_gen": {"input_tokens": 50, "output_tokens": 1000, "cached_tokens": 4,
                      "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
                      "cached_tokens_details": {"cached_image_tokens": 4, "cached_text_tokens": 0},
                      "output_tokens_details": {"image_tokens": 990, "text_tokens": 10}},
        "web_search": {"num_requests": 2},
    },
}  # fmt: skip
SVG = {
    "input_tokens": 4,
    "output_tokens": 5,
    "reasoning_tokens": 2,
    "total_tokens": 9,
    "model": "gpt-5",
}
# https://ai.google.dev/api/interactions-api
INTERACTION_USAGE = {
    "total_input_tokens": 18, "total_tool_use_tokens": 2, "total_output_tokens": 23,
    "total_thought_tokens": 7, "total_cached_tokens": 5, "total_tokens": 50,
}  # fmt: skip
MODEL = {"model": "gpt-4o"}
GEMINI = "/v1beta/models/g:generateContent"
WHOLE = [
    pytest.param(CHAT, {"usage": CHAT_USAGE}, (20, 30, 5, 0, 7), id="chat"),
    pytest.param("/v1/responses", {"usage": RESPONSES_USAGE}, (20, 30, 5, 0, 7), id="responses"),
    pytest.param(CHAT, {"usage": XAI_USAGE}, (32, 103, 6, 0, 94), id="reasoning beside the answer"),
    pytest.param(CHAT, {"usage": DEEPSEEK_USAGE}, (70, 5, 64, 0, 0), id="DeepSeek's cache"),
    pytest.param("/v1/rerank", {"usage": {"total_tokens": 9}}, (9, 0, 0, 0, 0), id="one sum"),
    pytest.param(CHAT, {"usage": WRITING_USAGE}, (20, 30, 5, 8, 0), id="chat, writing to a cache"),
    pytest.param("/v1/embeddings", {"usage": {"prompt_tokens": 9, "total_tokens": 9}}, (9, 0, 0, 0, 0), id="embeddings"),
    pytest.param("/v1/messages", {"usage": CLAUDE_USAGE}, (20, 30, 6, 4, 0), id="messages"),
    pytest.param("/v1/messages", {"usage": THINKING_USAGE}, (20, 30, 6, 4, 9), id="thinking"),
    pytest.param("/v1/messages", {"usage": COMPACTED_USAGE}, (115, 37, 3, 2, 0), id="compaction"),
    pytest.param("/v1/messages", {"usage": ADVISED_USAGE}, (115, 37, 3, 2, 0), id="an advisor"),
    pytest.param("/v1/messages", {"usage": FALLEN_BACK_USAGE}, (203, 25, 3, 0, 0), id="a fallback"),
    pytest.param("/v1/messages", {"usage": MIXED_USAGE}, (167, 26, 0, 50, 0), id="a fallback and more"),
    pytest.param("/v1/messages", {"usage": {**CLAUDE_USAGE, "iterations": "odd"}}, (20, 30, 6, 4, 0), id="odd iterations"),
    pytest.param("/v1/responses", PAINTED, (70, 1030, 4, 0, 0), id="a tool's pictures"),
    pytest.param("/v1beta/interactions", {"usage": INTERACTION_USAGE}, (20, 30, 5, 0, 7), id="interaction"),
    pytest.param("/v1beta/interactions", {"usage": {"total_output_tokens": 100, "total_tokens": 100}}, (0, 100, 0, 0, 0), id="interaction, in part"),
    pytest.param("/v1beta/cachedContents", {"usageMetadata": {"totalTokenCount": 50}}, (50, 0, 0, 0, 0), id="a cache that was made"),
    pytest.param("/v1/images/generations", {"usage": {"input_tokens": 10, "output_tokens": 20}, "svg_usage": SVG}, (14, 25, 0, 0, 2), id="an SVG"),
    pytest.param("/v1/responses", {"usage": RESPONSES_USAGE, "output": [{"svg_usage": SVG}, {"svg_usage": SVG}]}, (28, 40, 5, 0, 11), id="two SVGs"),
    pytest.param("/v1/responses", {**PAINTED, "tools": [{"type": "image_generation", "model": {"id": "x"}}]}, (70, 1030, 4, 0, 0), id="an odd model"),
    pytest.param(GEMINI, {"usageMetadata": GEMINI_USAGE}, (20, 30, 5, 0, 7), id="generateContent"),
    pytest.param(GEMINI, [{"a": 1}, {"usageMetadata": GEMINI_USAGE}], (20, 30, 5, 0, 7), id="an array"),
]  # fmt: skip


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize(("path", "document", "wanted"), WHOLE)
def test_a_whole_answer(path: str, document: Any, wanted: Any, coding: str) -> None:
    """Every dialect's own figures; the bytes pass as they came, encoded ones too."""
    answer = ask(whole(document, coding=coding), path, MODEL)
    assert figures(answer.environ["aigw.usage"]) == wanted
    body = gzip.decompress(answer.body) if coding else answer.body
    assert json.loads(body) == document


STREAMED = [
    pytest.param(
        CHAT,
        [{"choices": [{"delta": {"content": "hi"}}]}, {"choices": [], "usage": CHAT_USAGE}, b"[DONE]"],
        (20, 30, 5, 0, 7), id="chat",
    ),
    pytest.param(
        "/v1/responses",
        [{"type": "response.created", "response": {"usage": None}},
         {"type": "response.completed", "response": {"usage": RESPONSES_USAGE}}],
        (20, 30, 5, 0, 7), id="responses",
    ),
    pytest.param(
        "/v1/messages",
        [{"type": "message_start", "message": {"usage": {**CLAUDE_USAGE, "output_tokens": 1}}},
         {"type": "content_block_delta", "delta": {"text": "hi"}},
         {"type": "message_delta", "usage": {"output_tokens": 30}}, {"type": "message_stop"}],
        (20, 30, 6, 4, 0), id="messages",
    ),
    pytest.param(
        "/v1/messages",
        [{"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}},
         {"type": "message_delta", "usage": {**ADVISED_USAGE, "input_tokens": None}}, {"type": "message_stop"}],
        (115, 37, 3, 2, 0), id="an advisor",
    ),
    pytest.param(
        "/v1/messages",
        [{"type": "message_start", "message": {"usage": {"input_tokens": 100, "output_tokens": 1}}},
         {"type": "message_delta", "usage": FALLEN_BACK_USAGE}, {"type": "message_stop"}],
        (203, 25, 3, 0, 0), id="a fallback",
    ),
    pytest.param(
        "/v1/responses", [{"type": "response.completed", "response": PAINTED}],
        (70, 1030, 4, 0, 0), id="a tool's pictures",
    ),
    pytest.param(
        "/v1beta/models/g:streamGenerateContent",
        [{"usageMetadata": {**GEMINI_USAGE, "candidatesTokenCount": 1}}, {"usageMetadata": GEMINI_USAGE}],
        (20, 30, 5, 0, 7), id="streamGenerateContent",
    ),
    pytest.param(
        "/v1beta/interactions",
        [{"event_type": "step.delta", "delta": {"type": "text", "text": "hi"}},
         {"event_type": "interaction.completed", "interaction": {"usage": INTERACTION_USAGE}}, b"[DONE]"],
        (20, 30, 5, 0, 7), id="interaction",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "events", "wanted"), STREAMED)
def test_a_streamed_answer(path: str, events: Any, wanted: Any) -> None:
    """Figures in the last event, in the first and the last, or in each."""
    answer = ask(streamed(*events), path, {**MODEL, "stream": True})
    assert figures(answer.environ["aigw.usage"]) == wanted
    assert answer.environ["aigw.usage"].estimated is False


# --- the extra event


def test_a_stream_that_tells_its_length_loses_that_with_the_event() -> None:
    """The provider's length holds for its own bytes; where an event is taken out none is told."""
    data = streamed_body(FIRST, LAST, b"[DONE]")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
    answer = ask(head % len(data) + data, CHAT, {**MODEL, "stream": True})
    assert "Content-Length" not in answer.headers
    assert answer.body == streamed_body(FIRST, b"[DONE]")
    own = {**MODEL, "stream": True, "stream_options": {"include_usage": True}}
    answer = ask(head % len(data) + data, CHAT, own)
    assert answer.headers["Content-Length"] == str(len(data))
    assert answer.body == data


LAST = {"choices": [], "usage": CHAT_USAGE}
FIRST = {"choices": [{"delta": {"content": "hi"}}], "usage": None}


def test_an_openai_stream_is_asked_for_its_usage_and_nobody_notices() -> None:
    """STR-6: `stream_options` is spliced in, and the event that it brings is taken out again."""
    answer = ask(streamed(FIRST, LAST, b"[DONE]"), CHAT, {**MODEL, "stream": True})
    (sent,) = answer.sent
    assert sent.body.startswith(b'{"stream_options": {"include_usage": true}, "model": "gpt-4o"')
    assert answer.body == streamed_body(FIRST, b"[DONE]")
    assert answer.environ["aigw.usage"].output_tokens == 30


def streamed_body(*events: Any) -> bytes:
    return b"".join(
        b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n"
        for e in events
    )


@pytest.mark.parametrize(
    ("fields", "options"),
    [({"stream_options": {"include_usage": True}}, {}), ({}, {"meter": False}), ({"stream": False}, {})],
)  # fmt: skip
def test_who_asks_himself_gets_all_and_who_wants_no_meter_is_left_alone(
    fields: Any, options: Any
) -> None:
    """Then neither the body nor the stream is touched."""
    body = {**MODEL, "stream": True, **fields}
    answer = ask(streamed(FIRST, LAST, b"[DONE]"), CHAT, body, **options)
    assert answer.sent[0].body == json.dumps(body).encode()
    assert answer.body == streamed_body(FIRST, LAST, b"[DONE]")
    assert ("aigw.usage" in answer.environ) is not bool(options)


def test_options_that_are_there_are_kept() -> None:
    """Only `include_usage` is put in."""
    body = {**MODEL, "stream": True, "stream_options": {"include_obfuscation": False}}
    answer = ask(streamed(FIRST, LAST, b"[DONE]"), CHAT, body)
    assert json.loads(answer.sent[0].body)["stream_options"] == {
        "include_usage": True, "include_obfuscation": False,
    }  # fmt: skip


def test_a_provider_that_refuses_to_be_asked_is_not() -> None:
    """Mistral tells by itself, and answers 422 to `stream_options`."""
    with raw_provider(answering(streamed(FIRST, LAST, b"[DONE]"))) as provider:
        upstream = Provider("mistral", base_url=provider.url, api_keys=[KEY])
        body = json.dumps({"model": "m", "stream": True}).encode()
        answer = call(UpstreamForwarder(upstream=upstream), CHAT, body=body)
    assert provider.requests[0].body == body
    assert answer.environ["aigw.usage"].input_tokens == 20


@given(st.lists(st.integers(1, 30), max_size=20), st.booleans())
def test_a_stream_passes_however_it_is_cut(cuts: list[int], hides: bool) -> None:
    """Cut anywhere, the bytes are the provider's but for the one event, and the figures the same."""
    data = streamed_body(FIRST, {"choices": []}, LAST, b"[DONE]") + b": comment\n\ndata: torn"
    meter = EventMeter(DIALECTS["openai"], "", hides_usage=hides, told=lambda tokens, over: None)
    out, rest = b"", data
    for size in cuts:
        out += meter.feed(rest[:size])
        rest = rest[size:]
    out += meter.feed(rest) + meter.finish()
    without = streamed_body(FIRST, {"choices": []}, b"[DONE]") + b": comment\n\ndata: torn"
    assert out == (without if hides else data)
    assert meter.tokens is not None
    assert meter.tokens.output == 30
    assert meter.is_over


@given(st.binary(max_size=300), st.sampled_from(["", "gzip", "br"]))
def test_nothing_crashes_a_meter(data: bytes, coding: str) -> None:
    """Whatever a provider sends, it passes."""
    for dialect in DIALECTS.values():
        events = EventMeter(dialect, coding, hides_usage=False, told=lambda tokens, over: None)
        assert events.feed(data) + events.finish() == data
        document = WholeMeter(dialect, coding)
        assert document.feed(data) + document.finish() == data


HOSTILE = [{"usage": 5}, {"usage": {"prompt_tokens": -5, "completion_tokens": "x"}}, {"usage": []},
           {"usage": {"prompt_tokens": 10**30, "completion_tokens": True}}, [], "x", None]  # fmt: skip


@pytest.mark.parametrize("document", HOSTILE, ids=str)
def test_insane_figures_are_clamped(document: Any) -> None:
    """Nothing that a provider reports adds to a balance or breaks anything."""
    answer = ask(whole(document), CHAT, MODEL)
    usage = answer.environ.get("aigw.usage")
    assert usage is None or (0 <= usage.input_tokens <= 10**12 and usage.output_tokens == 0)
    assert answer.status == 200


@pytest.mark.parametrize("model", ["gemini-2.5-pro", "gemini-2.5-flash"])
@pytest.mark.parametrize("streams", [False, True])
def test_more_from_a_cache_than_was_asked_breaks_nothing(
    tmp_path: Path, model: str, streams: bool
) -> None:
    """A figure that cannot be, at a price with steps or without: answered, priced and booked."""
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "cachedContentTokenCount": 50}
    document = {"usageMetadata": usage}
    store = open_store(f"sqlite:///{tmp_path}/aigw.db")
    verb = "streamGenerateContent" if streams else "generateContent"
    data = streamed(document) if streams else whole(document)
    answer = ask(data, f"/v1beta/models/{model}:{verb}", {"contents": []}, store=store)
    assert answer.status == 200
    assert answer.environ["aigw.usage"].cost > 0
    (row,) = store.usage.totals()
    assert (row["input_tokens"], row["output_tokens"]) == (10, 5)


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_is_nested_too_deeply_to_be_read_passes(streams: bool) -> None:
    """Nothing is known of its usage, and nothing is lost of it."""
    deep = b'{"usage": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    data = streamed(b"usage" + deep) if streams else head % len(deep) + deep
    answer = ask(data, "/v1/messages", {"model": "m", "max_tokens": 9, "stream": streams})
    assert answer.status == 200
    assert deep in answer.body
    assert "aigw.usage" not in answer.environ


@pytest.mark.parametrize("fails_for", ["every figure", "large figures"])
def test_a_table_of_prices_that_fails_loses_no_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails_for: str,
) -> None:
    """The operator is told; the tokens are booked, a slot is given back, the next one is served."""
    calculate = genai_prices.calc_price
    model = f"gemini-2.5-pro-{'x' if fails_for == 'every figure' else 'preview-05-06'}"

    def fails(usage: Any, **named: Any) -> Any:
        if fails_for == "every figure" or usage.input_tokens % 1000:
            raise RuntimeError("a bug of somebody's")
        return calculate(usage, **named)

    monkeypatch.setattr(genai_prices, "calc_price", fails)
    _listed.cache_clear()
    store = open_store(f"sqlite:///{tmp_path}/aigw.db")
    usage = {"promptTokenCount": 20, "candidatesTokenCount": 30}
    limits = ["5 usd/day", "1 concurrent"] if fails_for == "large figures" else ["1 concurrent"]
    with raw_provider(answering(whole({"usageMetadata": usage}), keep=True)) as provider:
        upstream = Provider("google", base_url=provider.url, api_keys=[KEY])
        forwarder = UpstreamForwarder(upstream=upstream, store=store)
        app = RateLimiter(forwarder, limits, by="global")
        path = f"/v1beta/models/{model}:generateContent"
        statuses = [call(app, path, body=b'{"contents": []}').status for _ in range(2)]
    _listed.cache_clear()
    assert statuses == [200, 200]
    (row,) = store.usage.totals()
    assert (row["requests"], row["input_tokens"]) == (2, 40)
    assert "a bug of somebody's" in caplog.text


def test_a_body_whose_end_fails_lets_go_of_its_connection() -> None:
    """Whatever is done at an answer's end, the provider's connection and the watch end too."""
    closed: list[str] = []

    class Silent(WholeResponse):
        done = False

        def close(self) -> None:
            closed.append("response")

    def fails(_: object) -> None:
        raise OSError("no space")

    body = ForwardedBody(
        Silent(200, "OK", []), b"x", idle=1, deadline=0, error_event=None,
        alive=lambda: True, on_end=fails,
    )  # fmt: skip
    with pytest.raises(OSError, match="no space"):
        body.close()
    assert closed == ["response"]
    assert body not in watchdog._streams


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("gzip, deflate, br, zstd", "gzip, deflate"),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip;q=0.8"),
        ("zstd", "identity"),
        ("gzip", "gzip"),
        ("GZIP ;q=0.5,  identity", "GZIP ;q=0.5,  identity"),
    ],
)
def test_no_coding_is_asked_for_that_no_meter_reads(asked: str, sent: str) -> None:
    """A client cannot choose by `Accept-Encoding` that nobody counts what it uses."""
    url_only = UpstreamForwarder  # also in front of a plain URL, whose answers are metered too
    with raw_provider(answering(whole({"usage": CHAT_USAGE}))) as provider:
        call(
            url_only(upstream=provider.url), CHAT, body=json.dumps(MODEL).encode(),
            HTTP_ACCEPT_ENCODING=asked,
        )  # fmt: skip
    assert provider.requests[0].headers["accept-encoding"] == sent
    metered, unmetered = (
        ask(whole({"usage": CHAT_USAGE}), CHAT, MODEL, HTTP_ACCEPT_ENCODING=asked, **options)
        .sent[0]
        .headers["accept-encoding"]
        for options in ({}, {"meter": False})
    )
    assert (metered, unmetered) == (sent, asked)


def test_an_event_in_many_pieces_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture comes as one long event: no byte is searched again with every piece of it."""
    looked = 0
    search = meter_module.event_end

    def counted(data: bytes, start: int = 0) -> Any:
        nonlocal looked
        looked += len(data) - start
        return search(data, start)

    monkeypatch.setattr(meter_module, "event_end", counted)
    event = b'data: {"b64": "' + b"x" * 1_000_000 + b'"}\n\n'
    meter = EventMeter(DIALECTS["openai"], "", hides_usage=True, told=lambda tokens, over: None)
    out = b"".join(meter.feed(event[at : at + 1400]) for at in range(0, len(event), 1400))
    assert out == event
    assert looked < 3 * len(event)


# --- broken off


def test_what_broke_off_is_counted_by_its_text() -> None:
    """An aborted stream counts what had been sent, by estimate, and is marked as such."""
    event = {"choices": [{"delta": {"content": "x" * 40}}]}
    with raw_provider(answering(streamed(event, event, end=False))) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=[KEY])
        environ = make_environ(CHAT, body=b'{"model": "gpt-4o", "stream": true}')
        body: Any = UpstreamForwarder(upstream=upstream)(environ, lambda *a: None)
        with pytest.raises(Exception, match="broke off"):
            list(body)
        body.close()
    usage = environ["aigw.usage"]
    assert (usage.output_tokens, usage.estimated) == (20, True)
    assert usage.input_tokens > 0


def test_a_client_that_left_is_charged_what_it_got(tmp_path: Path) -> None:
    """STR-2: closed after an event, the usage so far is in the store when `close()` returns."""
    store = open_store(f"sqlite:///{tmp_path}/aigw.db")
    event = {"choices": [{"delta": {"content": "x" * 400}}]}

    def silent(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(streamed(event, end=False))
        connection.recv(1)

    with raw_provider(silent) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=[KEY])
        app = UpstreamForwarder(upstream=upstream, store=store)
        environ = make_environ(CHAT, body=b'{"model": "gpt-4o", "stream": true}')
        body: Any = app(environ, lambda *a: None)
        assert next(body)
        body.close()
    (row,) = store.usage.totals()
    assert row["output_tokens"] == 100


def test_usage_is_booked_before_the_last_event(tmp_path: Path) -> None:
    """Before the terminal event is handed out, its row is in the store."""
    store = open_store(f"sqlite:///{tmp_path}/aigw.db")

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(streamed(FIRST, LAST, b"[DONE]", end=False))
        connection.recv(1)  # the end of the chunks never comes

    with raw_provider(handler) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=[KEY])
        app = UpstreamForwarder(upstream=upstream, store=store, prices=PRICES)
        environ = make_environ(CHAT, body=b'{"model": "gpt-4o", "stream": true}')
        body: Any = app(environ, lambda *a: None)
        assert b"[DONE]" in next(body)
        (row,) = store.usage.totals()
        assert (row["output_tokens"], row["cost"]) == (30, 20e-6 + 60e-6)
        body.close()


def test_a_figure_of_the_beginning_is_no_figure_of_the_end() -> None:
    """Anthropic tells one token at first: what broke off is counted by its text all the same."""
    start = {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 25, "output_tokens": 1}},
    }
    delta = {"type": "content_block_delta", "delta": {"text": "x" * 4000}}
    with raw_provider(answering(streamed(start, delta, end=False))) as provider:
        upstream = Provider("anthropic", base_url=provider.url, api_keys=[KEY])
        environ = make_environ("/v1/messages", body=b'{"model": "c", "max_tokens": 9}')
        body: Any = UpstreamForwarder(upstream=upstream)(environ, lambda *a: None)
        next(body)
        body.close()
    usage = environ["aigw.usage"]
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (25, 1000, True)


MIMICS = [
    ("openai", {"type": "response.created", "response": {"metadata": {"a": "response.completed"}}}),
    ("anthropic", {"type": "content_block_start", "content_block": {"name": "message_stop"}}),
    ("gemini", {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {}}),
]


@pytest.mark.parametrize(("dialect", "event"), MIMICS)
def test_what_a_client_may_have_echoed_ends_nothing(dialect: str, event: Any) -> None:
    """Only an event's own type says that it is the last one."""
    meter = EventMeter(DIALECTS[dialect], "", hides_usage=False, told=lambda tokens, over: None)
    meter.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert meter.is_over is False


def test_a_whole_stream_that_tells_nothing_keeps_its_reservation() -> None:
    """Nobody knows what was thought behind it: what was reserved is what counts."""
    counters = open_counters("memory:")
    events = streamed({"choices": [{"delta": {"content": "hi"}}]}, b"[DONE]")
    with raw_provider(answering(events)) as provider:
        limiter = partial(
            RateLimiter, limits="9000 output_tokens/min", by="global", counters=counters
        )
        app = stack(UpstreamForwarder(upstream=provider.url), limiter)
        body = json.dumps({**MODEL, "max_tokens": 5000, "stream": True}).encode()
        assert call(app, CHAT, body=body).status == 200
    assert [count.used for count in counters.counts()] == [5000]


FAILED: list[Any] = [
    ("/v1/responses", [{"type": "response.failed", "response": {"usage": None}}]),
    (CHAT, [{"error": {"message": "overloaded", "code": 503}}]),
    ("/v1/messages", [{"type": "error", "error": {"type": "overloaded_error"}}]),
]


@pytest.mark.parametrize(("path", "events"), FAILED)
def test_a_stream_that_fails_costs_what_it_had_said(path: str, events: Any) -> None:
    """An error within a 200 is an error without usage: nothing, or the text before it."""
    body = {**MODEL, "max_tokens": 5000, "stream": True}
    assert ask(streamed(*events), path, body).environ["aigw.usage"].output_tokens == 0
    said = [{"type": "content_block_delta", "delta": {"text": "x" * 40}}, *events]
    if path == "/v1/messages":  # which tells one token at first
        said.insert(0, {"type": "message_start", "message": {"usage": {"output_tokens": 1}}})
    usage = ask(streamed(*said), path, body).environ["aigw.usage"]
    assert (usage.output_tokens, usage.estimated) == (10, True)


@pytest.mark.parametrize("background", [True, False])
def test_what_goes_on_in_the_background_keeps_its_reservation(background: bool) -> None:
    """Who hangs up on a background answer may ask for it by its id: all of it was bought."""
    counters = open_counters("memory:")
    event = {"type": "response.output_text.delta", "delta": "x" * 40}
    with raw_provider(answering(streamed(event, end=False), keep=True)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=[KEY])
        app: Any = RateLimiter(
            UpstreamForwarder(upstream=upstream), "9000 output_tokens/min", by="global",
            counters=counters,
        )  # fmt: skip
        asked = {**MODEL, "max_output_tokens": 5000, "stream": True, "background": background}
        body = app(make_environ("/v1/responses", body=json.dumps(asked).encode()), lambda *a: None)
        assert next(body)
        body.close()
    assert [count.used for count in counters.counts()] == [5000 if background else 10]


NOTHING = [
    "/v1/responses/r/cancel", "/v1/threads", "/v1/threads/t/messages",
    "/v1/vector_stores", "/v1/files", "/v1/moderations",
    "/v1/responses/input_tokens", "/v1/messages/count_tokens", "/v1/messages/batches/b/cancel",
    "/v1beta/models/g:countTokens", "/v1beta/tunedModels/g:countTokens",
    "/v1beta/interactions/i/cancel", "/v1beta/fileSearchStores", "/v1beta/webhooks/w:rotate",
    "/v1/threads/t/runs/r", "/v1/evals/e",
]  # fmt: skip


@pytest.mark.parametrize("path", NOTHING)
def test_what_makes_no_tokens_is_held_for_none(path: str) -> None:
    """Ending, storing, looking up and counting passes limits of tokens and of money."""
    counters = open_counters("memory:")
    limits = ["1000 tokens/min", "1 usd/day"]
    with raw_provider(answering(whole({"id": "x"}), keep=True)) as provider:
        upstream = [
            Provider(name, base_url=provider.url, api_keys=[KEY])
            for name in ("openai", "anthropic", "google")
        ]
        limiter = partial(RateLimiter, limits=limits, by="global", counters=counters)
        app = stack(UpstreamForwarder(upstream=upstream), limiter)
        answers = [call(app, path, body=b'{"model": "no-such-model-7"}').status for _ in range(3)]
    assert answers == [200] * 3
    assert all(count.used <= 3 for count in counters.counts())


@pytest.mark.parametrize("path", ["/v1/threads/t/runs", "/v1/fine_tuning/jobs"])
def test_what_makes_tokens_of_what_is_stored_is_held_for_a_whole_context(path: str) -> None:
    """Nobody knows what stands in a thread or a file: a small limit never gives it."""
    app = RateLimiter(Inner(), "1000 tokens/min", by="global")
    body = {"model": "gpt-4o", "assistant_id": "a", "training_file": "f"}
    assert call(app, path, body=json.dumps(body).encode()).status == 200
    assert call(app, path, body=json.dumps(body).encode()).code == "rate_limit_exceeded"


# --- cost


def test_the_cost_is_told_in_dollars() -> None:
    """By the prices that are given, or by those of genai-prices, caches at their own price."""
    answer = ask(whole({"usage": CHAT_USAGE}), CHAT, MODEL, prices=PRICES)
    assert answer.environ["aigw.usage"].cost == Decimal("0.00008")
    listed = ask(whole({"usage": CHAT_USAGE}), CHAT, MODEL)
    assert listed.environ["aigw.usage"].cost == Decimal(15 * 2500 + 5 * 1250 + 30 * 10_000) / 10**9
    unknown = ask(whole({"usage": CHAT_USAGE}), CHAT, {"model": "no-such-model-7"})
    assert unknown.environ["aigw.usage"].cost is None


AUDIO = {
    "prompt_tokens": 1000, "completion_tokens": 1000,
    "prompt_tokens_details": {"audio_tokens": 900}, "completion_tokens_details": {"audio_tokens": 900},
}  # fmt: skip
IMAGE = {
    "promptTokenCount": 10, "candidatesTokenCount": 1290,
    "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}],
}  # fmt: skip
KEPT = {
    "input_tokens": 100, "output_tokens": 10, "cache_creation_input_tokens": 100_000,
    "cache_creation": {"ephemeral_1h_input_tokens": 100_000, "ephemeral_5m_input_tokens": 0},
    "server_tool_use": {"web_search_requests": 2},
}  # fmt: skip
CACHED_AUDIO = {
    "promptTokenCount": 10_000, "candidatesTokenCount": 10, "cachedContentTokenCount": 800,
    "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 9000}],
}  # fmt: skip
DETAILED = [
    pytest.param("/v1beta/models/gemini-2.5-flash:generateContent", "gemini-2.5-flash",
        {"usageMetadata": CACHED_AUDIO}, "google",
        {"input_tokens": 10_000, "output_tokens": 10, "cache_read_tokens": 800,
         "input_audio_tokens": 9000, "cache_audio_read_tokens": 0}, id="audio beside a cache"),
    pytest.param(CHAT, "gpt-audio", {"usage": AUDIO}, "openai",
        {"input_tokens": 1000, "output_tokens": 1000, "input_audio_tokens": 900, "output_audio_tokens": 900}, id="audio"),
    pytest.param("/v1beta/models/gemini-2.5-flash-image:generateContent", "gemini-2.5-flash-image",
        {"usageMetadata": IMAGE}, "google",
        {"input_tokens": 10, "output_tokens": 1290, "output_image_tokens": 1290}, id="a picture"),
    pytest.param("/v1beta/interactions", "gemini-2.5-flash-image", {"usage": {
        "total_input_tokens": 10, "total_output_tokens": 1290,
        "output_tokens_by_modality": [{"modality": "image", "tokens": 1290}]}}, "google",
        {"input_tokens": 10, "output_tokens": 1290, "output_image_tokens": 1290}, id="an interaction's picture"),
    pytest.param("/v1beta/interactions", "gemini-3-flash-preview", {"usage": {
        "total_input_tokens": 10, "total_output_tokens": 5, "grounding_tool_count": [
            {"type": "google_search", "count": 10}, {"type": "google_maps", "count": 3}]}}, "google",
        {"input_tokens": 10, "output_tokens": 5, "web_searches": 10}, id="an interaction's searches"),
    pytest.param("/v1beta/models/gemini-3-flash-preview:generateContent", "gemini-3-flash-preview", {
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5}, "modelVersion": "gemini-3-flash",
        "candidates": [{"groundingMetadata": {"webSearchQueries": ["a", "b"]}}]}, "google",
        {"input_tokens": 10, "output_tokens": 5, "web_searches": 2}, id="searches"),
    pytest.param("/v1beta/models/gemini-2.5-flash:generateContent", "gemini-2.5-flash", {
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5}, "modelVersion": "gemini-2.5-flash",
        "candidates": [{"groundingMetadata": {"webSearchQueries": ["a", "b"]}}]}, "google",
        {"input_tokens": 10, "output_tokens": 5, "web_searches": 1}, id="a prompt with searches"),
    pytest.param("/v1/messages", "claude-sonnet-4-5", {"usage": KEPT}, "anthropic",
        {"input_tokens": 100_100, "output_tokens": 10, "cache_write_tokens": 100_000,
         "cache_write_1h_tokens": 100_000, "web_searches": 2}, id="an hour's cache and searches"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "model", "document", "provider", "used"), DETAILED)
def test_what_has_a_price_of_its_own_is_told_at_it(
    path: str, model: str, document: Any, provider: str, used: Any
) -> None:
    """Audio, pictures, longer caches and searches: as genai-prices has it, not at the price of text."""
    answer = ask(whole(document), path, {"model": model})
    expected = genai_prices.calc_price(
        genai_prices.Usage(**used), model_ref=model, provider_id=provider
    ).total_price
    kinds = ("input_a", "output_", "web", "cache_audio")  # what has a price of its own
    plain = {name: used[name] for name in used if not name.startswith(kinds)}
    assert answer.environ["aigw.usage"].cost == expected
    assert expected != genai_prices.calc_price(
        genai_prices.Usage(**plain, output_tokens=used["output_tokens"]), model_ref=model,
        provider_id=provider,
    ).total_price  # fmt: skip


def cost(provider: str, model: str, **used: int) -> Decimal:
    """What genai-prices says."""
    price = genai_prices.calc_price(
        genai_prices.Usage(**used), model_ref=model, provider_id=provider
    )
    total: Decimal = price.total_price
    return total


def test_what_another_model_used_is_told_at_its_own_price() -> None:
    """An advisor, the model that answered in the end, the one that made the pictures."""
    body = {"model": "claude-sonnet-4-5", "max_tokens": 9}
    advised = ask(whole({"usage": ADVISED_USAGE}), "/v1/messages", body)
    assert advised.environ["aigw.usage"].cost == cost(
        "anthropic", "claude-sonnet-4-5", input_tokens=10, output_tokens=30
    ) + cost(
        "anthropic", "claude-opus-4-7",
        input_tokens=105, output_tokens=7, cache_read_tokens=3, cache_write_tokens=2,
    )  # fmt: skip
    changed = ask(whole({"usage": FALLEN_BACK_USAGE}), "/v1/messages", body)
    assert changed.environ["aigw.usage"].cost == cost(
        "anthropic", "claude-sonnet-4-5", input_tokens=100, output_tokens=5, web_searches=1
    ) + cost(
        "anthropic", "claude-haiku-4-5", input_tokens=103, output_tokens=20, cache_read_tokens=3
    )
    mixed = ask(whole({"usage": MIXED_USAGE}), "/v1/messages", body)
    assert mixed.environ["aigw.usage"].cost == cost(
        "anthropic", "claude-sonnet-4-5", input_tokens=17, output_tokens=6
    ) + cost(
        "anthropic", "claude-haiku-4-5",
        input_tokens=150, output_tokens=20, cache_write_tokens=50, cache_write_1h_tokens=50,
    )  # fmt: skip
    painted = ask(whole(PAINTED), "/v1/responses", {"model": "gpt-5"})
    assert painted.environ["aigw.usage"].cost == cost(
        "openai", "gpt-5", input_tokens=20, output_tokens=30, web_searches=2
    ) + cost(
        "openai", "gpt-image-1.5",
        input_tokens=50, output_tokens=1000, cache_read_tokens=4,
        input_image_tokens=40, output_image_tokens=990, cache_image_read_tokens=4,
    )  # fmt: skip
    for unknown in ({"tools": []}, {"tools": [{"type": "image_generation", "model": "no-7"}]}):
        answer = ask(whole({**PAINTED, **unknown}), "/v1/responses", {"model": "gpt-5"})
        assert answer.environ["aigw.usage"].cost is None
        assert answer.environ["aigw.usage"].output_tokens == 1030


TIERED = [
    pytest.param("/v1/messages", {"usage": {**CLAUDE_USAGE, "speed": "fast"}}, None, id="Claude, fast"),
    pytest.param("/v1/messages", {"usage": {**CLAUDE_USAGE, "speed": "standard", "service_tier": "priority"}}, 1, id="Claude"),
    pytest.param(CHAT, {"usage": CHAT_USAGE, "service_tier": "priority"}, None, id="chat, priority"),
    pytest.param(CHAT, {"usage": CHAT_USAGE, "service_tier": "flex"}, 2, id="chat, flex"),
    pytest.param(CHAT, {"usage": CHAT_USAGE, "service_tier": "default"}, 1, id="chat"),
    pytest.param(CHAT, {"usage": CHAT_USAGE, "service_tier": "ultrafast"}, None, id="a tier of tomorrow"),
    pytest.param(CHAT, {"usage": CHAT_USAGE, "service_tier": 3}, None, id="a number"),
    pytest.param("/v1beta/interactions", {"usage": {"total_input_tokens": 10, "total_output_tokens": 10},
        "service_tier": "flex"}, 2, id="interaction, flex"),
    pytest.param("/v1/messages", {"usage": {**CLAUDE_USAGE, "inference_geo": "us"}}, Fraction(10, 11), id="in one country"),
    pytest.param("/v1/responses", {"usage": RESPONSES_USAGE, "service_tier": "priority"}, None, id="responses, priority"),
    pytest.param("/v1beta/models/gemini-2.5-flash:generateContent",
        {"usageMetadata": {**GEMINI_USAGE, "serviceTier": "FLEX"}}, 2, id="Gemini, flex"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "document", "share"), TIERED)
def test_a_service_tier_is_billed_as_it_says(path: str, document: Any, share: Any) -> None:
    """Half for what may wait, unknown for what is to be fast; the model's own price is neither."""
    model = "claude-sonnet-4-5" if "messages" in path else "gpt-4o"
    if path.startswith("/v1beta"):
        model = "gemini-2.5-flash"
    plain = {"usage": document["usage"]} if "usage" in document else dict(document)
    for name in ('"fast"', '"FLEX"', '"us"'):
        plain = json.loads(json.dumps(plain).replace(name, "null"))
    usage = ask(whole(document), path, {"model": model}).environ["aigw.usage"]
    full = ask(whole(plain), path, {"model": model}).environ["aigw.usage"]
    assert full.cost
    wanted = None if share is None else Decimal(-(-Fraction(full.cost * 10**9) // share)) / 10**9
    assert usage.cost == wanted
    assert figures(usage) == figures(full)


@pytest.mark.parametrize("provider", ["groq", "mine"])
def test_flex_is_half_only_of_who_sells_it_so(provider: str) -> None:
    """Groq takes the same for it; a server of one's own may echo what it is told."""
    body = json.dumps({"model": "llama-3.3-70b-versatile", "service_tier": "flex"}).encode()
    costs = []
    for tier in ("flex", "default"):
        answer_bytes = whole({"usage": CHAT_USAGE, "service_tier": tier})
        with raw_provider(answering(answer_bytes)) as upstream:
            one = Provider(provider, base_url=upstream.url, api_keys=[KEY])
            app = UpstreamForwarder(upstream=one, prices={"llama-3.3-70b-versatile": (1, 2)})
            costs.append(call(app, CHAT, body=body).environ["aigw.usage"].cost)
    assert costs[0] == costs[1] == Decimal("0.00008")


def test_googles_tier_is_told_in_the_head() -> None:
    """`x-gemini-service-tier`: what was served, whatever was asked for."""
    body = json.dumps({"usageMetadata": GEMINI_USAGE}).encode()
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-gemini-service-tier: {}\r\n"
    costs = []
    for tier in ("standard", "flex", "priority"):
        data = f"{head.format(tier)}Content-Length: {len(body)}\r\n\r\n".encode() + body
        costs.append(ask(data, path, {}).environ["aigw.usage"].cost)
    standard, flex, priority = costs
    assert (flex, priority) == (standard / 2, None)


def test_what_only_the_answer_tells_to_be_dearer_keeps_its_reservation() -> None:
    """The account's own default may be a faster tier: at least what was reserved is gone."""
    counters = open_counters("memory:")
    told = whole(
        {"usage": {"prompt_tokens": 5, "completion_tokens": 5}, "service_tier": "priority"}
    )
    with raw_provider(answering(told)) as upstream:
        provider = Provider("openai", base_url=upstream.url, api_keys=[KEY])
        app = RateLimiter(
            UpstreamForwarder(upstream=provider), "10 usd/day", by="global", counters=counters
        )
        call(app, CHAT, body=json.dumps({**MODEL, "max_tokens": 100_000}).encode())
    (count,) = counters.counts()
    assert count.used / 10**9 > 0.9  # 100,000 tokens of gpt-4o's


def test_a_stream_tells_its_tier_in_every_chunk() -> None:
    """Not only in the one with the usage."""
    chunks = [
        {"choices": [{"delta": {"content": "hi"}}], "service_tier": "priority"},
        {"choices": [], "usage": CHAT_USAGE, "service_tier": "priority"},
    ]
    answer = ask(streamed(*chunks, b"[DONE]"), CHAT, {**MODEL, "stream": True})
    assert answer.environ["aigw.usage"].cost is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"speed": "fast"}),
        ("/v1/messages", {"fallbacks": [{"model": "claude-haiku-4-5", "speed": "fast"}]}),
        ("/v1/messages", {"tools": [{"type": "advisor_20260301", "model": "no-such-model-7"}]}),
        (CHAT, {"service_tier": "priority"}),
        ("/v1/responses", {"service_tier": "fast"}),
        ("/v1beta/models/gemini-2.5-flash:generateContent", {"serviceTier": "PRIORITY"}),
        ("/v1beta/interactions", {"service_tier": "priority"}),
        (CHAT, {"service_tier": "ultrafast"}),
        (
            "/v1beta/models/gemini-2.5-flash:generateContent",
            {"serviceTier": "SERVICE_TIER_PRIORITY"},
        ),
        (
            "/v1beta/models/gemini-2.5-flash:generateContent",
            {"serviceTier": "standard", "service_tier": "priority"},
        ),
        ("/v1beta/models/gemini-2.5-flash:generateContent", {"serviceTier": 3}),
    ],
)
def test_money_is_not_spent_at_a_price_that_is_not_known(path: str, fields: Any) -> None:
    """A limit of money would count what is billed at several times as much."""
    model = {"/v1/messages": "claude-sonnet-4-5", "/v1beta/interactions": "gemini-2.5-flash"}
    app = RateLimiter(Inner(), "100 usd/day", by="global")
    plain = {"model": model.get(path, "gpt-4o"), "max_tokens": 9}
    if path.startswith("/v1beta"):
        del plain["max_tokens"]
    assert call(app, path, body=json.dumps(plain).encode()).status == 200
    dear = call(app, path, body=json.dumps({**plain, **fields}).encode())
    assert dear.code == "price_unknown"


def test_a_batch_is_reserved_at_the_price_of_its_dearest_model() -> None:
    """Its requests name models of their own; one of no known price refuses it."""
    app = RateLimiter(Inner(), "1 usd/day", by="global")

    def asked(*models: str) -> Any:
        requests = [{"params": {"model": model, "max_tokens": 10_000}} for model in models]
        return call(app, "/v1/messages/batches", body=json.dumps({"requests": requests}).encode())

    assert asked("claude-haiku-4-5", "no-such-model-7").code == "price_unknown"
    assert asked("claude-haiku-4-5", "claude-opus-4-7").status == 200  # 0.25 USD for each of both
    assert asked("claude-haiku-4-5", "claude-haiku-4-5").status == 200
    assert asked("claude-opus-4-7", "claude-haiku-4-5").code == "budget_exceeded"


ENDED = [
    pytest.param("/v1/images/generations", [{"type": "image_generation.completed", "usage": RESPONSES_USAGE}], id="a picture"),
    pytest.param("/v1/audio/transcriptions", [{"type": "transcript.text.done", "usage": RESPONSES_USAGE}], id="a transcript"),
    pytest.param("/v1/audio/speech", [{"type": "speech.audio.done", "usage": RESPONSES_USAGE}], id="speech"),
    pytest.param("/v1/threads/t/runs", [{"object": "thread.run", "status": "completed", "usage": CHAT_USAGE}], id="a run"),
    pytest.param("/v1beta/interactions", [{"event_type": "interaction.completed", "interaction": {"usage": INTERACTION_USAGE}}], id="an interaction"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "events"), ENDED)
def test_an_answer_that_is_all_there_is_not_ended_by_a_limit(path: str, events: Any) -> None:
    """Its last event tells more than is left: that is charged, and nothing follows the answer."""
    said, done = streamed_body(*events), streamed_body(b"[DONE]")
    may_end = threading.Event()

    def handler(connection: socket.socket, request: RawRequest) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
        connection.sendall(head + b"\r\n\r\n%x\r\n%b\r\n" % (len(said), said))
        may_end.wait(20)
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))

    name = "google" if "beta" in path else "openai"
    body = json.dumps({"input": "x", "prompt": "x", "model": "m", "stream": True}).encode()
    variables = {}
    if "transcriptions" in path:
        variables = {"CONTENT_TYPE": "multipart/form-data; boundary=b"}
        body = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    with raw_provider(handler) as provider:
        upstream = Provider(name, base_url=provider.url, api_keys=[KEY])
        app = RateLimiter(UpstreamForwarder(upstream=upstream), "29 output_tokens/min", by="global")
        environ = make_environ(path, body=body, **variables)
        iterable: Any = iter(app(environ, lambda *_: lambda _: None))
        assert next(iterable) == said
        may_end.set()
        assert b"".join(iterable) == done
        iterable.close()
    assert environ["aigw.usage"].output_tokens == 30


def test_a_client_that_leaves_at_the_sentinel_has_read_all() -> None:
    """Google's SDK stops there, with an `event:` line before it, and waits for no end."""
    said = {"event_type": "step.delta", "delta": {"type": "text", "text": "x" * 4000}}
    last = {"event_type": "interaction.completed", "interaction": {"usage": INTERACTION_USAGE}}
    data = streamed_body(said, last) + b"event: done\ndata: [DONE]\n\n"
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with raw_provider(answering(head + b"%x\r\n%b\r\n" % (len(data), data), keep=True)) as provider:
        upstream = Provider("google", base_url=provider.url, api_keys=[KEY])
        body = b'{"model": "g", "input": "x", "stream": true}'
        environ = make_environ("/v1beta/interactions", body=body)
        iterable: Any = UpstreamForwarder(upstream=upstream)(environ, lambda *_: lambda _: None)
        assert next(iterable)
        iterable.close()
    usage = environ["aigw.usage"]
    assert (usage.output_tokens, usage.estimated) == (30, False)


def test_an_error_event_of_responses_is_a_failure() -> None:
    """It holds no `error` object, as those of other streams do."""
    error = {"type": "error", "code": "server_error", "message": "x", "param": None}
    body = {**MODEL, "stream": True, "max_output_tokens": 60_000}
    answer = ask(streamed({"type": "response.created"}, error), "/v1/responses", body)
    assert (answer.environ["aigw.usage"].output_tokens, answer.environ["aigw.usage"].estimated) == (
        0,
        True,
    )


def test_a_fallbacks_stream_that_breaks_off_is_counted_once() -> None:
    """By the figures that came, though most of them are of another model; no later ones blur them."""
    start = {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 100, "output_tokens": 1}},
    }
    text = {"type": "content_block_delta", "delta": {"text": "x" * 90}}
    told = {"type": "message_delta", "usage": FALLEN_BACK_USAGE}
    more = {"type": "message_delta", "usage": {"input_tokens": 100, "output_tokens": 25}}
    body = {"model": "claude-sonnet-4-5", "max_tokens": 99, "stream": True}
    for events, end in (([start, text, told], False), ([start, text, told, more], True)):
        with raw_provider(answering(streamed(*events, end=end))) as provider:
            upstream = Provider("anthropic", base_url=provider.url, api_keys=[KEY])
            environ = make_environ("/v1/messages", body=json.dumps(body).encode())
            iterable: Any = UpstreamForwarder(upstream=upstream)(environ, lambda *_: lambda _: None)
            next(iterable)
            iterable.close()
        assert figures(environ["aigw.usage"])[:2] == (203, 25)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"thread": {"type": "continue", "previous_message_id": "m"}}),
        ("/v1/responses", {"input": [{"id": "msg_1"}]}),
        (
            "/v1beta/interactions",
            {"tools": [{"type": "file_search", "file_search_store_names": ["s"]}]},
        ),
        (GEMINI, {"tools": [{"fileSearch": {"fileSearchStoreNames": ["s"]}}]}),
        ("/v1beta/interactions", {"continuation_token": "t"}),
    ],
)
def test_content_that_is_elsewhere_counts_as_much_as_a_model_reads(path: str, fields: Any) -> None:
    """In its newest forms too."""
    limiter = RateLimiter(Inner(), "1000000 input_tokens/min", by="global")
    plain = call(limiter, path, body=json.dumps({"model": "m", "max_tokens": 9}).encode())
    left = int(plain.headers["RateLimit"].partition("r=")[2].partition(";")[0])
    answer = call(
        limiter, path, body=json.dumps({"model": "m", "max_tokens": 9, **fields}).encode()
    )
    assert left - int(answer.headers["RateLimit"].partition("r=")[2].partition(";")[0]) > 200_000


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/realtime/client_secrets", {"session": {"model": "gpt-4o"}}),
        ("/v1/live/sessions", {"model": "gpt-4o"}),
        ("/v1/evals/e/runs", {"data_source": {"model": "gpt-4o"}}),
        ("/v1/sessions", {"agent": {"model": "claude-sonnet-4-5"}}),
        ("/v1/dreams", {"model": "claude-sonnet-4-5"}),
    ],
)
def test_what_is_used_without_being_told_is_not_sold_under_a_limit(path: str, fields: Any) -> None:
    """A secret for the realtime API, a session, a run of many: nobody here learns what it comes to."""
    version = {"HTTP_ANTHROPIC_VERSION": "x"} if path.count("/") == 2 else {}
    body = json.dumps(fields).encode()
    money = RateLimiter(Inner(), "1 usd/day", by="global")
    assert call(money, path, body=body, **version).code == "price_unknown"
    tokens = RateLimiter(Inner(), "250000 tokens/min", by="global")
    assert [call(tokens, path, body=body, **version).status for _ in range(2)] == [200, 429]


def test_what_never_fits_is_judged_by_one_answer() -> None:
    """Not by all that might be answered one after the other, nor by sound that costs no tokens."""
    limiter = RateLimiter(Inner(), "100000 output_tokens/min", by="global")
    fallbacks = [{"model": "a"}, {"model": "b"}, {"model": "c"}]
    body = json.dumps({"model": "m", "max_tokens": 32_000, "fallbacks": fallbacks}).encode()
    assert call(limiter, "/v1/messages", body=body).status == 200
    speech = json.dumps({"model": "tts-1", "input": "x" * 4096, "voice": "a"}).encode()
    small = RateLimiter(Inner(), "5000 tokens/min", by="global")
    assert call(small, "/v1/audio/speech", body=speech).status == 200


def test_speech_is_reserved_for_what_is_read_aloud() -> None:
    """The sound itself tells no usage: two tokens a letter."""
    limiter = RateLimiter(Inner(), "1000 output_tokens/min", by="global")
    body = json.dumps({"model": "gpt-4o-mini-tts", "input": "x" * 240, "voice": "a"}).encode()
    assert [call(limiter, "/v1/audio/speech", body=body).status for _ in range(3)] == [
        200,
        200,
        429,
    ]


def test_each_fallback_may_have_a_bill_of_its_own() -> None:
    """Of one that was declined in the middle too."""
    limiter = RateLimiter(Inner(), "1000 output_tokens/min", by="global")
    fallbacks = [{"model": "m"}, {"model": "m", "max_tokens": 50}]
    body = json.dumps({"model": "m", "max_tokens": 400, "fallbacks": fallbacks}).encode()
    assert [call(limiter, "/v1/messages", body=body).status for _ in range(2)] == [200, 429]


def test_details_that_are_told_in_parts_are_put_together() -> None:
    """The cache at the beginning of a stream, the searches at its end."""
    start = {"type": "message_start", "message": {"usage": {**KEPT, "server_tool_use": None}}}
    end = {
        "type": "message_delta",
        "usage": {"output_tokens": 10, "server_tool_use": {"web_search_requests": 2}},
    }
    body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "stream": True}
    answer = ask(streamed(start, end, {"type": "message_stop"}), "/v1/messages", body)
    whole_one = ask(whole({"usage": KEPT}), "/v1/messages", body)
    assert answer.environ["aigw.usage"].cost == whole_one.environ["aigw.usage"].cost


def test_what_costs_more_than_its_tokens_has_no_price() -> None:
    """Training of a model: the price of its tokens says nothing of that."""
    app = RateLimiter(Inner(), "1 usd/day", by="global")
    body = b'{"model": "gpt-4o-mini", "training_file": "f"}'
    assert call(app, "/v1/fine_tuning/jobs", body=body).code == "price_unknown"


@pytest.mark.parametrize(
    "path", ["/v1/conversations", "/v1/chat/completions/batch", "/v1/containers"]
)
def test_what_some_provider_bills_is_not_held_for_nothing(path: str) -> None:
    """Of OpenAI's dialect, whose paths others use for more."""
    app = RateLimiter(Inner(), "1 usd/day", by="global")
    assert call(app, path, body=b'{"model": "no-such-model-7"}').code == "price_unknown"


def test_what_is_billed_by_the_hour_has_no_price_of_tokens() -> None:
    """Under a limit of money it is refused: it is not free."""
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x--\r\n'
    app = RateLimiter(Inner(), "1 usd/day", by="global")
    kind = "multipart/form-data; boundary=x"
    answer = call(app, "/v1/audio/transcriptions", body=form, CONTENT_TYPE=kind)
    assert answer.code == "price_unknown"
    assert _listed("azure", "mai-ds-r1:free") is not None


# --- what follows from it


def test_a_limit_settles_to_what_the_provider_tells() -> None:
    """Reserved by bounds, settled by the provider's figures, through the whole gateway."""
    counters = open_counters("memory:")
    with raw_provider(answering(whole({"usage": CHAT_USAGE}))) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=[KEY])
        limits = ["9000 tokens/min", "1 usd/day"]
        app = stack(
            UpstreamForwarder(upstream=upstream),
            partial(RateLimiter, limits=limits, by="global", counters=counters, prices=PRICES),
        )
        body = json.dumps({**MODEL, "max_tokens": 500}).encode()
        assert call(app, CHAT, body=body).status == 200
    used = {count.name.split("|")[1]: count.used for count in counters.counts()}
    assert used["tokens-60s"] == 50
    # By the cost that the forwarder tells: the prices of genai-prices.
    assert used["usd-86400s"] == 15 * 2500 + 5 * 1250 + 30 * 10_000


def test_a_usage_that_tells_seconds_keeps_the_reservation() -> None:
    """A transcription billed by its length tells no tokens: it is not free by that."""
    counters = open_counters("memory:")
    usage = {"type": "duration", "seconds": 9}
    with raw_provider(answering(whole({"text": "hi", "usage": usage}))) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=[KEY])
        limiter = partial(RateLimiter, limits="900000 tokens/min", by="global", counters=counters)
        app = stack(UpstreamForwarder(upstream=upstream), limiter)
        form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x--\r\n'
        kind = "multipart/form-data; boundary=x"
        answer = call(app, "/v1/audio/transcriptions", body=form, CONTENT_TYPE=kind)
    assert answer.status == 200
    assert "aigw.usage" not in answer.environ
    (count,) = counters.counts()
    assert count.used >= 200_000


PRICED = [
    ({"openai/gpt-4o": (250, 250)}, None, "gpt-4o", 250),
    ({"openai/gpt-4o": (250, 250)}, None, "openai:gpt-4o", 250),
    ({"openai:gpt-4o": (250, 250)}, None, "openai/gpt-4o", 250),
    ({"openai/gpt-4o": (250, 250), "azure/gpt-4o": (300, 300)}, None, "GPT-4o", 300),
    ({"openai/gpt-4o": (250, 250), "gpt-4o": (1, 1)}, None, "gpt-4o", 1),
    ({"openai/gpt-4o": (250, 250), "gpt-4o": (1, 1)}, "azure", "gpt-4o", 1),
    ({"openai/gpt-4o": (250, 250)}, "azure", "gpt-4o", None),
    ({"mine/llama3:8b": (5, 5)}, None, "llama3:8b", 5),
    ({"mistral:7b": (5, 5)}, None, "mistral:7b", 5),
    ({"mistral:7b": (5, 5)}, "ollama", "mistral:7b", 5),
    ({"x-ai/grok-zz": (3, 15)}, "openrouter", "x-ai/grok-zz", 3),
]


@pytest.mark.parametrize(("given_prices", "provider", "model", "wanted"), PRICED)
def test_a_given_price_is_found_by_every_name_of_its_model(
    given_prices: Any, provider: str | None, model: str, wanted: int | None
) -> None:
    """`provider/model`, `provider:model` or the model alone; where nobody knows whose, the dearest."""
    price = Prices(given_prices).of(provider, model)
    found = None if price is None or price not in Prices(given_prices)._given.values() else price
    assert (None if found is None else found.input) == wanted


@pytest.fixture
def budgeted() -> Any:
    """A whole gateway with so small a budget that the second answer is refused."""
    with serving(StandInProvider()) as upstream:
        app = stack(
            UpstreamForwarder(upstream=three_providers(upstream, KEY)),
            partial(KeyAuth, keys=StaticKeys({"ci": "gateway-key"})),
            partial(RateLimiter, limits="40 output_tokens/min"),
        )
        with serving(app) as url:
            yield url


def again(ask_once: Any) -> None:
    """Ask until the limit is spent."""
    for _ in range(3):
        ask_once()


QUESTION = " ".join(f"word{n}" for n in range(20))


def test_the_sdks_stream_under_a_limit_and_are_refused_when_it_is_spent(budgeted: str) -> None:
    """OpenAI's SDK streams to the end, sees no usage that it did not ask for, then a 429."""
    client = openai.OpenAI(base_url=f"{budgeted}/v1", api_key="gateway-key", max_retries=0)
    messages: Any = [{"role": "user", "content": QUESTION}]
    chunks = list(client.chat.completions.create(model="gpt-4o", messages=messages, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert "word19" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    with pytest.raises(openai.RateLimitError) as refused:
        again(lambda: client.chat.completions.create(model="gpt-4o", messages=messages))
    assert refused.value.code == "rate_limit_exceeded"


def test_anthropic_and_google_under_a_limit(budgeted: str) -> None:
    """The other SDKs get their answers, and then their own errors."""
    claude = anthropic.Anthropic(base_url=budgeted, api_key="gateway-key", max_retries=0)
    messages: Any = [{"role": "user", "content": QUESTION}]
    with claude.messages.stream(model="claude", max_tokens=30, messages=messages) as stream:
        assert "word19" in stream.get_final_text()
    with pytest.raises(anthropic.RateLimitError):
        again(lambda: claude.messages.create(model="claude", max_tokens=30, messages=messages))
    options = genai.types.HttpOptions(base_url=budgeted)
    gemini = genai.Client(api_key="gateway-key", http_options=options)
    with pytest.raises(genai.errors.ClientError, match="429"):
        again(lambda: gemini.models.generate_content(model="g", contents=QUESTION))


# --- splicing


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c\n", 'd"', ""]) | st.text(max_size=5), JSON_VALUES
    ),
    st.lists(st.sampled_from(["a", "b", 'd"']), min_size=1, max_size=3, unique=True),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
)
def test_one_value_changes_and_no_other_byte(
    document: Any, path: list[str], indent: Any, ascii_only: bool
) -> None:
    """`put` gives what changing the document would, and keeps the text around the place."""
    data = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    changed = json.loads(put(data, tuple(path), 7))
    expected = json.loads(data)
    inner = expected
    for name in path[:-1]:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    inner[path[-1]] = 7
    assert changed == expected


@given(st.lists(JSON_VALUES, min_size=1, max_size=4), st.sampled_from([None, 1]), st.data())
def test_many_values_change_in_one_step(items: Any, indent: Any, data: Any) -> None:
    """`put_all` gives what each change would, elements of arrays among them."""
    document = {"list": [{"own": item, "x": {"n": 1}} for item in items], "last": 0}
    numbers = data.draw(st.sets(st.integers(0, len(items) - 1)))
    values: dict[Any, Any] = {("list", number, "x", "n"): 7 for number in numbers}
    values |= {("list", number, "fresh", "n"): [number] for number in numbers}
    changed = json.loads(put_all(json.dumps(document, indent=indent).encode(), values))
    for number in numbers:
        document["list"][number] |= {"x": {"n": 7}, "fresh": {"n": [number]}}
    assert changed == document


def test_the_text_around_is_untouched() -> None:
    """Spaces, order, escapes and the spelling of numbers stay."""
    data = b' { "z" : 1.50e3 ,\t"a":"\\u0041" , "max_tokens" : 5 } '
    assert put(data, ("max_tokens",), 9) == data.replace(b": 5 }", b": 9 }")
    assert put(b"{}", ("a", "b"), 1) == b'{"a": {"b": 1}}'
