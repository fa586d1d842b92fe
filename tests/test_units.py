"""Limits of tokens, money and concurrency: reserved, settled, given back (LIM-2 to LIM-7)."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from aigw_middleware import (
    ApiKey,
    IPAllowlist,
    KeyAuth,
    Provider,
    RateLimiter,
    StoreUnavailable,
    UpstreamForwarder,
    Usage,
    open_counters,
    stack,
)
from aigw_middleware._watchdog import Watchdog
from aigw_middleware.counters.keeper import keeper_of
from aigw_middleware.counters.memory import MemoryCounters
from aigw_middleware.limits.naming import name_of
from aigw_middleware.limits.showing import document
from aigw_middleware.limits.states import LEASE, SECOND
from aigw_middleware.limits.wanted import CONTEXT, wanted

from .support import CHAT, Clock, answering, call, make_environ, raw_provider

PRICES = {"openai/gpt-4o": (1, 2), "cheap": (0, 0)}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class App:
    """An app that answers a chat, and tells what it used."""

    def __init__(self, usage: Any = None, status: str = "200 OK", chunks: Any = (b"ok",)) -> None:
        self.usage = usage
        self.status = status
        self.chunks = chunks
        self.bodies: list[Any] = []
        self.closed = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.bodies.append(json.loads(body) if body else None)
        start_response(self.status, [("Content-Type", "text/event-stream")])
        return self.answer(environ)

    def answer(self, environ: Any) -> Iterator[bytes]:
        try:
            for chunk in self.chunks:
                if self.usage is not None:
                    environ["aigw.usage"] = self.usage
                yield chunk
        finally:
            self.closed += 1


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "openai/gpt-4o", "messages": [], **fields}).encode()


def limited(app: Any, limits: Any, **options: Any) -> tuple[RateLimiter, MemoryCounters, Clock]:
    clock = Clock()
    counters = MemoryCounters(clock=clock, wall_clock=clock)
    limiter = RateLimiter(app, limits, by="global", counters=counters, prices=PRICES, **options)
    return limiter, counters, clock


def used(counters: Any) -> dict[str, int]:
    """Return what is counted, by the kind of limit."""
    return {count.name.split("|")[1]: count.used for count in counters.counts()}


# --- reserve and settle


BODY = chat(max_tokens=10)
RESERVED = len(BODY) + 10


@pytest.mark.parametrize(
    ("limit", "before", "after"),
    [("1000 tokens/min", (0, RESERVED), (12, 0)),
     ("1000 tokens/calendar-hour", (0, RESERVED), (12, 0)),
     ("1 usd/day", (0, (RESERVED + 10) / 10**6), (0.000017, 0)),
     ("1000 tokens/min burst 500", (0, RESERVED * 0.06), (0.72, 0)),
     ("5/min", (1, 0), (1, 0)),
     ("2 concurrent", (1, 0), None)],
)  # fmt: skip
def test_what_is_reserved_is_shown_apart(
    limit: str, before: tuple[float, float], after: tuple[float, float] | None
) -> None:
    """While a request runs its units are shown as reserved, then as used; never as both."""
    app, counters, _ = limited(App(Usage(7, 5, cost=0.000017)), limit)
    iterable = app(make_environ(CHAT, body=BODY), lambda *_: lambda _: None)
    running = [document(count) for count in counters.counts()]
    assert list(iterable) == [b"ok"]
    iterable.close()  # type: ignore[attr-defined]
    ended = [document(count) for count in counters.counts()]
    # A burst is a second limit beside the window.
    assert [(row["used"], row["reserved"]) for row in running[-1:]] == [pytest.approx(before)]
    assert [(row["used"], row["reserved"]) for row in ended[-1:]] == ([after] if after else [])


def test_tokens_are_reserved_by_bounds_and_settled_to_what_was_used() -> None:
    """While the answer comes the bounds count, afterwards the app's own figures."""
    body = chat(max_tokens=50)
    seen: list[dict[str, int]] = []

    class Looking(App):
        def answer(self, environ: Any) -> Iterator[bytes]:
            seen.append(used(counters))
            yield from super().answer(environ)

    limits = ["1000 tokens/min", "900 input_tokens/min", "800 output_tokens/min", "9/min"]
    app, counters, _ = limited(Looking(Usage(10, 7)), limits)
    assert call(app, CHAT, body=body).status == 200
    assert seen == [
        {"tokens-60s": len(body) + 50, "input_tokens-60s": len(body), "output_tokens-60s": 50,
         "requests-60s": 1},
    ]  # fmt: skip
    assert used(counters) == {
        "tokens-60s": 17, "input_tokens-60s": 10, "output_tokens-60s": 7, "requests-60s": 1,
    }  # fmt: skip


def test_usage_above_the_reservation_is_charged_and_must_be_paid_first() -> None:
    """The balance may go below zero, and admits nothing until it is paid."""
    app, counters, clock = limited(App(Usage(10, 400)), "300 output_tokens/min")
    assert call(app, CHAT, body=chat(max_tokens=5)).status == 200
    assert used(counters) == {"output_tokens-60s": 400}
    assert call(app, CHAT, body=chat(max_tokens=5)).code == "rate_limit_exceeded"
    clock.advance(62)
    assert call(app, CHAT, body=chat(max_tokens=5)).status == 200


SETTLED = [
    pytest.param(App(None, "200 OK"), 50, id="a 2xx without usage: all that was reserved"),
    pytest.param(App(None, "502 Bad Gateway"), 0, id="no answer of the provider: nothing"),
    pytest.param(App(None, "400 Bad Request"), 0, id="a mistake without usage: nothing"),
    pytest.param(App(Usage(1, 3), "500 Error"), 3, id="an error with usage: that"),
    pytest.param(App(Usage(1, -5)), 0, id="nothing that is told adds to a balance"),
]


@pytest.mark.parametrize(("app", "left"), SETTLED)
def test_what_an_answer_settles_to(app: App, left: int) -> None:
    """The request's own unit stays counted whatever comes of it."""
    limiter, counters, _ = limited(app, ["100 output_tokens/min", "5/min"])
    call(limiter, CHAT, body=chat(max_tokens=50))
    assert used(counters).get("output_tokens-60s", 0) == left
    assert used(counters)["requests-60s"] == 1


def test_an_inner_refusal_gives_back_all_but_the_request() -> None:
    """An outer limiter takes its reservation back when an inner gate refuses."""
    inner = IPAllowlist(App(), ["203.0.113.0/24"])
    limiter, counters, _ = limited(inner, ["100 output_tokens/min", "2 concurrent", "5/min"])
    assert call(limiter, CHAT, body=chat(max_tokens=50)).status == 403
    assert used(counters) == {"requests-60s": 1}


def test_a_refused_request_spends_nothing() -> None:
    """LIM-2: where one limit refuses, none is charged."""
    limits = ["100/min", "1 concurrent", "500 output_tokens/min"]
    gate = threading.Event()

    class Waiting(App):
        def answer(self, environ: Any) -> Iterator[bytes]:
            gate.wait(20)
            yield b"ok"

    app, counters, _ = limited(Waiting(), limits)
    thread = threading.Thread(target=lambda: call(app, CHAT, body=chat(max_tokens=5)))
    thread.start()
    while not used(counters).get("concurrent"):
        pass
    before = used(counters)
    answer = call(app, CHAT, body=chat(max_tokens=5))
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (
        429, "rate_limit_exceeded", "1",
    )  # fmt: skip
    assert used(counters) == before
    gate.set()
    thread.join()
    assert "concurrent" not in used(counters)


# --- caps


CAPS = [
    ("/v1/chat/completions", {"model": "gpt-4o"}, ("max_tokens",)),
    ("/v1/chat/completions", {"model": "openai/o3-mini"}, ("max_completion_tokens",)),
    ("/v1/chat/completions", {"model": "gpt-5", "max_tokens": None}, ("max_completion_tokens",)),
    ("/v1/responses", {"model": "gpt-4o"}, ("max_output_tokens",)),
    ("/v1/messages", {"model": "claude"}, ("max_tokens",)),
    ("/v1beta/models/g:generateContent", {"contents": []}, ("generationConfig", "maxOutputTokens")),
    ("/v1beta/models/g:generateContent", {"generation_config": {"topK": 1}},
     ("generation_config", "maxOutputTokens")),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "where"), CAPS)
def test_a_request_without_a_cap_gets_the_reserved_one(
    path: str, body: Any, where: tuple[str, ...]
) -> None:
    """What is reserved is written into the body, in the dialect's own place."""
    app = App()
    limiter, counters, _clock = limited(app, "700 output_tokens/min")
    assert call(limiter, path, body=json.dumps(body).encode()).status == 200
    (sent,) = app.bodies
    for name in where:
        sent = sent[name]
    assert sent == 700
    assert used(counters) == {"output_tokens-60s": 700}


def test_a_cap_of_the_clients_is_left_as_it_is() -> None:
    """Byte for byte: only what names no cap is changed."""
    app = App()
    limiter, _, _ = limited(app, "700 output_tokens/min")
    call(limiter, CHAT, body=chat(max_tokens=5))
    assert app.bodies[0]["max_tokens"] == 5


def test_several_answers_share_what_is_left() -> None:
    """The output that a request may ask for is its cap times `n`."""
    app = App()
    limiter, counters, _ = limited(app, "700 output_tokens/min")
    call(limiter, CHAT, body=chat(n=4))
    assert app.bodies[0]["max_tokens"] == 175
    assert used(counters) == {"output_tokens-60s": 700}


WRONG = [{"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": "5"}, {"max_tokens": 1.5},
         {"max_tokens": True}, {"n": 0}, {"n": "2"}, {"model": "a b"}, {"model": 5}]  # fmt: skip


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_a_cap_that_is_none_is_an_invalid_request(fields: Any) -> None:
    """Under token limits a cap is a positive whole number, and a model's name is one."""
    limiter, counters, _ = limited(App(), ["700 tokens/min", "9/min"])
    answer = call(limiter, CHAT, body=chat(**fields))
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert used(counters) == {}


def test_what_can_never_fit_is_told_at_once() -> None:
    """400 naming the limit, and for money `budget_exceeded`; nothing is spent."""
    limiter, counters, _ = limited(App(), ["700 output_tokens/min", "9/min"])
    answer = call(limiter, CHAT, body=chat(max_tokens=701))
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert "700 output_tokens/min" in answer.json["error"]["message"]
    limiter, _, _ = limited(App(), "0.0001 usd/day")
    answer = call(limiter, CHAT, body=chat(max_tokens=1_000_000))
    assert answer.code == "budget_exceeded"
    assert answer.headers["x-should-retry"] == "false"
    assert used(counters) == {}


def test_a_long_prompt_that_may_fit_is_let_in() -> None:
    """The bound by bytes is generous: what may fit is reserved as all that there is."""
    limiter, counters, _ = limited(App(Usage(500, 5)), "1000 input_tokens/min")
    content = [{"role": "user", "content": "word " * 600}]
    assert call(limiter, CHAT, body=chat(messages=content, max_tokens=5)).status == 200
    assert used(counters) == {"input_tokens-60s": 500}


REFERENCES = [
    {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]},
    {"messages": [{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
    {"previous_response_id": "resp_1"},
    {"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}]},
]


@pytest.mark.parametrize("fields", REFERENCES, ids=str)
def test_content_that_is_not_in_the_body_is_bounded_by_the_context(fields: Any) -> None:
    """A picture's address or a stored answer counts as all that a model can read."""
    body = chat(**fields)
    want = wanted(make_environ(CHAT, body=body))
    assert want.input_tokens == len(body) + CONTEXT
    inline = chat(messages=[{"image_url": {"url": "data:image/png;base64,AAAA"}}])
    assert wanted(make_environ(CHAT, body=inline)).input_tokens == len(inline)


# --- money


def test_money_is_counted_in_nano_dollars() -> None:
    """Reserved by the price of the bounds, settled by what was used, never in floats."""
    limiter, counters, _ = limited(App(Usage(1_000, 500)), "0.01 usd/day")
    answer = call(limiter, CHAT, body=chat(max_tokens=1000))
    assert answer.status == 200
    assert used(counters) == {"usd-86400s": 1_000 * 1_000 + 500 * 2_000}


def test_the_apps_own_cost_counts_before_any_price() -> None:
    """A cost in `aigw.usage` is what is charged."""
    limiter, counters, _ = limited(App(Usage(1, 1, cost=0.25)), "5 usd/day")
    call(limiter, CHAT, body=chat(max_tokens=10))
    assert used(counters) == {"usd-86400s": 250_000_000}


def test_a_budget_that_is_spent_refuses_with_its_own_code() -> None:
    """LIM-7: 429 `budget_exceeded`, and the SDKs are told not to try again."""
    limiter, _, _ = limited(App(Usage(1, 1, cost=1)), "1 usd/day")
    assert call(limiter, CHAT, body=chat(max_tokens=10)).status == 200
    answer = call(limiter, CHAT, body=chat(max_tokens=10))
    assert (answer.status, answer.code) == (429, "budget_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert int(answer.headers["Retry-After"]) >= 86_400


def test_a_model_without_a_price_is_refused_never_free() -> None:
    """403 `price_unknown`."""
    limiter, counters, _ = limited(App(), ["1 usd/day", "5/min"])
    answer = call(limiter, CHAT, body=chat(model="no-such/model-9"))
    assert (answer.status, answer.code) == (403, "price_unknown")
    assert used(counters) == {}


def test_prices_come_from_genai_prices_too() -> None:
    """A known model needs no price of ours."""
    limiter, counters, _ = limited(App(Usage(1_000_000, 0)), "100 usd/day")
    assert call(limiter, CHAT, body=chat(model="gpt-4o-mini", max_tokens=10)).status == 200
    assert used(counters)["usd-86400s"] == 150_000_000


@pytest.mark.parametrize("prices", [5, {"": (1, 2)}, {"a": 1}, {"a": (1,)}, {"a": (1, -2)},
                                    {"a": ("x", 2)}, {"a": (float("nan"), 1)}])  # fmt: skip
def test_wrong_prices_are_named(prices: Any) -> None:
    """A price that cannot be is a ValueError when the limiter is built."""
    with pytest.raises(ValueError, match=r"^prices: "):
        RateLimiter(App(), "1 usd/day", prices=prices)


def test_a_calendar_month_begins_anew() -> None:
    """A budget of the calendar counts from its first day in the zone, not in a sliding window."""
    limiter, _, clock = limited(App(Usage(1, 1, cost=1)), "1 usd/calendar-day Europe/Berlin")
    clock.now = 1_790_000_000 * SECOND  # 2026-09-21 14:13:20 UTC
    assert call(limiter, CHAT, body=chat(max_tokens=1)).status == 200
    answer = call(limiter, CHAT, body=chat(max_tokens=1))
    assert answer.status == 429
    left = (22 - 14) * 3600 - 13 * 60 - 20  # until midnight in Berlin, 22:00 UTC
    assert int(answer.headers["Retry-After"]) == left
    clock.advance(left)
    assert call(limiter, CHAT, body=chat(max_tokens=1)).status == 200


# --- models


def test_a_limit_may_be_for_some_models() -> None:
    """`for PATTERN` counts the models that it names and no others."""
    limiter, _, _ = limited(App(), "1/min for openai/gpt-4o*")
    models = ["openai/gpt-4o-mini", "openai/gpt-4o", "other/gpt-4o", "openai/gpt-3"]
    assert [call(limiter, CHAT, body=chat(model=m)).status for m in models] == [200, 429, 200, 200]


def test_the_final_provider_decides_the_price() -> None:
    """With a forwarder within, money is reserved for the candidate that is asked."""
    counters = open_counters("memory:")
    with raw_provider(answering(OK)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        limiter = partial(
            RateLimiter, limits="1 usd/day", by="global", counters=counters, prices=PRICES
        )
        app = stack(UpstreamForwarder(upstream=upstream), limiter)
        body = chat(model="gpt-4o", max_tokens=100)
        answer = call(app, CHAT, body=body)
        unpriced = call(app, CHAT, body=chat(model="unknown-7"))
    assert answer.status == 200
    assert used(counters) == {"usd-86400s": len(body) * 1000 + 100 * 2000}
    assert "RateLimit" in answer.headers
    assert unpriced.code == "price_unknown"
    assert len(provider.requests) == 1


def test_a_cap_that_is_written_late_reaches_the_provider() -> None:
    """A budget alone caps the answer, in the body that is sent."""
    with raw_provider(answering(OK)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        limiter = partial(RateLimiter, limits="0.002 usd/day", by="global", prices=PRICES)
        app = stack(UpstreamForwarder(upstream=upstream), limiter)
        assert call(app, CHAT, body=chat(model="gpt-4o")).status == 200
    sent = json.loads(provider.requests[0].body)
    assert 16 <= sent["max_tokens"] <= 1000


def test_a_refusal_knows_of_what_is_reserved_late() -> None:
    """Refused by requests, `Retry-After` is that of the money, which would refuse as well then."""
    clock = Clock()
    counters = MemoryCounters(clock=clock, wall_clock=clock)
    body = chat(max_tokens=100)
    budget = (len(body) + 2 * 100) / 10**6
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        limits = ["1/10s", f"{budget} usd/hour"]
        limiter = partial(RateLimiter, limits=limits, by="global", counters=counters, prices=PRICES)
        app = stack(UpstreamForwarder(upstream=upstream), limiter)
        answers = [call(app, CHAT, body=body) for _ in range(2)]
        clock.now += int(answers[1].headers["Retry-After"]) * SECOND
        answers.append(call(app, CHAT, body=body))
    assert [answer.status for answer in answers] == [200, 429, 200]
    assert 3600 <= int(answers[1].headers["Retry-After"]) <= 3660


def test_a_refusal_is_not_made_longer_by_a_limit_of_other_models() -> None:
    """`1/day for openai/gpt-4o` is used up; who asks another provider for it waits 11 s, no day."""
    clock = Clock()
    counters = MemoryCounters(clock=clock, wall_clock=clock)
    body = chat(model="gpt-4o", max_tokens=100)
    with raw_provider(answering(OK, keep=True)) as provider:
        limiter = partial(
            RateLimiter, limits=["1/10s", "1/day for openai/gpt-4o"], by="global",
            counters=counters,
        )  # fmt: skip
        answers = []
        for name in ("openai", "mine", "mine"):
            upstream = Provider(name, base_url=provider.url, api_keys=["k"])
            app = stack(UpstreamForwarder(upstream=upstream), limiter)
            answers.append(call(app, CHAT, body=body))
            clock.now += 11 * SECOND if name == "openai" else 0
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["Retry-After"]) <= 11
    assert answers[2].code == "rate_limit_exceeded"


def test_a_failover_reserves_for_the_one_that_answers() -> None:
    """What the first candidate was reserved is given back before the second is asked."""
    counters = open_counters("memory:")
    failing = b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"
    with raw_provider(answering(failing)) as first, raw_provider(answering(OK)) as second:
        upstreams = [
            Provider("a", base_url=first.url, api_keys=["k"], models=["m"]),
            Provider("b", base_url=second.url, api_keys=["k"], models=["m"]),
        ]
        limiter = partial(
            RateLimiter, limits="1 usd/day", by="global", counters=counters,
            prices={"a/m": (900, 900), "b/m": (1, 1)},
        )  # fmt: skip
        app = stack(UpstreamForwarder(upstream=upstreams), limiter)
        body = chat(model="m", max_tokens=100)
        answer = call(app, CHAT, body=body)
    assert answer.status == 200
    assert used(counters) == {"usd-86400s": (len(body) + 100) * 1000}
    assert len(answer.headers["RateLimit"].split(",")) == 1


def test_buckets_by_model() -> None:
    """`by="model"` counts each model apart."""
    limiter = RateLimiter(App(), "1/min", by="model", counters=MemoryCounters(clock=Clock()))
    models = ["a", "a", "b", "A"]
    assert [call(limiter, CHAT, body=chat(model=m)).status for m in models] == [200, 429, 200, 429]


# --- concurrency


def test_hundreds_of_slots_are_renewed() -> None:
    """However many a process holds, each is told that it is still held."""
    clock = Clock()
    counters = MemoryCounters(clock=clock, wall_clock=clock)
    limiter = RateLimiter(App(), "300 concurrent", by="global", counters=counters)
    environ = make_environ(CHAT, body=chat())
    running = [limiter(dict(environ), lambda *_: lambda _: None) for _ in range(300)]
    for _ in range(4):
        clock.now += 10 * SECOND
        keeper_of(counters).renew()
    assert used(counters) == {"concurrent": 300}
    for iterable in running:
        iterable.close()  # type: ignore[attr-defined]
    assert used(counters) == {}


def raising(environ: Any, start_response: Any) -> Any:
    raise RuntimeError("the app")


def breaking(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"x"
    raise RuntimeError("half way")


@pytest.mark.parametrize("app", [raising, breaking], ids=["at once", "half way"])
def test_a_slot_comes_back_when_the_app_raises(app: Any) -> None:
    """LIM-3: whatever the app does, the slot is free when `close()` has returned."""
    limiter, counters, _ = limited(app, "1 concurrent")
    for _ in range(3):
        iterable: Any = ()
        try:
            iterable = limiter(make_environ(), lambda *a: None)
            b"".join(iterable)
        except RuntimeError:
            pass
        finally:
            getattr(iterable, "close", lambda: None)()
        assert used(counters) == {}


def test_a_slot_comes_back_when_the_client_leaves() -> None:
    """LIM-3: closed after the first chunk."""
    limiter, counters, _ = limited(App(chunks=[b"1", b"2"]), "1 concurrent")
    iterable: Any = limiter(make_environ(), lambda *a: None)
    assert next(iterable) == b"1"
    assert used(counters) == {"concurrent": 1}
    iterable.close()
    iterable.close()
    assert used(counters) == {}


def test_a_list_holds_no_slot() -> None:
    """Some servers never close a list: what is complete is settled at once."""
    limiter, counters, _ = limited(lambda e, s: (s("200 OK", []), [b"x"])[1], "1 concurrent")
    assert limiter(make_environ(), lambda *a: None) == [b"x"]
    assert used(counters) == {}


def test_an_answer_that_nobody_closes_is_settled_when_it_is_forgotten() -> None:
    """A server that drops an iterable leaves no slot taken until the lease's end."""
    limiter, counters, _ = limited(App(), "1 concurrent")
    iterable: Any = limiter(make_environ(), lambda *a: None)
    assert used(counters) == {"concurrent": 1}
    del iterable
    keeper_of(counters).drain()  # as the next request does, and the thread that renews slots
    assert used(counters) == {}


def test_a_slot_is_a_lease() -> None:
    """LIM-4: a slot that nobody renews is free after 30 s, and a late release harms nobody."""
    limiter, counters, clock = limited(App(chunks=[b"1", b"2"]), "1 concurrent")
    first: Any = limiter(make_environ(), lambda *a: None)
    clock.now += LEASE - 1
    assert call(limiter).status == 429
    clock.now += 1
    second: Any = limiter(make_environ(), lambda *a: None)
    first.close()
    assert used(counters) == {"concurrent": 1}
    second.close()


def test_slots_are_renewed_while_the_request_lives() -> None:
    """The keeper renews what is held, and tells a holding that has lost its slot."""
    limiter, counters, clock = limited(App(chunks=[b"1", b"2", b"3"]), "1 concurrent")
    held: Any = limiter(make_environ(), lambda *a: None)
    for _ in range(5):
        clock.now += LEASE - 1
        keeper_of(counters).renew()
        assert used(counters) == {"concurrent": 1}
    clock.now += LEASE
    keeper_of(counters).renew()
    assert next(held) == b"1"  # the slot was free and is taken anew
    assert used(counters) == {"concurrent": 1}
    clock.now += LEASE
    other: Any = limiter(make_environ(), lambda *a: None)
    keeper_of(counters).renew()
    ended = next(held)
    assert b"rate_limit_exceeded" in ended or b"limit of 1 concurrent" in ended
    assert list(held) == []
    held.close()
    other.close()


# --- streams


def growing(*outputs: int) -> Callable[..., Iterator[bytes]]:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        for number, tokens in enumerate(outputs):
            environ["aigw.usage"] = Usage(5, tokens)
            yield f"data: {number}\n\n".encode()

    return app


def test_a_stream_that_outgrows_its_reservation_asks_for_more() -> None:
    """In steps, as long as there is more; what is left over is given back."""
    app, counters, _ = limited(growing(10, 60, 110, 160), "300 output_tokens/min")
    answer = call(app, CHAT, body=chat(max_tokens=50))
    assert answer.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert used(counters) == {"output_tokens-60s": 160}


@pytest.mark.parametrize(
    ("path", "limit", "code"),
    [(CHAT, "100 output_tokens/min", "rate_limit_exceeded"), (CHAT, "0.0004 usd/day", "budget_exceeded"),
     ("/v1/messages", "100 output_tokens/min", "rate_limit_error")],
)  # fmt: skip
def test_a_stream_that_gets_no_more_ends_cleanly(path: str, limit: str, code: str) -> None:
    """Within one event: an error event in the client's dialect, and what was sent is charged."""
    app, counters, _ = limited(growing(40, 90, 140, 190, 240), limit)
    answer = call(app, path, body=chat(max_tokens=50))
    events = answer.body.decode().strip().split("\n\n")
    assert code in events[-1]
    assert all(event.startswith("data: ") for event in events[:-1])
    assert 3 <= len(events) <= 6
    (charged,) = used(counters).values()
    if "output" in limit:
        assert charged == 140


LAST_EVENTS = [
    (CHAT, [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 999}}, "[DONE]"]),
    ("/v1/responses", [{"type": "response.completed", "response": {
        "usage": {"input_tokens": 9, "output_tokens": 999}}}]),
    ("/v1/messages", [{"type": "message_delta", "delta": {"stop_reason": "end_turn"},
                       "usage": {"input_tokens": 9, "output_tokens": 999}}, {"type": "message_stop"}]),
    ("/v1beta/models/g:streamGenerateContent", [{
        "candidates": [{"finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 999}}]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "events"), LAST_EVENTS)
def test_a_stream_that_has_come_to_its_end_is_whole(path: str, events: list[Any]) -> None:
    """More than was reserved is known at its end: it is charged, and nothing is cut off."""
    told = [event if isinstance(event, str) else json.dumps(event) for event in events]
    pieces = [f"data: {text}\n\n".encode() for text in ('{"a": 1}', *told)]

    def apart(connection: socket.socket, request: Any) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for piece in pieces:
            asked.acquire(timeout=20)  # the client has the last one
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")

    asked = threading.Semaphore(1)
    with raw_provider(apart) as provider:
        name = {"/v1/messages": "anthropic"}.get(path, "google" if "v1beta" in path else "openai")
        upstream = Provider(name, base_url=provider.url, api_keys=["k"])
        app, counters, _ = limited(UpstreamForwarder(upstream=upstream), "100 output_tokens/min")
        fields = {"max_tokens": 50, "stream": True, "stream_options": {"include_usage": True}}
        fields |= {"max_output_tokens": 50, "generationConfig": {"maxOutputTokens": 50}}
        environ = make_environ(path, body=chat(**fields))
        body = b""
        iterable: Any = app(environ, lambda *args: lambda data: None)
        for data in iterable:
            body += data
            asked.release()
        iterable.close()
    assert body == b"".join(pieces)
    assert "aigw.end" not in environ
    assert used(counters) == {"output_tokens-60s": 999}


def test_another_answer_is_not_cut_and_pays() -> None:
    """Without events there is no stream to end: all of it is charged when it is closed."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        for _ in range(3):
            environ["aigw.usage"] = Usage(5, 999)
            yield b"x"

    limiter, counters, _ = limited(app, "100 output_tokens/min")
    assert call(limiter, CHAT, body=chat(max_tokens=50)).body == b"xxx"
    assert used(counters) == {"output_tokens-60s": 999}


def test_a_torn_line_is_ended_before_the_event() -> None:
    """An error event never stands in the middle of another one."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        environ["aigw.usage"] = Usage(5, 999)
        yield b"data: to"
        yield b"rn\n\n"

    limiter, _, _ = limited(app, "100 output_tokens/min")
    body = call(limiter, CHAT, body=chat(max_tokens=50)).body
    assert body.startswith(b"data: to\n\ndata: {")


# --- keys and headers


def test_a_keys_own_limits_have_every_unit() -> None:
    """What RateLimiter can count, a key's `limits` can too."""
    key = ApiKey(id="k", limits=("9 output_tokens/min", "1 concurrent", "1 usd/day"))

    class Keys:
        def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey:
            return key

    app = KeyAuth(App(Usage(1, 9, cost=0)), Keys())
    statuses = [
        call(app, CHAT, body=chat(model="gpt-4o-mini", max_tokens=9), HTTP_X_API_KEY="t").status
        for _ in range(2)
    ]
    assert statuses == [200, 429]


def test_what_the_client_is_told() -> None:
    """Every limit in the standard fields; requests and tokens in those of the SDK."""
    limits = ["9/min", "700 tokens/min", "5 usd/day", "3 concurrent"]
    app, _, _ = limited(App(), limits)
    answer = call(app, CHAT, body=chat(max_tokens=5))
    policy = answer.headers["RateLimit-Policy"]
    for part in (
        '"requests-60s";q=9;w=60', '"tokens-60s";q=700;w=60', '"usd-86400s";q=500;w=86400',
        '"concurrent";q=3;qu="concurrent-requests"',
    ):  # fmt: skip
        assert part in policy
    assert answer.headers["x-ratelimit-limit-tokens"] == "700"
    assert answer.headers["x-ratelimit-remaining-requests"] == "8"
    anthropic = call(app, "/v1/messages", body=chat(max_tokens=5))
    assert anthropic.headers["anthropic-ratelimit-tokens-limit"] == "700"


def test_a_burst_is_tighter_than_its_window() -> None:
    """`100/min burst 2`: two at once, then one each 0.6 s, and no more than 100 a minute."""
    app, _, clock = limited(App(), "100/min burst 2")
    assert [call(app).status for _ in range(3)] == [200, 200, 429]
    clock.advance(0.6)
    assert [call(app).status for _ in range(2)] == [200, 429]


def test_a_report_counts_and_refuses_nothing() -> None:
    """With `enforce=False` what is over a limit is told in the decisions, and in a header."""
    app, _, _ = limited(App(Usage(1, 9)), "9 output_tokens/min", enforce=False)
    answers = [call(app, CHAT, body=chat(max_tokens=9)) for _ in range(2)]
    assert [a.environ["aigw.decisions"][0].allowed for a in answers] == [True, False]
    assert [a.headers.get("X-Aigw-Would-Refuse") for a in answers] == [None, "rate_limit_exceeded"]


def test_judging_spends_nothing() -> None:
    """`judge` tells what would be, for every unit."""
    app, counters, _ = limited(App(), ["9 output_tokens/min", "1 usd/day", "2 concurrent"])
    assert app.judge(make_environ(CHAT, body=chat(max_tokens=5))) is None
    denial = app.judge(make_environ(CHAT, body=chat(max_tokens=10)))
    assert denial is not None
    assert denial.code == "invalid_request"
    assert used(counters) == {}


# --- what a fresh reader found


def test_a_calendar_limit_of_requests_alone() -> None:
    """It is counted in its period, however many other buckets come and go."""
    clock = Clock(1_790_000_000 * SECOND)
    counters = MemoryCounters(clock=clock, wall_clock=clock)
    limiter = RateLimiter(App(), "2/calendar-day", by="header:X-U", counters=counters)
    statuses = [call(limiter, HTTP_X_U="a").status for _ in range(3)]
    for number in range(50):
        call(limiter, HTTP_X_U=str(number))
    statuses.append(call(limiter, HTTP_X_U="a").status)
    assert statuses == [200, 200, 429, 429]
    refused = call(limiter, HTTP_X_U="a")
    assert int(refused.headers["Retry-After"]) == 86_400 - 1_790_000_000 % 86_400


def two_providers(limits: Any, models: Any = None, **options: Any) -> tuple[Any, Any, Any]:
    counters = open_counters("memory:")
    second = raw_provider(answering(OK, keep=True))
    provider = second.__enter__()
    upstream = [
        Provider("a", base_url=provider.url, models=["m"]),
        Provider("b", base_url=provider.url, models=["m"]),
    ]
    limiter = partial(
        RateLimiter, limits=limits, by="global", counters=counters,
        prices={"a/m": (1, 1), "b/m": (1, 1)}, **options,
    )  # fmt: skip
    return stack(UpstreamForwarder(upstream=upstream), limiter), counters, second


def test_a_candidate_that_is_refused_takes_nothing_with_it() -> None:
    """What does not depend on the candidate stays reserved, and the next one is settled."""
    limits = ["2/min", "2 concurrent", "0.000000001 usd/day for a/*", "1 usd/day for b/*"]
    app, counters, provider = two_providers(limits)
    body = chat(model="m", max_tokens=10)
    assert [call(app, CHAT, body=body).status for _ in range(3)] == [200, 200, 429]
    assert used(counters)["requests-60s"] == 2
    assert "concurrent" not in used(counters)
    provider.__exit__(None, None, None)


def test_a_request_that_every_candidate_is_refused_for_spends_nothing() -> None:
    """Neither the request's unit nor anything else."""
    app, counters, provider = two_providers(["9/min", "0.000000001 usd/day"])
    assert call(app, CHAT, body=chat(model="m", max_tokens=10)).code == "budget_exceeded"
    assert used(counters) == {}
    provider.__exit__(None, None, None)


def test_a_report_refuses_no_candidate_and_writes_no_cap() -> None:
    """With `enforce=False` money, too, is only reported."""
    app, _, provider = two_providers(["0.000000001 usd/day"], enforce=False)
    answer = call(app, CHAT, body=chat(model="m"))
    assert answer.status == 200
    assert answer.environ["aigw.decisions"][0].code in ("budget_exceeded", "price_unknown")
    provider.__exit__(None, None, None)
    app, _, _ = limited(growing(40, 900), "50 output_tokens/min", enforce=False)
    assert call(app, CHAT, body=chat()).body == b"data: 0\n\ndata: 1\n\n"


def test_failing_open_holds_for_money_too() -> None:
    """A candidate is asked uncounted while the engine is down, where that was wanted."""

    class Down:
        shared = native = True

        def reserve(self, demands: Any) -> Any:
            raise StoreUnavailable("down", engine="counters")

    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        for fail_open, status in ((True, 200), (False, 503)):
            limiter: Any = partial(
                RateLimiter, limits="1 usd/day", counters=Down(), fail_open=fail_open
            )
            app = stack(UpstreamForwarder(upstream=upstream), limiter)
            assert call(app, CHAT, body=chat(model="gpt-4o", max_tokens=5)).status == status


@pytest.mark.parametrize(
    ("outer", "inner", "most"),
    [("0.0002 usd/day", "100000 usd/day", 200), ("100000 usd/day", "500 tokens/min", 500),
     ("100000 tokens/min", "2000 tokens/min", 2000), ("0.0002 usd/day", "500 output_tokens/min", 200)],
)  # fmt: skip
def test_of_two_caps_the_smaller_is_sent(outer: str, inner: str, most: int) -> None:
    """What one limiter has put in another only lowers, and takes for no cap of the client's."""
    with raw_provider(answering(OK)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        layers = [
            partial(RateLimiter, limits=limit, by="global", prices=PRICES)
            for limit in (outer, inner)
        ]
        app = stack(UpstreamForwarder(upstream=upstream), *layers)
        assert call(app, CHAT, body=chat(model="gpt-4o")).status == 200
    assert 16 <= json.loads(provider.requests[0].body)["max_tokens"] <= most


@pytest.mark.parametrize(
    ("limit", "body", "path"),
    [("1/day for openai/*", {"prompt": "x"}, "/v1/images/generations"),
     ("1/day for openai/gpt-4o*", {"model": "gpt-4o"}, CHAT),
     ("1/day for gpt-4o*", {"model": "openai/gpt-4o"}, CHAT)],
)  # fmt: skip
def test_a_pattern_counts_what_might_be_meant(limit: str, body: Any, path: str) -> None:
    """A model that is not named, or without its provider, is no way around the limit."""
    limiter, _, _ = limited(App(), limit)
    data = json.dumps(body).encode()
    assert [call(limiter, path, body=data).status for _ in range(2)] == [200, 429]


def test_a_deep_body_is_no_error_of_ours() -> None:
    """Whatever the reader of JSON takes, the search for references takes too."""
    limiter, _, _ = limited(App(), "100000 tokens/min")
    body = b'{"model":"m","max_tokens":5,"messages":' + b"[" * 950 + b"]" * 950 + b"}"
    assert call(limiter, CHAT, body=body).status in (200, 400)


def test_a_picture_in_the_body_is_not_refused_for_ever() -> None:
    """Its letters are no tokens: it is let in when all that there is is free."""
    limiter, _, _ = limited(App(Usage(1000, 5)), "100000 tokens/min")
    picture = {"image_url": {"url": "data:image/png;base64," + "A" * 900_000}}
    assert call(limiter, CHAT, body=chat(messages=[picture], max_tokens=5)).status == 200


OUTPUTS = [
    ("/v1/messages/batches",
     {"requests": [{"params": {"model": "c", "max_tokens": 100}}, {"params": {"max_tokens": 50}}]}, 150),
    ("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 40}, 120),
    ("/v1beta/models/g:generateContent",
     {"generation_config": {"maxOutputTokens": 1}, "generationConfig": {"maxOutputTokens": 60}}, 60),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "most"), OUTPUTS)
def test_every_way_to_ask_for_output_is_reserved(path: str, body: Any, most: int) -> None:
    """Batches, several prompts, both spellings."""
    data = json.dumps({"model": "m", **body}).encode()
    assert wanted(make_environ(path, body=data)).output_tokens == most


def test_an_app_of_its_own_is_charged_what_it_tells() -> None:
    """On a path of no AI API a limit of money asks for no price, with or without a forwarder."""
    with raw_provider(answering(OK)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        inner = App(Usage(1, 1, cost=0.01))
        for app in (inner, UpstreamForwarder(inner, upstream)):
            limiter, counters, _ = limited(app, "0.015 usd/day")
            statuses = [call(limiter, "/ask", body=b"{}").status for _ in range(3)]
            assert statuses == [200, 200, 429]
            assert used(counters) == {"usd-86400s": 20_000_000}


def test_two_lambdas_are_two_limiters() -> None:
    """Functions without a name of their own do not share their counts if they differ."""
    counters = open_counters("memory:")
    first = RateLimiter(App(), "1/min", by=lambda e: "x", counters=counters)
    second = RateLimiter(App(), "1/min", by=lambda e: "xy"[:1], counters=counters)
    assert [call(app).status for app in (first, second, first)] == [200, 200, 429]


def test_tiers_of_prices_are_followed() -> None:
    """A price that depends on the prompt's length is asked for with the real figures."""
    from decimal import Decimal

    from genai_prices import Usage as Used
    from genai_prices import calc_price

    from aigw_middleware.usage.prices import Prices

    for provider, model in (("google", "gemini-2.5-pro"), ("openai", "gpt-4o-mini")):
        price = Prices().of(provider, model)
        assert price is not None
        for given, said in ((1_000, 1_000), (500_000, 10_000)):
            used_ = Used(input_tokens=given, output_tokens=said)
            exact = calc_price(used_, model_ref=model, provider_id=provider).total_price
            assert Decimal(price.cost(given, said)) / 10**9 == exact
            assert price.cost(given, price.output_for(10**10, given, 1)) <= 10**10


BATCHES = {
    "/v1/messages/batches": {"requests": [{"params": {"max_tokens": 5000}}] * 3},
    "/v1beta/models/g:batchGenerateContent": {
        "batch": {
            "input_config": {
                "requests": {
                    "requests": [{"request": {"generation_config": {"max_output_tokens": 5000}}}]
                    * 3
                }
            }
        }
    },
}


def gemini_batch(*caps: int | None) -> bytes:
    requests = [
        {"request": {} if cap is None else {"generationConfig": {"maxOutputTokens": cap}}}
        for cap in caps
    ]
    return json.dumps({"batch": {"inputConfig": {"requests": {"requests": requests}}}}).encode()


def test_a_request_of_a_batch_without_a_cap_gets_what_is_reserved_for_it() -> None:
    """Beside those that name one, which are reserved as they are."""
    path = "/v1beta/models/g:batchGenerateContent"
    app = App(None)
    limiter, counters, _ = limited(app, "10000 output_tokens/min")
    assert call(limiter, path, body=gemini_batch(65_536, None)).status == 400
    assert call(limiter, path, body=gemini_batch(4000, None, None)).status == 200
    assert used(counters) == {"output_tokens-60s": 10_000}
    (sent,) = app.bodies
    requests = sent["batch"]["inputConfig"]["requests"]["requests"]
    caps = [one["request"]["generationConfig"]["maxOutputTokens"] for one in requests]
    assert caps == [4000, 3000, 3000]


def test_a_batch_has_a_bound() -> None:
    """Of more requests than a vendor takes none is looked at."""
    limiter, _, _ = limited(App(None), "10000 output_tokens/min")
    body = json.dumps({"requests": [0] * 100_001}).encode()
    assert call(limiter, "/v1/messages/batches", body=body).status == 400


@pytest.mark.parametrize("path", BATCHES)
def test_a_batch_is_reserved_for_all_of_its_requests(path: str) -> None:
    """Three answers of 5,000 tokens never fit 10,000, and take all of 15,000."""
    body = json.dumps(BATCHES[path]).encode()
    limiter, _, _ = limited(App(None), "10000 output_tokens/min")
    assert call(limiter, path, body=body).status == 400
    limiter, counters, _ = limited(App(None), "15000 output_tokens/min")
    assert call(limiter, path, body=body).status == 200
    assert used(counters) == {"output_tokens-60s": 15_000}


@pytest.mark.parametrize("around", [lambda app: app, ProxyFix])
def test_what_depends_on_the_model_is_counted_for_the_one_that_is_asked(around: Any) -> None:
    """By an alias, and behind a layer of somebody else's too: the model's limit and its price."""
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        forwarder = UpstreamForwarder(upstream=upstream, aliases={"cheap": "openai/gpt-4o"})
        limits = ["1/min for openai/gpt-4o", "9/hour", "1 usd/day"]
        limiter, counters, _ = limited(around(forwarder), limits)
        body = chat(model="cheap", max_tokens=100)
        statuses = [call(limiter, CHAT, body=body).status for _ in range(2)]
    assert statuses == [200, 429]
    counts = used(counters)
    assert counts["requests-3600s"] == 1  # what is refused spends nothing
    assert counts["usd-86400s"] == len(body) * 1000 + 100 * 2000


def test_limits_of_money_and_models_in_front_of_a_plain_url() -> None:
    """Nobody knows more than the body tells: what was reserved by it is what counts."""
    with raw_provider(answering(OK, keep=True)) as provider:
        forwarder = UpstreamForwarder(upstream=provider.url)
        limits = ["1/min for openai/gpt-4o*", "5 usd/day"]
        for around in (lambda app: app, ProxyFix):
            limiter, counters, _ = limited(around(forwarder), limits)
            assert call(limiter, CHAT, body=chat(model="cheap", max_tokens=9)).status == 200
            statuses = [
                call(limiter, CHAT, body=chat(model="gpt-4o", max_tokens=9)).status
                for _ in range(2)
            ]
            assert statuses == [200, 429]
            assert used(counters)["usd-86400s"] > 0


def test_what_bounds_one_candidate_alone_caps_no_other() -> None:
    """Behind a layer of others: the cap that was put in for the model's name goes with it."""
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("groq", base_url=provider.url, api_keys=["k"])
        forwarder = UpstreamForwarder(upstream=upstream)
        limiter, _, _ = limited(ProxyFix(forwarder), "100 output_tokens/min for openai/*")
        assert call(limiter, CHAT, body=chat(model="m")).status == 200
        assert "max_tokens" not in json.loads(provider.requests[0].body)


def test_behind_a_layer_of_others_an_application_is_limited_as_well() -> None:
    """Where no forwarder comes, what was reserved by the body's model is what is settled."""
    limiter, counters, _ = limited(ProxyFix(App(Usage(10, 20))), ["1/min for gpt-4o", "1 usd/day"])
    body = chat(max_tokens=100)
    assert [call(limiter, CHAT, body=body).status for _ in range(2)] == [200, 429]
    assert used(counters)["usd-86400s"] == 10 * 1000 + 20 * 2000


class Watched:
    def check(self) -> None:
        """Nothing to end."""


def test_the_watchdog_wakes_for_many_answers_at_once() -> None:
    """Not for each: its thread would take turns with those that serve."""
    dog = Watchdog()
    woken: list[int] = []
    wake = dog._wake.set
    dog._wake.set = lambda: (woken.append(1), wake())[1]  # type: ignore[method-assign]
    dog.add(stream := Watched())
    dog.remove(stream)
    while not dog._asleep:
        pass
    for _ in range(1000):
        dog.add(stream)
        dog.remove(stream)
    assert 1 <= len(woken) < 100


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda e, *, name="a": e[name], lambda e, *, name="b": e[name]),
        (lambda e, name="a": e[name], lambda e, name="b": e[name]),
        (partial(getattr, "x"), partial(getattr, "y")),
    ],
)
def test_callables_have_different_names_where_they_were_made_with_other_things(
    one: Any, other: Any
) -> None:
    """Defaults of every kind, and arguments that were bound."""
    assert name_of(one) != name_of(other)
    assert name_of(one) == name_of(one)
