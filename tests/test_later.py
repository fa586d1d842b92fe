"""What was made before, in a batch or in the background, and is told to who asks by its id."""

from __future__ import annotations

import gzip
import json
import socket
import sqlite3
from contextlib import closing
from decimal import Decimal
from itertools import pairwise
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware import Provider, RateLimiter, UpstreamForwarder, open_store
from aigw_middleware.dialects import DIALECTS
from aigw_middleware.errors import UpstreamBroken
from aigw_middleware.forwarding.later import MADE, LaterMetering
from aigw_middleware.forwarding.metering import metering_of
from aigw_middleware.usage.prices import Prices

from .support import RawRequest, answering, call, make_environ, raw_provider

USAGE = {
    "input_tokens": 1000, "output_tokens": 501, "input_tokens_details": {"cached_tokens": 50},
    "output_tokens_details": {"reasoning_tokens": 7}, "total_tokens": 1501,
}  # fmt: skip
RESPONSE = {
    "id": "resp_1", "object": "response", "background": True, "status": "completed",
    "model": "gpt-5", "usage": USAGE,
}  # fmt: skip
BATCH = {
    "id": "batch_1",
    "object": "batch",
    "status": "completed",
    "model": "gpt-5",
    "usage": USAGE,
}
INTERACTION = {
    "id": "v1_a", "status": "completed", "model": "gemini-2.5-flash",
    "usage": {"total_input_tokens": 1000, "total_output_tokens": 501, "total_cached_tokens": 50},
}  # fmt: skip
GEMINI_USAGE = {"promptTokenCount": 500, "candidatesTokenCount": 251, "cachedContentTokenCount": 25}
INLINED = {
    "name": "batches/b", "done": True, "metadata": {"model": "models/gemini-2.5-flash"},
    "response": {"inlinedResponses": {"inlinedResponses": [
        {"response": {"usageMetadata": GEMINI_USAGE}},
        {"error": {"code": 3}},
        {"response": {"usageMetadata": {**GEMINI_USAGE, "candidatesTokenCount": 250}}},
    ]}},
}  # fmt: skip


def results(*models: str) -> bytes:
    """The lines of Claude's batch: each model's answer, and one that failed."""
    lines: list[Any] = [
        {"custom_id": "a", "result": {"type": "succeeded", "message": {
            "model": model, "usage": {"input_tokens": 475, "cache_read_input_tokens": 25, "output_tokens": tokens}}}}
        for model, tokens in zip(models, (251, 250), strict=True)
    ]  # fmt: skip
    lines.insert(1, {"custom_id": "b", "result": {"type": "errored", "error": {}}})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def answer(body: bytes, kind: str, *, coded: bool = False, cut: bool = False) -> bytes:
    coding = ""
    if coded:
        body, coding = gzip.compress(body), "Content-Encoding: gzip\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{coding}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + (body[:-20] if cut else body)


def in_turn(*answers: bytes) -> Any:
    """A handler that gives each request the next of the answers."""
    left = iter(answers)

    def handler(connection: socket.socket, request: RawRequest) -> bool:
        connection.sendall(next(left))
        return True

    return handler


def as_json(document: Any) -> tuple[bytes, str]:
    return json.dumps(document).encode(), "application/json"


def as_events(*documents: Any) -> tuple[bytes, str]:
    body = b"".join(b"event: x\ndata: " + json.dumps(d).encode() + b"\n\n" for d in documents)
    return body, "text/event-stream"


CLAUDES = "/v1/messages/batches/msgbatch_1/results"
TOLD = [
    pytest.param("/v1/responses/resp_1", as_json(RESPONSE), "gpt-5", False, id="background"),
    pytest.param("/v1/responses/resp_1", as_events({"type": "response.created"}, {"type": "response.completed", "response": RESPONSE}), "gpt-5", False, id="its stream"),
    pytest.param("/v1/responses/resp_1", as_json({**RESPONSE, "status": "incomplete"}), "gpt-5", False, id="cut short"),
    pytest.param("/v1beta/interactions/v1_a", as_events({"event_type": "interaction.completed", "interaction": INTERACTION}), "gemini-2.5-flash", False, id="an interaction's stream"),
    pytest.param("/v1/batches/batch_1", as_json(BATCH), "gpt-5", True, id="OpenAI's batch"),
    pytest.param(CLAUDES, (results("claude-sonnet-4-5", "claude-sonnet-4-5"), "application/x-jsonl"), "claude-sonnet-4-5", True, id="Claude's batch"),
    pytest.param("/v1beta/interactions/v1_a", as_json(INTERACTION), "gemini-2.5-flash", False, id="interaction"),
    pytest.param("/v1beta/batches/b", as_json(INLINED), "gemini-2.5-flash", True, id="Gemini's batch"),
]  # fmt: skip


def provider_of(path: str, url: str, **options: Any) -> Provider:
    name = "google" if path.startswith("/v1beta") else "openai"
    return Provider(
        "anthropic" if "messages" in path else name, base_url=url, api_keys=["k"], **options
    )


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize(("path", "told", "model", "batched"), TOLD)
def test_it_counts_once_however_often_it_is_told(
    path: str, told: Any, model: str, batched: bool, coded: bool, sqlite_url: str
) -> None:
    """By its id: its tokens, its model, and half the price where it was made in a batch."""
    store = open_store(sqlite_url)
    with raw_provider(answering(answer(*told, coded=coded), keep=True)) as upstream:
        provider = provider_of(path, upstream.url)
        app = UpstreamForwarder(upstream=provider, store=store)
        for _ in range(3):
            found = call(app, path, method="GET")
            assert found.status == 200
            assert "aigw.usage" not in found.environ  # no limit settles to it
    price = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=1000, output_tokens=501, cache_read_tokens=50),
        model_ref=model, provider_id=provider.name,
    ).total_price  # fmt: skip
    cost = sum(row["cost"] or 0 for row in store.usage.totals("provider"))
    assert cost == pytest.approx(float(price) / (2 if batched else 1), abs=1e-9)
    (row,) = store.usage.totals("model")
    assert (row["model"], row["requests"]) == (model, 3)
    assert (row["input_tokens"], row["output_tokens"], row["cached_input_tokens"]) == (
        1000,
        501,
        50,
    )


def test_both_engines_count_once(url: str) -> None:
    """Of rows with one id the first counts, in one merge and over several; others are their own."""
    store = open_store(url)
    row: dict[str, Any] = {
        "request_id": "r", "key_id": None, "provider": "p", "model": "m", "path": "/", "status": 200,
        "duration": 1.0, "first_byte": 0.5,
    }  # fmt: skip
    usage = {"input_tokens": 10, "output_tokens": 5, "cost": 0.5}
    for once in ("b", "a", "b", None):
        store.usage.book(**row, usage=usage, once=once)
    assert store.usage.totals()[0]["input_tokens"] == 30
    for once in ("a", "c"):
        store.usage.book(**row, usage=usage, once=once)
    (found,) = store.usage.totals()
    assert (found["requests"], found["input_tokens"], found["output_tokens"]) == (6, 40, 20)
    assert found["cost"] == 2.0


def test_a_stream_that_was_read_to_its_end_is_not_counted_again(sqlite_url: str) -> None:
    """A background answer streamed to who asked for it, and fetched by its id afterwards."""
    store = open_store(sqlite_url)
    stream = answer(*as_events({"type": "response.completed", "response": RESPONSE}))
    with raw_provider(in_turn(stream, answer(*as_json(RESPONSE)))) as upstream:
        app = UpstreamForwarder(upstream=provider_of("/v1", upstream.url), store=store)
        body = b'{"model": "gpt-5", "background": true, "stream": true}'
        asked = call(app, "/v1/responses", body=body)
        assert asked.environ["aigw.usage"].output_tokens == 501
        call(app, "/v1/responses/resp_1", method="GET")
    (row,) = store.usage.totals("model")
    assert (row["requests"], row["output_tokens"]) == (2, 501)


def test_an_interaction_that_was_answered_is_not_counted_again(sqlite_url: str) -> None:
    """Google tells every one to who asks by its id, not those of the background alone."""
    store = open_store(sqlite_url)
    told = answer(*as_json(INTERACTION))
    with raw_provider(answering(told, keep=True)) as upstream:
        provider = provider_of("/v1beta", upstream.url)
        app = UpstreamForwarder(upstream=provider, store=store)
        call(app, "/v1beta/interactions", body=b'{"model": "gemini-2.5-flash", "input": "x"}')
        call(app, "/v1beta/interactions/v1_a", method="GET")
    (row,) = store.usage.totals("model")
    assert (row["requests"], row["output_tokens"]) == (2, 501)


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v1/responses/resp_1", {**RESPONSE, "status": "in_progress"}),
        ("/v1/responses/resp_1", {**RESPONSE, "background": False}),  # it was counted when it came
        ("/v1/responses/resp_1", {**RESPONSE, "usage": None}),
        ("/v1/batches/batch_1", {**BATCH, "status": "finalizing"}),
        ("/v1/batches/batch_1", {**BATCH, "id": 7}),
        ("/v1beta/interactions/v1_a", {**INTERACTION, "status": "in_progress"}),
        ("/v1beta/interactions/v1_a", {**INTERACTION, "status": "queued"}),
        ("/v1beta/batches/b", {"name": "batches/b", "metadata": {"model": "models/g"}}),
        ("/v1/chat/completions/x", RESPONSE),
        ("/v1/responses/resp_1", ["odd"]),
    ],
)
def test_what_is_not_over_or_was_counted_tells_nothing(path: str, document: Any) -> None:
    """Then the next one who asks is told more."""
    with raw_provider(answering(answer(*as_json(document)))) as upstream:
        app = UpstreamForwarder(upstream=provider_of(path, upstream.url))
        assert MADE not in call(app, path, method="GET").environ


@pytest.mark.parametrize("coded", [False, True])
def test_what_broke_off_tells_nothing(coded: bool) -> None:
    """Half of a batch's answers are not all of them."""
    told = answer(
        results("claude-sonnet-4-5", "claude-sonnet-4-5"), "application/x-jsonl",
        coded=coded, cut=True,
    )  # fmt: skip
    with raw_provider(answering(told)) as upstream:
        environ = make_environ(CLAUDES, method="GET")
        app = UpstreamForwarder(upstream=provider_of(CLAUDES, upstream.url))
        iterable = app(environ, lambda *_: lambda _: None)
        with pytest.raises(UpstreamBroken):
            list(iterable)
        iterable.close()  # type: ignore[attr-defined]
        assert MADE not in environ


def test_a_batch_of_several_models_has_none_and_the_cost_of_all() -> None:
    """What an advisor has used in it counts too, at its own price."""
    lines = results("claude-sonnet-4-5", "claude-haiku-4-5")
    advised = {"input_tokens": 0, "output_tokens": 0, "iterations": [
        {"type": "advisor_message", "model": "claude-opus-4-7", "input_tokens": 10, "output_tokens": 20}]}  # fmt: skip
    lines += json.dumps(
        {"result": {"message": {"model": "claude-haiku-4-5", "usage": advised}}}
    ).encode()
    metering = metered(lines)
    metering.meter.feed(lines)
    metering.meter.finish()
    metering.conclude()
    made = metering._environ[MADE]
    usd = [(500, 25, 251, 3, "0.3", 15), (500, 25, 250, 1, "0.1", 5), (10, 0, 20, 5, "0.5", 25)]
    cost = sum(
        (given - cached) * Decimal(first) + cached * Decimal(read) + said * Decimal(second)
        for given, cached, said, first, read, second in usd
    )
    assert (made.model, made.usage.input_tokens, made.usage.output_tokens) == (None, 1010, 521)
    assert made.usage.cost == cost / 10**6 / 2


def metered(
    data: bytes,
    path: str = CLAUDES,
    kind: str = "application/x-jsonl",
    *,
    coding: str = "",
    provider: str = "anthropic",
) -> LaterMetering:
    environ = make_environ(path, method="GET")
    environ["aigw.provider"] = provider
    streams = kind == "text/event-stream"
    headers = [("Content-Type", kind), ("Content-Encoding", coding)]
    found = metering_of(environ, headers, Prices(), streams=streams)
    assert isinstance(found, LaterMetering)
    return found


PIECES = [
    (results("a", "b"), "application/x-jsonl", CLAUDES),
    (*as_events({"type": "x"}, {"type": "response.completed", "response": RESPONSE}), "/v1/responses/r"),
    (as_events({"type": "response.completed", "response": RESPONSE})[0].replace(b"\n", b"\r\n"),
     "text/event-stream", "/v1/responses/r"),
    (*as_json(RESPONSE), "/v1/responses/r"),
]  # fmt: skip


@given(st.sampled_from(PIECES), st.lists(st.integers(0, 2000)) | st.just([*range(2000)]))
def test_it_is_the_same_however_the_bytes_are_cut(case: Any, cuts: list[int]) -> None:
    """Lines, events and documents that come in any pieces."""
    data, kind, path = case
    once, often = metered(data, path, kind), metered(data, path, kind)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(places):
        assert often.meter.feed(data[start:end]) == data[start:end]
    once.meter.feed(data)
    for metering in (once, often):
        metering.meter.finish()
        metering.conclude()
    assert once._environ[MADE] == often._environ[MADE]


def test_a_limit_keeps_what_was_reserved_when_it_was_asked_for() -> None:
    """Asking for it again and again settles nothing: each takes the one token of any request."""
    queued = answer(*as_json({**RESPONSE, "status": "queued", "usage": None}))
    told = answer(*as_json(RESPONSE))
    with raw_provider(in_turn(queued, told, told, told)) as upstream:
        app = RateLimiter(
            UpstreamForwarder(upstream=provider_of("/v1", upstream.url)),
            "100000 tokens/min",
            by="global",
        )
        body = b'{"model": "gpt-5", "input": "x", "background": true, "max_output_tokens": 9000}'
        asked = call(app, "/v1/responses", body=body)
        left = asked.headers["x-ratelimit-remaining-tokens"]
        for _ in range(3):
            fetched = call(app, "/v1/responses/resp_1", method="GET")
            assert fetched.environ[MADE].usage.output_tokens == 501
        assert int(fetched.headers["x-ratelimit-remaining-tokens"]) == int(left) - 3


def test_a_part_of_the_answer_is_not_all_of_it(sqlite_url: str) -> None:
    """A range that a client asks for: what is in it would count for all, and nothing after it."""
    store = open_store(sqlite_url)
    lines = results("claude-sonnet-4-5", "claude-sonnet-4-5")
    part = answer(lines[: lines.index(b"\n") + 1], "application/x-jsonl")
    part = part.replace(b"200 OK", b"206 Partial Content")
    with raw_provider(in_turn(part, answer(lines, "application/x-jsonl"))) as upstream:
        app = UpstreamForwarder(upstream=provider_of(CLAUDES, upstream.url), store=store)
        for _ in range(2):
            call(app, CLAUDES, method="GET")
    assert store.usage.totals()[0]["output_tokens"] == 501


@pytest.mark.parametrize("members", [1, 2])
def test_a_coding_that_is_cut_off_tells_nothing_and_one_of_several_members_all(
    members: int,
) -> None:
    """RFC 1952 lets a gzip have several members; one without its end is a part."""
    lines = results("claude-sonnet-4-5", "claude-sonnet-4-5")
    half = lines.index(b"\n") + 1
    for cut in (0, 12):
        metering = metered(lines, coding="gzip")
        coded = gzip.compress(lines)
        if members == 2:
            coded = gzip.compress(lines[:half]) + gzip.compress(lines[half:])
        coded = coded[: len(coded) - cut]
        for start in range(0, len(coded), 7):
            metering.meter.feed(coded[start : start + 7])
        metering.meter.finish()
        metering.conclude()
        made = metering._environ.get(MADE)
        assert (made is None) if cut else (made.usage.output_tokens == 501)


def test_each_answer_of_a_batch_is_priced_alone() -> None:
    """The higher price of long prompts is no price of many short ones."""
    line = {
        "result": {
            "message": {
                "model": "claude-sonnet-4-5",
                "usage": {"input_tokens": 1000, "output_tokens": 100},
            }
        }
    }
    lines = json.dumps(line).encode() + b"\n"
    metering = metered(lines)
    for _ in range(300):
        metering.meter.feed(lines)
    metering.meter.finish()
    metering.conclude()
    assert metering._environ[MADE].usage.cost == Decimal("0.675")
    used = {"input_tokens": 300_000, "output_tokens": 30_000}
    told = as_json({**BATCH, "model": "gpt-5.4", "usage": used})
    whole = metered(*told[:1], "/v1/batches/b", told[1], provider="openai")
    whole.meter.feed(told[0])
    whole.meter.finish()
    whole.conclude()
    short = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=1000, output_tokens=100),
        model_ref="gpt-5.4",
        provider_id="openai",
    ).total_price
    assert whole._environ[MADE].usage.cost == 300 * short / 2


def test_searches_of_a_batch_are_billed_whole() -> None:
    """The discount is one on tokens."""
    usage = {
        "input_tokens": 0,
        "output_tokens": 1000,
        "server_tool_use": {"web_search_requests": 3},
    }
    line = {"result": {"message": {"model": "claude-sonnet-4-5", "usage": usage}}}
    metering = metered(b"")
    metering.meter.feed(json.dumps(line).encode())
    metering.meter.finish()
    metering.conclude()
    assert metering._environ[MADE].usage.cost == Decimal("0.0075") + Decimal("0.03")


def test_a_stream_that_is_left_at_its_last_event_was_told_whole(sqlite_url: str) -> None:
    """SDKs close there, and wait for no end of the connection."""
    store = open_store(sqlite_url)
    body, kind = as_events({"type": "response.completed", "response": RESPONSE})
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
    open_end = head % kind.encode() + b"%x\r\n%b\r\n" % (len(body), body)
    with raw_provider(answering(open_end, keep=True)) as upstream:
        app = UpstreamForwarder(upstream=provider_of("/v1", upstream.url), store=store)
        environ = make_environ("/v1/responses/resp_1", method="GET")
        iterable = iter(app(environ, lambda *_: lambda _: None))
        next(iterable)
        iterable.close()  # type: ignore[attr-defined]
    assert store.usage.totals()[0]["output_tokens"] == 501


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v1/responses/resp_1/cancel", {**RESPONSE, "status": "cancelled"}),
        ("/v1/batches/batch_1/cancel", {**BATCH, "status": "cancelled"}),
        ("/v1beta/interactions/v1_a/cancel", {**INTERACTION, "status": "cancelled"}),
    ],
)
def test_what_is_cancelled_counts_once(path: str, document: Any, sqlite_url: str) -> None:
    """However often it is cancelled and asked for."""
    store = open_store(sqlite_url)
    with raw_provider(answering(answer(*as_json(document)), keep=True)) as upstream:
        app = UpstreamForwarder(upstream=provider_of(path, upstream.url), store=store)
        for method, asked in (
            ("POST", path),
            ("POST", path),
            ("GET", path.removesuffix("/cancel")),
        ):
            call(app, asked, method=method)
    (row,) = store.usage.totals("model")
    assert (row["requests"], row["output_tokens"]) == (3, 501)


def test_a_batch_that_was_just_made_settles_nothing() -> None:
    """Its usage is one of zeros then; what was reserved stays."""
    zeros = {**BATCH, "status": "validating", "usage": {"input_tokens": 0, "output_tokens": 0}}
    with raw_provider(answering(answer(*as_json(zeros)), keep=True)) as upstream:
        forwarder = UpstreamForwarder(upstream=provider_of("/v1", upstream.url))
        app = RateLimiter(forwarder, "250000 tokens/min", by="global")
        statuses = [call(app, "/v1/batches", body=b"{}").status for _ in range(2)]
    assert statuses == [200, 429]


@pytest.mark.parametrize(
    ("path", "document", "output"),
    [
        ("/v1beta/batches/b", {**INLINED, "response": None, "metadata": {
            "model": "models/gemini-2.5-flash", "output": INLINED["response"]}}, 501),
        ("/v1beta/batches/b", {**INLINED, "response": {"inlinedEmbedContentResponses": {
            "inlinedResponses": [{"response": {"tokenCount": 9}}, {"response": {"tokenCount": 4}}]}}}, 0),
        ("/v1beta/openai/batches/b", BATCH, 501),
        ("/v1/threads/t/runs/run_1", {
            "id": "run_1", "object": "thread.run", "status": "completed", "model": "gpt-4o",
            "usage": {"prompt_tokens": 3, "completion_tokens": 501, "total_tokens": 504}}, 501),
    ],
)  # fmt: skip
def test_further_places(path: str, document: Any, output: int) -> None:
    """Where Google's SDK reads, embeddings, its OpenAI form, runs of assistants."""
    with raw_provider(answering(answer(*as_json(document)))) as upstream:
        app = UpstreamForwarder(upstream=provider_of(path, upstream.url))
        usage = call(app, path, method="GET").environ[MADE].usage
    assert usage.output_tokens == output
    assert usage.input_tokens


def test_a_streamed_run_is_booked_at_its_models_price(sqlite_url: str) -> None:
    """The request names an assistant; the run tells its model, and is fetched by its id once more."""
    run = {
        "id": "run_1", "object": "thread.run", "status": "completed", "model": "gpt-4o",
        "created_at": 1, "usage": {"prompt_tokens": 1000, "completion_tokens": 501},
    }  # fmt: skip
    store = open_store(sqlite_url)
    stream = answer(*as_events(run))
    with raw_provider(in_turn(stream, answer(*as_json(run)))) as upstream:
        app = UpstreamForwarder(upstream=provider_of("/v1", upstream.url), store=store)
        call(app, "/v1/threads/t/runs", body=b'{"assistant_id": "a", "stream": true}')
        call(app, "/v1/threads/t/runs/run_1", method="GET")
    (row,) = store.usage.totals("model")
    assert (row["model"], row["requests"], row["output_tokens"]) == ("gpt-4o", 2, 501)
    assert row["cost"] == pytest.approx(0.00751)


@pytest.mark.parametrize(
    ("created", "once"), [(1741476777.0, "responses/resp_1 1741476777"), (None, "responses/resp_1")]
)
def test_an_id_does_not_hang_on_how_a_time_is_spelt(created: Any, once: str) -> None:
    """A number is the same with a point in it; nothing is as good as null."""
    body, kind = as_json({**RESPONSE, "created_at": created})
    metering = metered(b"", "/v1/responses/resp_1", kind)
    metering.meter.feed(body)
    metering.meter.finish()
    metering.conclude()
    assert metering._environ[MADE].once == f"anthropic {once}"


def test_a_batch_in_one_country_is_billed_as_both() -> None:
    """Half, and a tenth more of that."""
    usage = {"input_tokens": 1000, "output_tokens": 1000, "inference_geo": "us"}
    line = {"result": {"message": {"model": "claude-sonnet-4-5", "usage": usage}}}
    metering = metered(b"")
    metering.meter.feed(json.dumps(line).encode())
    metering.meter.finish()
    metering.conclude()
    assert metering._environ[MADE].usage.cost == Decimal("0.018") * 11 / 20


def test_the_same_id_of_another_day_is_another_one() -> None:
    """Some servers let their clients choose the id."""
    ids = set()
    for created in (1, 2):
        body, kind = as_json({**RESPONSE, "created_at": created})
        metering = metered(b"", "/v1/responses/resp_1", kind)
        metering.meter.feed(body)
        metering.meter.finish()
        metering.conclude()
        ids.add(metering._environ[MADE].once)
    assert len(ids) == 2


def test_many_ids_are_counted_at_once(url: str) -> None:
    """More than one statement takes, some of them twice."""
    store = open_store(url)
    for number in (*range(900), *range(450)):
        store.usage.book(
            request_id="r", key_id=None, provider="p", model="m", path="/", status=200,
            usage={"input_tokens": 1}, duration=1.0, first_byte=None, once=f"b{number}",
        )  # fmt: skip
    (found,) = store.usage.totals()
    assert (found["requests"], found["input_tokens"]) == (1350, 900)


def test_a_copy_of_the_store_counts_nothing_again(url: str, tmp_path: Any) -> None:
    """The ids are in it."""
    store = open_store(url)
    row: dict[str, Any] = {
        "request_id": "r", "key_id": None, "provider": "p", "model": "m", "path": "/", "status": 200,
        "usage": {"input_tokens": 1}, "duration": 1.0, "first_byte": None, "once": "b",
    }  # fmt: skip
    store.usage.book(**row)
    store.usage.backup(str(tmp_path / "copy.db-usage"))
    with closing(sqlite3.connect(tmp_path / "copy.db-usage")) as copy:
        assert copy.execute("SELECT id FROM counted_once").fetchall() == [("b",)]


def test_a_client_chooses_no_coding_that_is_not_read() -> None:
    """Of what is fetched by its id as of what is answered."""
    with raw_provider(answering(answer(*as_json(RESPONSE)), keep=True)) as upstream:
        for forwarder in (
            UpstreamForwarder(upstream=provider_of("/v1", upstream.url)),
            UpstreamForwarder(upstream=f"{upstream.url}"),
        ):
            call(
                forwarder,
                "/v1/responses/resp_1",
                method="GET",
                HTTP_ACCEPT_ENCODING="compress, gzip",
            )
        call(forwarder, "/v1/files/f", method="GET", HTTP_ACCEPT_ENCODING="compress, gzip")
    codings = [request.headers["Accept-Encoding"] for request in upstream.requests]
    assert codings == ["gzip", "gzip", "compress, gzip"]


def test_every_dialect_says_which_paths_tell_of_it() -> None:
    """Each of them has some."""
    tell = {name for name, dialect in DIALECTS.items() if dialect.tells_later.pattern != "(?!)"}
    assert tell == {"openai", "anthropic", "gemini"}
