"""What tries to get by rules and limits on the way to several providers, or to break that way."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aigw_middleware import (
    ModelAccess,
    Provider,
    RateLimiter,
    UpstreamForwarder,
    stack,
)
from aigw_middleware.body import whole
from aigw_middleware.environ import TRIED
from aigw_middleware.errors import BodyInvalid, UpstreamTimeout
from aigw_middleware.forwarding.attempting import retry_after, shown
from aigw_middleware.forwarding.health import Failure, Health, health
from aigw_middleware.forwarding.stream import has_hung_up
from aigw_middleware.forwarding.transport import Request, SocketTransport, Timeouts
from aigw_middleware.forwarding.url import BaseURL, with_query
from aigw_middleware.named_models import form_boundary, form_models
from aigw_middleware.tracing import Tracing

from .support import (
    CHAT,
    Answer,
    Inner,
    RawProvider,
    RawRequest,
    answering,
    call,
    make_environ,
    raw_provider,
)
from .test_failover import AUDIO, FORM, OK, candidate, form, listing, pair, status

BODY = b'{"model": "m", "messages": []}'


@pytest.fixture
def opened() -> Iterator[Callable[..., RawProvider]]:
    """Return what opens raw providers for the length of a test."""
    with ExitStack() as stack_:
        yield lambda *parts: stack_.enter_context(raw_provider(answering(*parts, keep=True)))


def bodies(provider: RawProvider) -> list[Any]:
    return [json.loads(request.body) for request in provider.requests]


# --- which model it is


@pytest.mark.parametrize(
    ("method", "path", "model"),
    [
        ("POST", "/v1beta/models/fast:generateContent", "../files"),
        ("POST", "/v1beta/models/fast:generateContent", "x/../../v1/files"),
        ("GET", "/v1beta/models/fast", ".."),
        ("GET", "/v1beta/models/fast", "x/.."),
    ],
)
def test_a_models_name_changes_no_path(opened: Any, method: str, path: str, model: str) -> None:
    """An alias with dots puts no other path behind the provider's address."""
    provider = opened(OK)
    app = UpstreamForwarder(
        upstream=Provider("google", base_url=provider.url, api_keys=["k"]),
        aliases={"fast": f"google/{model}"},
    )
    body = b'{"contents": []}' if method == "POST" else b""
    assert call(app, path, REQUEST_METHOD=method, body=body).status in (400, 404)
    assert not provider.requests


def test_a_body_keeps_its_model_where_the_path_names_it(opened: Any) -> None:
    """Gemini's path is what counts; a field of that name in the body is the client's own."""
    provider = opened(OK)
    app = UpstreamForwarder(
        upstream=Provider("google", base_url=provider.url, api_keys=["k"]),
        aliases={"fast": "google/gemini-x"},
    )
    body = b'{"contents": [], "model": "models/fast"}'
    assert call(app, "/v1beta/models/fast:generateContent", body=body).status == 200
    assert provider.requests[0].line.split()[1].endswith("/models/gemini-x:generateContent")
    assert provider.requests[0].body == body


@pytest.mark.parametrize("name", ["Model", "MODEL", "Models"])
def test_a_name_that_some_readers_take_for_model_is_refused(name: str) -> None:
    """MOD-3: readers that fold case would take another model than the rules have seen."""
    app = ModelAccess(Inner(), ["cheap"])
    body = json.dumps({"model": "cheap", name: "dear"}).encode()
    assert call(app, CHAT, body=body).code == "invalid_request"


def field(name: str, value: str, *more: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in more)
    return (
        f'--xx\r\nContent-Disposition: form-data; name="{name}"\r\n{lines}\r\n{value}\r\n'
    ).encode()


END = b"--xx--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        field("model", "cheap") + field("Model", "dear") + END,
        field("model", "cheap", 'Content-Disposition: form-data; name="x"') + END,
        b'--xx\r\nContent-Disposition: form-data; name="x"; name="model"\r\n\r\ncheap\r\n' + END,
        b'--xx\r\nContent-Disposition: form-data; name="mod\\el"\r\n\r\ncheap\r\n' + END,
        b'--xx\nContent-Disposition: form-data; name="model"\n\ncheap\n--xx--\n',
        b"preamble\r\n" + field("model", "cheap") + END,
        field("model", "cheap") + END + field("model", "dear") + END,
        field("prompt", "a --xx b") + field("model", "cheap") + END,
        field("prompt", "a\n--xx\nContent-Disposition: form-data; name=model\n\ndear") + END,
        field("model", "Y2hlYXA=", "Content-Transfer-Encoding: base64") + END,
        b'--xx\r\nContent-Disposition: form-data;\r\n name="model"\r\n\r\ncheap\r\n' + END,
        b'--xx\r\nContent-Disposition: form-data; name="model"; filename="x"\r\n\r\ncheap\r\n' + END,
        b"--xx\r\nContent-Disposition: form-data; name*=utf-8''model\r\n\r\ndear\r\n" + END,
        field("model", "cheap"),
    ],
)  # fmt: skip
def test_a_form_that_can_be_read_in_several_ways_is_refused(body: bytes) -> None:
    """MOD-6: no reader of forms finds another model than the one that was judged."""
    app = ModelAccess(Inner(), ["cheap", "dear"])
    assert call(app, AUDIO, body=body, **form()).code == "invalid_request"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=xx; boundary=yy",
        "multipart/form-data; boundary*=utf-8''xx; boundary=yy",
        'multipart/form-data; x="; boundary=yy"; boundary=xx',
        'multipart/form-data; boundary="x\\x"',
        "multipart/form-data; boundary=" + "x" * 71,
    ],
)
def test_a_boundary_that_can_be_read_in_several_ways_is_refused(content_type: str) -> None:
    """The boundary is what tells where a field ends, so there is one."""
    app = ModelAccess(Inner(), ["fast"])
    assert call(app, AUDIO, body=FORM, CONTENT_TYPE=content_type).code == "invalid_request"


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader_of_forms(data: bytes) -> None:
    """Whatever stands in a form, it is read or refused."""
    environ = make_environ(AUDIO, body=b"--xx\r\n" + data + b"\r\n--xx--\r\n", **form())
    try:
        form_models(whole(environ, 1000), form_boundary(environ))
    except BodyInvalid:
        return


# --- what one candidate needs and another one does not take


def test_a_stream_is_asked_for_its_usage_where_the_provider_takes_that(opened: Any) -> None:
    """Mistral tells it unasked and refuses the field; who is asked next gets it."""
    first, second = opened(status(500)), opened(OK)
    providers = [
        Provider("mistral", base_url=first.url, api_keys=["k"], models=["m"]),
        Provider("b", base_url=second.url, models=["m"]),
    ]
    body = b'{"model": "m", "messages": [], "stream": true}'
    call(UpstreamForwarder(upstream=providers), CHAT, body=body)
    assert "stream_options" not in bodies(first)[0]
    assert bodies(second)[0]["stream_options"] == {"include_usage": True}


def test_a_cap_is_named_as_the_final_model_takes_it(opened: Any) -> None:
    """A limiter's cap for an alias stands where the model behind it looks."""
    provider = opened(OK)
    app = RateLimiter(
        UpstreamForwarder(
            upstream=Provider("a", base_url=provider.url), aliases={"fast": "a/gpt-5-mini"}
        ),
        "1000 tokens/min",
        by="global",
        counters="memory:",
        name="cap-name",
    )
    assert call(app, CHAT, body=b'{"model": "fast", "messages": []}').status == 200
    (sent,) = bodies(provider)
    assert sent["max_completion_tokens"] > 0
    assert "max_tokens" not in sent


def test_a_providers_query_stands_instead_of_the_clients() -> None:
    """A client cannot choose another `api-version`, however it writes the name."""
    assert with_query("?api-version=evil&a=1", "api-version=1") == "?a=1&api-version=1"
    assert with_query("?api%2Dversion=evil", "api-version=1") == "?api-version=1"
    assert with_query("", "api-version=1") == "?api-version=1"


# --- limits


def limited(upstream: list[Provider], limits: str, name: str, **options: Any) -> RateLimiter:
    options.setdefault("by", "global")
    forwarder = UpstreamForwarder(upstream=upstream)
    return RateLimiter(forwarder, limits, counters="memory:", name=name, **options)


def test_a_limit_by_model_counts_the_model_that_is_asked_for(opened: Any) -> None:
    """Further names for one model are not further buckets."""
    provider = opened(OK)
    upstream = Provider("a", base_url=provider.url, aliases=["other"])
    app = RateLimiter(
        UpstreamForwarder(upstream=upstream, aliases={"fast": "a/m"}),
        "2/min", by="model", counters="memory:", name="one-bucket",
    )  # fmt: skip
    names = ["a/m", "fast", "a:m", "M", "other/m"]
    found = [
        call(app, CHAT, body=json.dumps({"model": name, "messages": []}).encode()).status
        for name in names
    ]
    assert found == [200, 200, 429, 429, 429]


def test_a_request_stays_counted_where_one_was_asked_and_the_next_refused(opened: Any) -> None:
    """What the first provider was asked is spent, though the second one's limit says no."""
    provider = opened(status(500))
    app = limited(pair(provider, opened(OK)), "3/min", "asked-counts", by="model")
    # Each model has a bucket of its own: `b/m` is emptied first.
    only_b = b'{"model": "b/m", "messages": []}'
    assert [call(app, CHAT, body=only_b).status for _ in range(3)] == [200, 200, 200]
    health.forget()
    answers = [call(app, CHAT, body=BODY) for _ in range(4)]
    assert [answer.status for answer in answers] == [500, 500, 500, 429]
    assert len(provider.requests) == 3


def test_a_failed_answer_is_passed_on_where_the_next_may_not_be_asked(opened: Any) -> None:
    """The client hears why the provider failed, not that a limit it never chose is empty."""
    first = opened(status(429, "X-Own: 1"))
    app = limited(pair(first, opened(OK)), "1/min", "kept-answer", by="model")
    assert call(app, CHAT, body=b'{"model": "b/m", "messages": []}').status == 200
    answer = call(app, CHAT, body=BODY)
    assert (answer.status, answer.headers["X-Own"], answer.body) == (429, "1", b"{}")
    assert answer.environ["aigw.provider"] == "a"
    assert [one.outcome for one in answer.environ[TRIED]] == ["429", "rate_limit_exceeded"]
    assert not health._in_flight


def left(app: Callable[..., Any], begun: threading.Event) -> Answer:
    """Send a chat whose client leaves as soon as the provider has it."""
    client, server = socket.socketpair()
    with client, server:

        def leave() -> None:
            begun.wait(20)
            client.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=leave)
        thread.start()
        body = b'{"model": "m", "messages": [], "max_tokens": 600}'
        answer = call(app, CHAT, body=body, **{"gunicorn.socket": server})
        thread.join()
    return answer


def test_who_hangs_up_early_has_spent_what_was_reserved() -> None:
    """LIM-7: leaving before the first byte makes no answer free: the provider bills it."""
    begun = threading.Event()

    def silent(connection: socket.socket, request: RawRequest) -> None:
        begun.set()
        provider.wait_gone(connection)

    with raw_provider(silent) as provider:
        app = limited([Provider("a", base_url=provider.url)], "1000 tokens/day", "early-leaver")
        assert left(app, begun).environ["aigw.end"] == "client_left"
        answer = call(app, CHAT, body=b'{"model": "m", "messages": [], "max_tokens": 600}')
    assert answer.code == "rate_limit_exceeded"
    assert len(provider.requests) == 1


def test_who_hangs_up_before_anything_was_sent_has_spent_nothing() -> None:
    """Nothing went out: nothing is billed."""
    begun = threading.Event()
    begun.set()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    app = limited([Provider("a", base_url=f"http://127.0.0.1:{port}")], "1000 tokens/day", "unsent")
    assert left(app, begun).status == 502
    # The same again fits.
    assert left(app, begun).code == "upstream_unreachable"


# --- who is asked, and who is not asked again


def test_a_key_that_was_refused_is_not_tried_for_the_next_model(opened: Any) -> None:
    """A 401 is the key's: within the request it is not shown to the provider again."""
    first, second = opened(status(401)), opened(OK)
    providers = [
        Provider("a", base_url=first.url, api_keys=["k"], models=["m", "n"]),
        Provider("b", base_url=second.url, models=["z"]),
    ]
    body = b'{"model": "m", "models": ["n", "z"], "messages": []}'
    assert call(UpstreamForwarder(upstream=providers), CHAT, body=body).status == 200
    assert len(first.requests) == 1


def test_a_host_that_is_gone_is_not_tried_with_the_next_key(opened: Any) -> None:
    """Unreachable is the place's, whatever the key."""
    providers = [
        Provider("a", base_url="http://127.0.0.1:1", api_keys=["k1", "k2", "k3"], models=["m"]),
        Provider("b", base_url=opened(OK).url, models=["m"]),
    ]
    answer = call(UpstreamForwarder(upstream=providers), CHAT, body=BODY)
    assert [one.outcome for one in answer.environ[TRIED]] == ["unreachable", "200"]


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 0001 23:59:59 GMT",
        "Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
        "-1",
        "1e400",
        "٣",
        "9" * 400,
    ],
)
def test_no_retry_after_breaks_the_answer(opened: Any, date: str) -> None:
    """A provider may write what it likes; the client gets its answer, and nothing is left over."""
    found = retry_after([("Retry-After", date)], 1e9)
    assert found is None or 0 <= found <= 600
    answer = call(
        UpstreamForwarder(
            upstream=pair(opened(status(429, f"Retry-After: {date.encode().decode('latin-1')}")))
        ), CHAT, body=BODY,
    )  # fmt: skip
    assert answer.status == 429
    assert not health._in_flight


def test_a_function_that_raises_does_so_before_anybody_is_asked(opened: Any) -> None:
    """`show_attempts` of the user's own: its fault costs no provider's answer."""

    def shows(key: Any) -> bool:
        raise RuntimeError("mine")

    provider = opened(OK)
    app = UpstreamForwarder(upstream=pair(provider), show_attempts=shows)
    with pytest.raises(RuntimeError, match="mine"):
        call(app, CHAT, body=BODY)
    assert not provider.requests


def test_attempts_are_told_in_ascii() -> None:
    """Names of an operator's own cannot break the header."""
    from aigw_middleware.forwarding.attempting import Attempt

    assert shown([Attempt("a", "modèle\r\nX: 1", "200", 0.1)]) == "a/mod\\xe8le\\r\\nX: 1=200"


def test_a_server_that_refuses_the_head_leaves_nothing_open(opened: Any) -> None:
    """`start_response` may raise: the connection is let go of, and the place is idle."""
    app = UpstreamForwarder(upstream=pair(opened(OK)))

    def start_response(*_: Any) -> Any:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        app(make_environ(CHAT, body=BODY), start_response)
    assert not health._in_flight


def test_a_body_counts_as_sent_from_its_first_byte() -> None:
    """A provider that stops reading half-way may have begun: nobody else is asked for the same."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = listener.getsockname()[1]
        size = 64 * 1024 * 1024
        request = Request(
            "POST", BaseURL(f"http://127.0.0.1:{port}", option="url"), "/x", [], [bytes(size)], size
        )
        with pytest.raises(UpstreamTimeout) as caught:
            SocketTransport().send(request, Timeouts(5, 5, 0.2, 5, 5), 1e12)
    assert caught.value.sent


def test_whether_a_client_left_is_asked_without_a_wait() -> None:
    """Also of a socket that has a timeout, which `recv` would wait for."""
    client, server = socket.socketpair()
    with client, server:
        server.settimeout(600)
        assert not has_hung_up(server)
        client.send(b"x")
        assert not has_hung_up(server)
        assert server.recv(1) == b"x"  # nothing was taken
        client.close()
        assert has_hung_up(server)
    assert has_hung_up(server)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=----WebKitFormBoundaryABC", "----WebKitFormBoundaryABC"),
        ("multipart/form-data; boundary=----geckoformboundary12", "----geckoformboundary12"),
        ('multipart/form-data; boundary="Boundary-1=2"', "Boundary-1=2"),
        ("multipart/form-data; charset=utf-8;boundary=b", "b"),
    ],
)
def test_the_forms_of_browsers_are_read(content_type: str, boundary: str) -> None:
    """A boundary may hold the word."""
    body = FORM.replace(b"--xx", b"--" + boundary.encode())
    app = ModelAccess(Inner(), ["fast"])
    assert call(app, AUDIO, body=body, CONTENT_TYPE=content_type).status == 200


def test_a_default_timeout_changes_nothing_of_the_question_whether_a_client_left() -> None:
    """Neither the answer, nor the descriptor's mode, nor how long it takes."""
    client, server = socket.socketpair()
    with client, server:
        socket.setdefaulttimeout(600)
        try:
            assert not has_hung_up(server)
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(server.fileno())


def test_good_answers_clear_failures_while_nothing_rests() -> None:
    """However long the answers take: one in a hundred that fails makes no provider rest."""
    seen = Health()
    one = candidate()
    for _ in range(50):
        begun = seen.now()
        seen.failed(one, Failure.FAULT)
        seen.succeeded(one, begun)
        assert seen.is_ready(one)
    begun = seen.now()
    seen.failed(one, Failure.REFUSED_KEY)
    seen.succeeded(one, begun)
    assert not seen.is_ready(one)


@pytest.mark.parametrize("first", ["429", "gone"])
def test_a_request_counts_once_under_one_limit(opened: Any, first: str) -> None:
    """Whoever is asked after whom: the client has sent one request."""
    url = "http://127.0.0.1:1" if first == "gone" else opened(status(429)).url
    upstream = [
        Provider("a", base_url=url, models=["m"]),
        Provider("b", base_url=opened(OK).url, models=["m"]),
    ]
    app = limited(upstream, "3/hour for m", f"once-{first}")
    for _ in range(3):
        health.forget()
        answer = call(app, CHAT, body=BODY)
        assert answer.status == 200
        assert len(answer.headers.getlist("RateLimit")) == 1
        assert answer.headers["RateLimit"].count("r=") == 1
    assert call(app, CHAT, body=BODY).status == 429


def test_a_candidate_that_is_never_asked_uses_nothing(opened: Any) -> None:
    """An inner limit that refuses it gives the outer one its unit back."""
    forwarder = UpstreamForwarder(upstream=pair(opened(OK), opened(OK)))
    inner = RateLimiter(
        forwarder, "1/hour for a/m", by="global", counters="memory:", name="never-asked-in"
    )
    app = RateLimiter(inner, "4/hour for m", by="global", counters="memory:", name="never-asked")
    found = [call(app, CHAT, body=BODY).environ.get("aigw.provider") for _ in range(4)]
    assert found == ["a", "b", "b", "b"]
    assert call(app, CHAT, body=BODY).status == 429


@pytest.mark.parametrize(
    ("path", "body", "cap"),
    [
        (CHAT, {"model": "m", "messages": []}, "max_tokens"),
        ("/v1beta/models/m:generateContent", {"contents": []}, "generationConfig"),
    ],
)
def test_a_cap_for_one_candidate_is_none_for_the_next(
    opened: Any, path: str, body: Any, cap: str
) -> None:
    """What a limit of the first provider has put into the body is taken out for the second."""
    dialect = "openai" if path == CHAT else "gemini"
    first, second = opened(status(500)), opened(OK)
    upstream = [
        Provider(name, base_url=provider.url, dialect=dialect, models=["m"], api_keys=["k"])
        for name, provider in (("a", first), ("b", second))
    ]
    app = limited(upstream, "200 tokens/hour for a/m", f"cap-of-one-{dialect}")
    assert call(app, path, body=json.dumps(body).encode()).status == 200
    assert bodies(first)[0][cap]
    assert not bodies(second)[0].get(cap)


@pytest.mark.parametrize("outer", [True, False])
def test_the_lowest_cap_of_several_layers_stays(opened: Any, outer: bool) -> None:
    """A limiter's larger cap does not take the place of `ModelAccess`'s."""
    provider = opened(OK)
    layers = [
        partial(RateLimiter, limits="2000 tokens/hour for m", by="global", counters="memory:",
                name=f"lowest-{outer}"),
        partial(ModelAccess, allow=["*"], max_output_tokens=50),
    ]  # fmt: skip
    forwarder = UpstreamForwarder(upstream=pair(provider))
    app = stack(forwarder, *(layers if outer else reversed(layers)))
    assert call(app, CHAT, body=BODY).status == 200
    assert bodies(provider)[0]["max_tokens"] == 50


def test_a_403_may_be_about_the_model(opened: Any) -> None:
    """The same key may have another model; a 401 is about the key."""
    provider = opened(status(403))
    app = UpstreamForwarder(
        upstream=Provider("a", base_url=provider.url, api_keys=["k"]),
        aliases={"fast": ["a/dear", "a/cheap"]},
    )
    assert call(app, CHAT, body=b'{"model": "fast", "messages": []}').status == 502
    assert [body["model"] for body in bodies(provider)] == ["dear", "cheap"]


# --- the list of models


def test_silent_providers_hide_no_other_ones_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are, all are asked at once."""
    monkeypatch.setattr("aigw_middleware.forwarding.models_list._PATIENCE", 0.5)
    with ExitStack() as stack_:
        silent = stack_.enter_context(raw_provider(lambda connection, _: connection.recv(1)))
        good = stack_.enter_context(opened_listing(["x"]))
        quiet = [Provider(f"p{number}", base_url=silent.url) for number in range(12)]
        app = UpstreamForwarder(upstream=[*quiet, Provider("good", base_url=good.url)])
        ids = [item["id"] for item in call(app, "/v1/models").json["data"]]
    assert ids == ["good/x"]


def test_the_list_names_what_a_client_really_gets(opened: Any) -> None:
    """A bare name that is an alias, or another provider's prefix, leads elsewhere: not listed so."""
    first = opened_listing(["gpt-4o", "b/m"])
    with first as one, raw_provider(listing({"data": [{"id": "m"}]})) as two:
        app = UpstreamForwarder(
            upstream=[Provider("a", base_url=one.url), Provider("b", base_url=two.url)],
            aliases={"gpt-4o": "b/m"},
        )
        ids = [item["id"] for item in call(app, "/v1/models").json["data"]]
    assert ids == ["a/gpt-4o", "a/b/m", "b/m", "gpt-4o"]


def opened_listing(names: list[str]) -> Any:
    return raw_provider(listing({"data": [{"id": name} for name in names]}))


def test_providers_are_asked_for_their_lists_at_once() -> None:
    """Each waits for the other to be asked: one after the other would never answer."""
    both = threading.Barrier(2, timeout=20)

    def handler(connection: socket.socket, request: RawRequest) -> Any:
        both.wait()
        return listing({"data": [{"id": "x"}]})(connection, request)

    with raw_provider(handler) as one, raw_provider(handler) as two:
        app = UpstreamForwarder(
            upstream=[Provider("a", base_url=one.url), Provider("b", base_url=two.url)]
        )
        ids = [item["id"] for item in call(app, "/v1/models").json["data"]]
    assert ids == ["x", "b/x"]


def test_a_list_without_end_is_cut(opened: Any) -> None:
    """A provider cannot fill the gateway with names."""
    with opened_listing([f"m{number}" for number in range(6000)]) as provider:
        app = UpstreamForwarder(upstream=Provider("a", base_url=provider.url), aliases={"f": "m1"})
        assert len(call(app, "/v1/models").json["data"]) == 5001


def test_the_list_has_a_head(opened: Any) -> None:
    """RFC 9110 §9.3.2: HEAD is answered like GET, without the body."""
    app = ModelAccess(UpstreamForwarder(upstream=pair(opened(OK))), ["*"])
    got = call(app, "/v1/models")
    head = call(app, "/v1/models", REQUEST_METHOD="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == got.headers["Content-Length"]


# --- who looks on


def test_layers_that_trace_may_stand_in_each_other() -> None:
    """Each ends its own span."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    layer = partial(Tracing, tracer_provider=provider)
    assert call(stack(Inner(), layer, layer), CHAT, body=BODY).status == 200
    assert len(exporter.get_finished_spans()) == 2
