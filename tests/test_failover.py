"""Failover: which failure asks whom next, how often, and who rests afterwards."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware import ModelAccess, Provider, RateLimiter, UpstreamForwarder, stack
from aigw_middleware.environ import TRIED
from aigw_middleware.errors import UpstreamBroken
from aigw_middleware.forwarding.attempting import retry_after
from aigw_middleware.forwarding.health import Failure, Health, health
from aigw_middleware.forwarding.route import Candidate
from aigw_middleware.forwarding.strategies import arranged
from aigw_middleware.forwarding.url import BaseURL
from aigw_middleware.named_models import put_in_form
from aigw_middleware.splice import drop
from aigw_middleware.usage.prices import Prices

from .support import CHAT, RawProvider, RawRequest, answering, call, make_environ, raw_provider

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
BODY = b'{"model": "m", "messages": []}'


def status(code: int, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return f"HTTP/1.1 {code} X\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n{lines}\r\n{{}}".encode()


def silent(connection: socket.socket, request: RawRequest) -> None:
    connection.recv(1)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"

FAILURES: dict[str, tuple[Any, dict[str, Any], int]] = {
    # what the first does, options, whose answer the client gets: 200 is the second's
    "429": (answering(status(429)), {}, 200),
    "401": (answering(status(401)), {}, 200),
    "403": (answering(status(403)), {}, 200),
    "500": (answering(status(500)), {}, 200),
    "503 with Retry-After": (answering(status(503, "Retry-After: 7")), {}, 200),
    "529": (answering(status(529)), {}, 200),
    "400": (answering(status(400)), {}, 400),
    "404": (answering(status(404)), {}, 404),
    "413": (answering(status(413)), {}, 413),
    "422": (answering(status(422)), {}, 422),
    "reset before the head": (answering(b""), {}, 502),
    "torn head": (answering(b"HTTP/1.1 200 OK\r\nContent-"), {}, 502),
    "garbage": (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), {}, 502),
    "reset, unsafe": (answering(b""), {"retry_unsafe": True}, 200),
    "silence": (silent, {"first_byte_timeout": 0.2}, 504),
    "silence, unsafe": (silent, {"first_byte_timeout": 0.2, "retry_unsafe": True}, 200),
    "silence in the head": (answering(b"HTTP/1.1 200 OK\r\n", keep=True), {
        "first_byte_timeout": 0.2}, 504),
    "a head and no more": (answering(HEAD), {}, 502),
    "a head and no more, unsafe": (answering(HEAD), {"retry_unsafe": True}, 200),
    "silence behind the head": (answering(HEAD, keep=True), {"first_byte_timeout": 0.2}, 504),
    "silence behind the head, unsafe": (answering(HEAD, keep=True), {
        "first_byte_timeout": 0.2, "retry_unsafe": True}, 200),
    "1xx before": (answering(b"HTTP/1.1 103 Early Hints\r\n\r\n", status(500)), {}, 200),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_who_answers_when_the_first_fails(name: str) -> None:
    """The table: another is asked where nothing can have been done, or where it may help."""
    handler, options, answered = FAILURES[name]
    with raw_provider(handler) as first, raw_provider(answering(OK)) as second:
        answer = call(UpstreamForwarder(upstream=pair(first, second), **options), CHAT, body=BODY)
    assert answer.status == answered
    assert len(first.requests) == 1
    assert len(second.requests) == (answered == 200)
    outcomes = [attempt.outcome for attempt in answer.environ[TRIED]]
    assert len(outcomes) == answer.environ["aigw.attempts"] == 1 + (answered == 200)


def pair(*providers: RawProvider, **options: Any) -> list[Provider]:
    """Return providers a, b, ... that all serve the model m."""
    return [
        Provider(name, base_url=provider.url, models=["m"], **options)
        for name, provider in zip("abcd", providers, strict=False)
    ]


def test_the_last_answer_is_passed_on_as_it_came() -> None:
    """With nobody left the client hears the provider itself, with its Retry-After."""
    with (
        raw_provider(answering(status(500))) as first,
        raw_provider(answering(status(429, "Retry-After: 9", "X-Own: 1"))) as second,
    ):
        answer = call(UpstreamForwarder(upstream=pair(first, second)), CHAT, body=BODY)
    assert (answer.status, answer.headers["Retry-After"], answer.headers["X-Own"]) == (
        429,
        "9",
        "1",
    )


@pytest.mark.parametrize("name", ["429", "500"])
def test_an_answer_tells_more_than_that_the_next_one_could_not_be_reached(name: str) -> None:
    """[429, connection refused]: the client gets the 429 with its headers, though not the last."""
    with raw_provider(answering(status(int(name), "Retry-After: 9"))) as first:
        nobody = Provider("b", base_url="http://127.0.0.1:9", models=["m"])
        app = UpstreamForwarder(upstream=[*pair(first), nobody], show_attempts=True)
        answer = call(app, CHAT, body=BODY)
    assert (answer.status, answer.headers["Retry-After"]) == (int(name), "9")
    assert answer.headers["X-Aigw-Attempts"] == f"a/m={name}, b/m=unreachable"
    assert not health._in_flight


def test_an_answer_that_is_kept_is_whole_though_all_of_the_time_is_gone() -> None:
    """The next candidate has used it up: what came is read for a second more."""
    body = b"x" * 120_000
    head = b"HTTP/1.1 429 X\r\nContent-Type: text/plain\r\nRetry-After: 9\r\nContent-Length: %d\r\n\r\n"
    with (
        raw_provider(answering(head % len(body), body)) as first,
        raw_provider(silent) as second,
    ):
        upstream = pair(first, second, api_keys=["k-123456"])
        app = UpstreamForwarder(upstream=upstream, total_timeout=0.3, retry_unsafe=True)
        answer = call(app, CHAT, body=BODY)
    assert (answer.status, answer.headers["Retry-After"], answer.body) == (429, "9", body)


def test_an_alias_behind_a_providers_name_hides_no_model_of_it() -> None:
    """It is looked at where the provider has listed what it stands for, and nothing of its name."""
    aliases = {"gpt-4o": ["a/m"], "fast": ["a/m"]}
    with raw_provider(answering(OK, keep=True)) as first:
        (listing,) = pair(first)
        open_one = Provider("openai", base_url=first.url, api_keys=["k"])
        app = UpstreamForwarder(upstream=[listing, open_one], aliases=aliases)
        for name in ("a/fast", "openai/gpt-4o", "gpt-4o"):
            call(app, CHAT, body=json.dumps({"model": name, "messages": []}).encode())
        models = [json.loads(request.body)["model"] for request in first.requests]
    assert models == ["m", "gpt-4o", "m"]


def test_who_sends_heads_and_no_bodies_rests() -> None:
    """As after a 500: three in a row, and then the other one is asked first."""
    with (
        raw_provider(answering(HEAD)) as first,
        raw_provider(answering(OK, keep=True)) as second,
    ):
        app = UpstreamForwarder(upstream=pair(first, second))
        answers = [call(app, CHAT, body=BODY).status for _ in range(5)]
    assert answers == [502, 502, 502, 200, 200]
    assert (len(first.requests), len(second.requests)) == (3, 2)


def test_an_attempt_may_have_a_bound_of_its_own() -> None:
    """`attempt_timeout` holds until the first byte, head and all: not once for each."""

    def slow(connection: socket.socket, request: RawRequest) -> None:
        for piece in (HEAD[:40], HEAD[40:], b"{"):
            threading.Event().wait(0.2)
            connection.sendall(piece)

    with raw_provider(slow) as first, raw_provider(answering(OK)) as second:
        app = UpstreamForwarder(
            upstream=pair(first, second), attempt_timeout=0.3, retry_unsafe=True
        )
        assert call(app, CHAT, body=BODY).status == 200
    assert len(second.requests) == 1


def test_all_attempts_have_one_deadline() -> None:
    """`total_timeout` bounds the first and the second together."""
    with raw_provider(silent) as first, raw_provider(silent) as second:
        app = UpstreamForwarder(upstream=pair(first, second), total_timeout=0.3, retry_unsafe=True)
        assert call(app, CHAT, body=BODY).code == "upstream_timeout"
    assert len(second.requests) == 0


def test_equal_servers_of_ones_own_stand_in_for_each_other() -> None:
    """Providers that list no models: another server of one's own, but no other vendor."""
    with (
        raw_provider(answering(status(500), keep=True)) as first,
        raw_provider(answering(OK, keep=True)) as second,
    ):
        own = [
            Provider("one", base_url=first.url),
            Provider("groq", api_keys=["k"]),  # would be asked over the network
            Provider("two", base_url=second.url),
        ]
        answer = call(UpstreamForwarder(upstream=own), CHAT, body=BODY)
        assert (answer.status, answer.environ["aigw.provider"]) == (200, "two")
        vendors = [
            Provider("openai", base_url=first.url, api_keys=["k"]),
            Provider("groq", api_keys=["k"]),
        ]
        assert call(UpstreamForwarder(upstream=vendors), CHAT, body=BODY).status == 500


# --- models


def test_the_models_of_a_request_are_asked_in_its_order() -> None:
    """`models` is taken out, and each attempt names one; no other byte changes."""
    with (
        raw_provider(answering(status(503), keep=True)) as first,
        raw_provider(answering(OK, keep=True)) as second,
    ):
        app = UpstreamForwarder(
            upstream=[
                Provider("a", base_url=first.url, models=["x", "y"]),
                Provider("b", base_url=second.url, models=["z"]),
            ]
        )
        body = b'{ "model":"x", "models": ["y", "b/z", "x"] , "n": 1.0 }'
        answer = call(app, CHAT, body=body)
    assert (answer.status, answer.environ["aigw.model"]) == (200, "z")
    assert [request.body for request in first.requests + second.requests] == [
        b'{ "model":"%b", "n": 1.0 }' % name for name in (b"x", b"y", b"z")
    ]


def test_models_alone_name_the_model() -> None:
    """Without `model` the first of `models` is what is wished for."""
    with raw_provider(answering(OK)) as provider:
        app = UpstreamForwarder(upstream=pair(provider))
        assert call(app, CHAT, body=b'{"models": ["m", "unknown"]}').status == 200
    assert json.loads(provider.requests[0].body) == {"model": "m"}


@pytest.mark.parametrize(
    "models", ['"m"', "5", "[5]", '["a b"]', str(["m"] * 21).replace("'", '"')]
)
def test_models_that_are_none_are_refused(models: str) -> None:
    """A list of models' names, and not too many, or 400."""
    app = UpstreamForwarder(upstream=Provider("a", base_url="http://127.0.0.1:9"))
    body = b'{"model": "m", "models": %b}' % models.encode()
    assert call(app, CHAT, body=body).code == "invalid_request"


def test_rules_are_judged_on_each_of_the_models() -> None:
    """MOD-3: what the rules don't allow is not tried, also as a fallback; nor behind a plain app."""
    with (
        raw_provider(answering(status(503), keep=True)) as first,
        raw_provider(answering(OK, keep=True)) as second,
    ):
        upstream = [
            Provider("a", base_url=first.url, models=["x"]),
            Provider("b", base_url=second.url, models=["z"]),
        ]
        app = stack(UpstreamForwarder(upstream=upstream), partial(ModelAccess, allow=["a/*"]))
        assert call(app, CHAT, body=b'{"model": "x", "models": ["z"]}').status == 503
    assert len(second.requests) == 0
    inner = ModelAccess(lambda environ, start: start("200 OK", []) or [], ["x"])
    assert call(inner, CHAT, body=b'{"model": "x", "models": ["z"]}').code == "model_not_allowed"


def test_an_alias_may_stand_for_several_models() -> None:
    """In order of preference; each with its own name at its provider."""
    with (
        raw_provider(answering(status(429))) as first,
        raw_provider(answering(OK)) as second,
    ):
        upstream = [
            Provider("a", base_url=first.url),
            Provider("b", base_url=second.url),
        ]
        app = UpstreamForwarder(upstream=upstream, aliases={"fast": ["a/small", "b/tiny"]})
        assert call(app, CHAT, body=b'{"model": "fast"}').status == 200
    assert json.loads(first.requests[0].body)["model"] == "small"
    assert json.loads(second.requests[0].body)["model"] == "tiny"


def test_a_budget_that_one_model_would_break_leads_to_the_next() -> None:
    """A limit of money is reserved for each candidate; one that costs too much is passed over."""
    with raw_provider(answering(OK)) as first, raw_provider(answering(OK)) as second:
        upstream = [
            Provider("a", base_url=first.url, models=["dear"]),
            Provider("b", base_url=second.url, models=["cheap"]),
        ]
        app = stack(
            UpstreamForwarder(upstream=upstream),
            partial(
                RateLimiter,
                limits="0.01 usd/day",
                by="global",
                prices={"a/dear": (1000, 1000), "b/cheap": (1, 1)},
            ),
        )
        body = b'{"model": "dear", "models": ["cheap"], "max_tokens": 100}'
        answer = call(app, CHAT, body=body)
    assert (answer.status, answer.environ["aigw.model"]) == (200, "cheap")
    assert [attempt.outcome for attempt in answer.environ[TRIED]] == ["budget_exceeded", "200"]


FORM = (
    b'--xx\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    b'\x00\xff name="model"\r\n\r\nfast\r\n'
    b'\r\n--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\nfast\r\n--xx--\r\n'
)
AUDIO = "/v1/audio/transcriptions"


def form(**extra: Any) -> dict[str, Any]:
    return {"CONTENT_TYPE": "multipart/form-data; boundary=xx", **extra}


def test_a_form_names_a_model() -> None:
    """MOD-6: rules see it, an alias changes it, and no other byte of the form."""
    with raw_provider(answering(OK, keep=True)) as provider:
        forwarder = UpstreamForwarder(
            upstream=Provider("a", base_url=provider.url), aliases={"fast": "a/whisper"}
        )
        app = ModelAccess(forwarder, ["a/whisper"])
        assert call(app, AUDIO, body=FORM, **form()).status == 200
        assert call(ModelAccess(forwarder, ["fast"]), AUDIO, body=FORM, **form()).status == 403
    changed = FORM[: FORM.rindex(b"fast")] + b"whisper" + FORM[FORM.rindex(b"fast") + 4 :]
    assert [request.body for request in provider.requests] == [changed]


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (FORM.replace(b'name="file"', b'name="model"'), form()["CONTENT_TYPE"], "invalid_request"),
        (FORM.replace(b"\r\n\r\nfast\r\n--xx--", b"\r\n\r\na b\r\n--xx--"),
         form()["CONTENT_TYPE"], "invalid_request"),
        (b"--xx\r\nno form", form()["CONTENT_TYPE"], "invalid_request"),
        (FORM, "multipart/form-data", "invalid_request"),
        (b"--xx--\r\n", form()["CONTENT_TYPE"], "invalid_request"),
        (FORM, "text/plain", "model_not_allowed"),
    ],
)  # fmt: skip
def test_a_form_with_no_single_model_is_refused(body: bytes, content_type: str, code: str) -> None:
    """Where rules are set a form names exactly one model that is one."""
    app = ModelAccess(
        UpstreamForwarder(upstream=Provider("a", base_url="http://127.0.0.1:9")), ["whisper"]
    )
    assert call(app, AUDIO, body=body, CONTENT_TYPE=content_type).code == code


@given(st.binary(max_size=60), st.sampled_from(["a", "gpt.4o+x", "m" * 40]))
def test_a_forms_model_is_changed_alone(content: bytes, model: str) -> None:
    """Whatever a file holds, only the field's value changes."""
    before = b'--bb\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + content
    field = b'\r\n--bb\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    tail = b"\r\n--bb--\r\n"
    changed = put_in_form(before + field + model.encode() + tail, b"bb", "new")
    assert changed == before + field + b"new" + tail


@given(st.dictionaries(st.text(max_size=4), st.integers(), max_size=4), st.data())
def test_a_member_is_dropped_alone(document: dict[str, int], data: Any) -> None:
    """What is left is the same object without it."""
    written = json.dumps(document, indent=data.draw(st.sampled_from([None, 1])))
    name = data.draw(st.sampled_from([*document, "absent"]))
    left = {key: value for key, value in document.items() if key != name}
    assert json.loads(drop(written.encode(), name)) == left


# --- who rests


class Ticks:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def candidate(name: str = "a", secret: str = "k", **fields: Any) -> Candidate:
    base = BaseURL(f"http://{name}.test", option="x")
    return Candidate(name, base, "/", None, secret, fields.pop("model", "m"), **fields)


def test_a_limited_key_rests_as_long_as_its_provider_says() -> None:
    """429 with Retry-After: that key, not the other one, for just so long."""
    clock = Ticks()
    seen = Health(clock)
    seen.failed(candidate(), Failure.LIMITED, 20.0)
    assert not seen.is_ready(candidate())
    assert seen.is_ready(candidate(secret="other"))
    clock.now += 20
    assert seen.is_ready(candidate())


def test_a_place_that_is_down_is_probed_by_one_request_at_a_time() -> None:
    """Half-open: after its rest one tries, others go elsewhere; a success clears, a failure doubles."""
    clock = Ticks()
    seen = Health(clock)
    seen.failed(candidate(), Failure.UNREACHABLE)
    assert not seen.is_ready(candidate(secret="other"))
    clock.now += 1
    assert seen.is_ready(candidate())
    seen.begin(candidate())
    assert not seen.is_ready(candidate())
    seen.end(candidate())
    seen.failed(candidate(), Failure.UNREACHABLE)
    clock.now += 1.5
    assert not seen.is_ready(candidate())
    clock.now += 0.5
    seen.begin(candidate())
    seen.succeeded(candidate(), seen.now())
    assert seen.is_ready(candidate())


def test_faults_have_to_come_in_a_row() -> None:
    """One 500 means little, three in a row mean that the place rests."""
    seen = Health(Ticks())
    for _ in range(2):
        seen.failed(candidate(), Failure.FAULT)
    assert seen.is_ready(candidate())
    seen.succeeded(candidate(), seen.now())
    for _ in range(2):
        seen.failed(candidate(), Failure.FAULT)
    assert seen.is_ready(candidate())
    seen.failed(candidate(), Failure.FAULT)
    assert not seen.is_ready(candidate())


def test_who_rests_comes_last_and_is_still_asked() -> None:
    """No request is turned away because of what others have seen."""
    with (
        raw_provider(answering(status(429, "Retry-After: 60"), keep=True)) as first,
        raw_provider(answering(OK, keep=True)) as second,
    ):
        app = UpstreamForwarder(upstream=pair(first, second))
        assert [call(app, CHAT, body=BODY).status for _ in range(3)] == [200] * 3
        assert (len(first.requests), len(second.requests)) == (1, 3)
        alone = UpstreamForwarder(upstream=pair(first))
        assert call(alone, CHAT, body=BODY).status == 429


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([("Retry-After", "7")], 7.0),
        ([("retry-after-ms", "1500"), ("Retry-After", "2")], 1.5),
        ([("Retry-After", "Thu, 01 Jan 1970 00:01:40 GMT")], 90.0),
        ([("Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT")], 0.0),
        ([("Retry-After", "99999999")], 600.0),
        ([("Retry-After", "soon")], None),
        ([("Retry-After", "-5")], None),
        ([], None),
    ],
)
def test_what_a_provider_says_of_retrying(headers: Any, seconds: float | None) -> None:
    """Seconds, a date, OpenAI's milliseconds; bounded, and nothing for nonsense."""
    assert retry_after(headers, 10.0) == seconds


HALF = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nabc"


def test_who_breaks_off_three_times_in_a_row_rests() -> None:
    """An answer that begins well and breaks is a fault too, though nobody else could be asked."""
    with (
        raw_provider(answering(HALF)) as broken,
        raw_provider(answering(OK, keep=True)) as sound,
    ):
        app = UpstreamForwarder(upstream=pair(broken, sound))
        for _ in range(3):
            with pytest.raises(UpstreamBroken):
                call(app, CHAT, body=BODY)
        assert call(app, CHAT, body=BODY).status == 200
    assert (len(broken.requests), len(sound.requests)) == (3, 1)


DONE = b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\ndata: [DONE]\n\n'
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(
    DONE
)


@pytest.mark.parametrize(("between", "rests"), [(EVENTS + DONE, False), (status(500), True)])
def test_what_comes_between_breaks(between: bytes, rests: bool) -> None:
    """A stream that was told whole begins the row anew; an error that came whole is one more."""
    answers = iter([HALF, between] * 3)

    def failing(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(next(answers))

    body = json.dumps({**json.loads(BODY), "stream": True}).encode()
    with raw_provider(failing) as provider:
        (one,) = pair(provider)
        app = UpstreamForwarder(upstream=one)
        for _ in range(5):
            with suppress(UpstreamBroken):
                call(app, CHAT, body=body)
    asked = url_candidate_of(one)
    assert health.is_ready(asked) is not rests


def url_candidate_of(provider: Provider) -> Candidate:
    base = provider.base("openai")
    return Candidate(provider.name, base, "/", None, "")


def test_who_broke_off_is_well_again_when_an_answer_comes_whole() -> None:
    """One that begins well clears nothing, and neither does one that ends while it rests."""
    now = [100.0]
    seen, one = Health(lambda: now[0]), candidate()

    def answers(*, whole: bool) -> None:
        seen.begin(one)
        seen.succeeded(one, seen.now())
        seen.end(one)
        seen.came_whole(one, 200) if whole else seen.broke_off(one)

    for _ in range(3):
        assert seen.is_ready(one)
        answers(whole=False)
    assert not seen.is_ready(one)
    seen.came_whole(one, 200)  # of a request that had begun before
    assert not seen.is_ready(one)
    now[0] += 1.0
    assert seen.is_ready(one)
    answers(whole=False)
    now[0] += 1.9
    assert not seen.is_ready(one)  # twice as long
    now[0] += 0.2
    answers(whole=True)
    answers(whole=False)
    answers(whole=False)
    assert seen.is_ready(one)


def test_nothing_is_left_in_flight() -> None:
    """Whatever becomes of a request, it no longer counts as one that a place answers."""
    handlers: list[Callable[..., Any]] = [
        answering(OK),
        answering(status(500)),
        answering(b""),
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
        answering(status(401)),
        answering(b"HTTP/1.1 204 No\r\n\r\n"),
    ]
    for handler in handlers:
        with raw_provider(handler) as provider:
            app = UpstreamForwarder(upstream=Provider("a", base_url=provider.url, api_keys=["k1"]))
            iterable = app(make_environ(CHAT, body=BODY), lambda *args: lambda data: None)
            getattr(iterable, "close", lambda: None)()
    assert not health._in_flight


def test_a_thousand_failures_leave_nothing_open() -> None:
    """Each way to fail, over and over: no descriptor and no request in flight is left."""
    kinds = iter(
        [
            b"",
            b"garbage\r\n\r\n",
            status(500, "Connection: close"),
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        ]
        * 250
    )

    def failing(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(next(kinds))

    with raw_provider(failing) as provider:
        app = UpstreamForwarder(upstream=Provider("a", base_url=provider.url))
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(1000):
            iterable = app(make_environ(CHAT, body=BODY), lambda *args: lambda data: None)
            with suppress(UpstreamBroken):
                b"".join(iterable)
            getattr(iterable, "close", lambda: None)()
    assert len(provider.requests) == 1000
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 8
    assert not health._in_flight


# --- strategies


def test_wishes_keep_their_order_and_nobody_is_asked_twice() -> None:
    """The client's models first, then a provider's keys; the same one only once."""
    a, b = candidate("a"), candidate("b")
    other = candidate("a", model="n")
    found = arranged([[[a], [b]], [[other], [a]]], "order", Health(), Prices())
    assert found == [a, b, other]


def test_the_cheapest_comes_first() -> None:
    """By the price of its tokens; who has none comes last."""
    wish = [[candidate(name)] for name in "abc"]
    prices = Prices({"b/m": (1, 2), "c/m": (1, 1)})
    found = arranged([wish], "cheapest", Health(), prices)
    assert [one.provider for one in found] == ["c", "b", "a"]


def test_the_least_busy_comes_first() -> None:
    """Who answers the fewest requests; equal ones in their order."""
    seen = Health()
    wish = [[candidate(name)] for name in "abc"]
    seen.begin(candidate("a"))
    seen.begin(candidate("b"))
    seen.begin(candidate("b"))
    found = arranged([wish], "least-busy", seen, Prices())
    assert [one.provider for one in found] == ["c", "a", "b"]


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e8])
def test_chance_is_by_weight(unit: float) -> None:
    """Three of four requests go to who weighs three times as much; the other comes second."""
    wish = [[candidate("a", weight=3 * unit)], [candidate("b", weight=unit)]]
    chance = random.Random(7).random
    firsts: Counter[str | None] = Counter()
    for _ in range(4000):
        found = arranged([wish], "weighted", Health(), Prices(), chance=chance)
        assert len(found) == 2
        firsts[found[0].provider] += 1
    assert 0.72 < firsts["a"] / 4000 < 0.78


@pytest.mark.parametrize("options", [{"strategy": "fastest"}, {"strategy": None}])
def test_an_unknown_strategy_is_named(options: Any) -> None:
    """A ValueError when built."""
    with pytest.raises(ValueError, match=r"^strategy: "):
        UpstreamForwarder(upstream=Provider("a", base_url="http://h"), **options)


# --- what is told


def test_attempts_are_told_to_whom_may_see_them(caplog: Any) -> None:
    """`X-Aigw-Attempts`, by a function of the key; and in the log."""
    seen: list[Any] = []

    def shows(key: Any) -> bool:
        seen.append(key)
        return True

    caplog.set_level(logging.INFO, logger="aigw_middleware")
    with ExitStack() as opened:
        first = opened.enter_context(raw_provider(answering(status(429), keep=True)))
        second = opened.enter_context(raw_provider(answering(OK, keep=True)))
        app = UpstreamForwarder(upstream=pair(first, second), show_attempts=shows)
        answer = call(app, CHAT, body=BODY)
        hidden = call(UpstreamForwarder(upstream=pair(second)), CHAT, body=BODY)
    assert answer.headers["X-Aigw-Attempts"] == "a/m=429, b/m=200"
    assert "X-Aigw-Attempts" not in hidden.headers
    assert seen == [None]
    assert "a/m answered 429, the next is asked" in caplog.text


def test_a_refusal_tells_its_attempts_too() -> None:
    """Who could not be reached is listed."""
    app = UpstreamForwarder(
        upstream=Provider("a", base_url="http://127.0.0.1:1"), show_attempts=True
    )
    answer = call(app, CHAT, body=BODY)
    assert (answer.code, answer.headers["X-Aigw-Attempts"]) == (
        "upstream_unreachable",
        "a/m=unreachable",
    )


def test_what_a_provider_wants_in_each_query() -> None:
    """`Provider(query=...)` stands behind the client's own."""
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("a", base_url=provider.url, query={"api-version": "2024-10-21"})
        app = UpstreamForwarder(upstream=upstream)
        call(app, CHAT, body=BODY, QUERY_STRING="a=1")
        call(app, CHAT, body=BODY)
    assert [request.line.split()[1] for request in provider.requests] == [
        "/chat/completions?a=1&api-version=2024-10-21",
        "/chat/completions?api-version=2024-10-21",
    ]


# --- the list of models


def listing(document: Any) -> Callable[..., bool]:
    data = json.dumps(document).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return answering(head % len(data) + data, keep=True)


@pytest.fixture
def listed() -> Iterator[list[Provider]]:
    """Three providers: one that lists its models, two that are asked."""
    with ExitStack() as opened:
        openai = opened.enter_context(
            raw_provider(listing({"data": [{"id": "gpt-4o", "created": 7, "owned_by": "system"}]}))
        )
        google = opened.enter_context(
            raw_provider(listing({"models": [{"name": "models/gemini-x", "displayName": "X"}]}))
        )
        yield [
            Provider("openai", base_url=openai.url, api_keys=["k"]),
            Provider("google", base_url=google.url, api_keys=["k"]),
            Provider("mine", base_url="http://127.0.0.1:1", models=["llama-3"]),
        ]


def test_the_models_of_all_providers(listed: list[Provider]) -> None:
    """Each by the name that leads to it, with what its provider tells, and aliases."""
    app = UpstreamForwarder(upstream=listed, aliases={"fast": "mine/llama-3", "gone": "x/y"})
    answer = call(app, "/v1/models")
    assert answer.json["object"] == "list"
    assert [(item["id"], item["owned_by"], item["created"]) for item in answer.json["data"]] == [
        ("gpt-4o", "system", 7),
        ("google/gemini-x", "google", 0),
        ("llama-3", "mine", 0),
        ("fast", "aigw", 0),
    ]


def test_the_list_speaks_the_clients_dialect(listed: list[Provider]) -> None:
    """Gemini's and Anthropic's forms hold what speaks those dialects."""
    extra = [
        Provider("anthropic", base_url="http://127.0.0.1:1", api_keys=["k"], models=["claude-x"]),
    ]
    app = UpstreamForwarder(upstream=[*listed, *extra], aliases={"quick": "claude-x"})
    gemini = call(app, "/v1beta/models").json
    assert gemini == {"models": [{"name": "models/gemini-x", "displayName": "X"}]}
    anthropic = call(app, "/v1/models", HTTP_ANTHROPIC_VERSION="2023-06-01").json
    assert [item["id"] for item in anthropic["data"]] == ["claude-x", "quick"]
    assert (anthropic["first_id"], anthropic["has_more"]) == ("claude-x", False)


def test_the_list_holds_what_the_client_may_use(listed: list[Provider]) -> None:
    """Rules that an outer gate has are judged on each."""
    app = stack(UpstreamForwarder(upstream=listed), partial(ModelAccess, allow=["google/*"]))
    answer = call(app, "/v1/models")
    assert [item["id"] for item in answer.json["data"]] == ["google/gemini-x"]
    assert call(app, "/v1/files").code == "model_not_allowed"


def test_a_provider_that_tells_nothing_is_left_out(listed: list[Provider], caplog: Any) -> None:
    """Down, or no list: the others' models are told, and the log says why."""
    with raw_provider(answering(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")) as broken:
        down = Provider("down", base_url="http://127.0.0.1:1")
        bad = Provider("bad", base_url=broken.url)
        app = UpstreamForwarder(upstream=[listed[2], down, bad])
        answer = call(app, "/v1/models")
        assert [item["id"] for item in answer.json["data"]] == ["llama-3"]
        assert call(app, "/v1/models").status == 200
    assert len(broken.requests) == 1  # asked once in a while, not by each client
    assert "down does not tell its models" in caplog.text
    assert "bad does not tell its models: status 500" in caplog.text


def test_one_providers_own_list_is_its_own_to_tell() -> None:
    """With one provider and no rules the answer is passed on as it came."""
    with raw_provider(answering(OK)) as provider:
        app = UpstreamForwarder(upstream=Provider("a", base_url=provider.url))
        assert call(app, "/v1/models").body == b"ok"


def test_one_model_is_asked_of_whom_it_belongs_to(listed: list[Provider]) -> None:
    """`GET /v1/models/NAME` names a model like a body does."""
    with raw_provider(answering(OK)) as provider:
        upstream = [*listed, Provider("last", base_url=provider.url, models=["z"])]
        app = stack(UpstreamForwarder(upstream=upstream), partial(ModelAccess, allow=["last/*"]))
        assert call(app, "/v1/models/z").status == 200
        assert call(app, "/v1/models/gpt-4o").code == "model_not_allowed"


def test_a_fork_forgets_what_is_in_flight() -> None:
    """RUN-2: what the parent answers is no business of a child's."""
    health.begin(candidate())
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"%d" % health.busy(candidate()))
        os._exit(0)
    os.waitpid(pid, 0)
    health.end(candidate())
    assert os.read(read, 9) == b"0"
