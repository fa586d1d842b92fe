"""Refusals in the client's dialect, the request id, and what is left of a body."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest

from aigw_middleware import RateLimiter
from aigw_middleware.counters.memory import MemoryCounters
from aigw_middleware.denial import STATUSES, Denial, refuse
from aigw_middleware.environ import new_request_id

from .support import CHAT, Clock, Inner, call, make_environ, send

MESSAGES = "/v1/messages"
GEMINI = "/v1beta/models/g:generateContent"


def refusing(code: str = "ip_not_allowed", **fields: Any) -> Any:
    return lambda environ, start_response: refuse(
        environ, start_response, Denial(code, "No.", **fields)
    )


OPENAI_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "invalid_request_error", 405: "invalid_request_error", 408: "invalid_request_error",
    411: "invalid_request_error", 413: "invalid_request_error", 429: "rate_limit_error",
    502: "server_error", 503: "server_error", 504: "server_error",
}  # fmt: skip
ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
    411: "invalid_request_error", 413: "request_too_large", 429: "rate_limit_error",
    502: "api_error", 503: "api_error", 504: "timeout_error",
}  # fmt: skip
GEMINI_STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    405: "INVALID_ARGUMENT", 408: "DEADLINE_EXCEEDED", 411: "INVALID_ARGUMENT",
    413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip


@pytest.mark.parametrize("code", STATUSES)
def test_each_refusal_in_each_dialect(code: str) -> None:
    """Every code has its status and, in each dialect, the shape that its SDK knows."""
    status = STATUSES[code]
    answers = {path: call(refusing(code), path) for path in (CHAT, MESSAGES, GEMINI, "/page")}
    for answer in answers.values():
        assert (answer.status, answer.code) == (status, code)
        assert answer.headers["Content-Type"] == "application/json"
    assert answers[CHAT].json == {
        "error": {"message": "No.", "type": OPENAI_TYPES[status], "param": None, "code": code}
    }
    assert answers[MESSAGES].json == {
        "type": "error",
        "error": {"type": ANTHROPIC_TYPES[status], "message": "No."},
        "request_id": answers[MESSAGES].headers["X-Request-Id"],
    }
    assert answers[GEMINI].json == {
        "error": {"code": status, "message": "No.", "status": GEMINI_STATUSES[status]}
    }
    assert answers["/page"].json == {"error": {"message": "No.", "code": code}}


DIALECTS = [
    pytest.param("/v1/chat/completions", {}, "openai", id="chat"),
    pytest.param("/v1/responses/resp_1/cancel", {}, "openai", id="responses"),
    pytest.param("/v1/models", {}, "openai", id="models"),
    pytest.param("/v1/models", {"HTTP_ANTHROPIC_VERSION": "x"}, "anthropic", id="Anthropic's models"),
    pytest.param("/v1/files", {"HTTP_ANTHROPIC_VERSION": "x"}, "anthropic", id="Anthropic's files"),
    pytest.param("/v1/models", {"HTTP_X_GOOG_API_KEY": "x"}, "gemini", id="models by Google's key"),
    pytest.param("/v1/models", {"HTTP_X_GOOG_API_CLIENT": "x"}, "gemini", id="by Google's SDK"),
    pytest.param("/v1/models/g:generateContent", {}, "gemini", id="models with a verb"),
    pytest.param("/v1/models/g:generateContent", {"HTTP_ANTHROPIC_VERSION": "x"}, "gemini", id="a verb, whatever the header"),
    pytest.param("/v1/models/ft:gpt-4o-mini:acme::abc", {}, "openai", id="a fine-tuned model"),
    pytest.param("/v1/chat/completions", {"HTTP_X_GOOG_API_KEY": "x"}, "openai", id="the path decides"),
    pytest.param("/v1/messages/batches", {}, "anthropic", id="batches of messages"),
    pytest.param("/v1beta/models", {}, "gemini", id="v1beta"),
    pytest.param("/v1/sessions", {"HTTP_ANTHROPIC_VERSION": "x"}, "anthropic", id="sessions"),
    pytest.param("/v1/sessions", {}, "plain", id="sessions of an app's own"),
    pytest.param("/v1/voices", {"HTTP_X_GOOG_API_CLIENT": "x"}, "gemini", id="Google's voices"),
    pytest.param("/v1/decisions", {}, "openai", id="decisions"),
    pytest.param("/v1/decisions", {"HTTP_X_GOOG_API_CLIENT": "x"}, "gemini", id="Google's decisions"),
    pytest.param("/v1/agents", {}, "plain", id="agents of an app's own"),
    pytest.param("/v1/agents", {"HTTP_ANTHROPIC_VERSION": "x"}, "anthropic", id="Claude's agents"),
    pytest.param("/v1/agents", {"HTTP_X_GOOG_API_CLIENT": "x"}, "gemini", id="Google's agents"),
    pytest.param("/v1/files:register", {"HTTP_X_GOOG_API_CLIENT": "x"}, "gemini", id="files of Google's storage"),
    pytest.param("/upload/v1/environments/e/files/a/b", {}, "gemini", id="files of an environment"),
    pytest.param("/v1beta", {}, "plain", id="v1beta alone"),
    pytest.param("/v1/users", {}, "plain", id="no AI path below v1"),
    pytest.param("/", {}, "plain", id="the root"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "headers", "dialect"), DIALECTS)
def test_which_dialect_a_request_speaks(path: str, headers: Any, dialect: str) -> None:
    """The path decides, and on shared paths the header that the vendor's SDK sends."""
    from aigw_middleware.dialects import client_dialect

    assert client_dialect(make_environ(path, **headers)).name == dialect


def test_the_dialect_is_judged_on_the_whole_path() -> None:
    """SCRIPT_NAME counts; below a prefix that means nothing, PATH_INFO does."""
    assert "type" in call(refusing(), "/chat/completions", SCRIPT_NAME="/v1").json["error"]
    assert "type" in call(refusing(), CHAT, SCRIPT_NAME="/gateway").json["error"]


def test_a_head_request_gets_no_body() -> None:
    """HEAD is refused with the headers alone."""
    answer = call(refusing(), REQUEST_METHOD="HEAD")
    assert (answer.status, answer.body) == (403, b"")


def test_a_refusal_that_must_not_be_retried_says_so() -> None:
    """`x-should-retry: false` stands where the client's retry could bill twice."""
    assert call(refusing("upstream_timeout", retryable=False)).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in call(refusing()).headers


def test_nobody_is_to_sleep_for_hours() -> None:
    """Anthropic's SDK waits as long as `Retry-After` says, so that it is told not to."""
    app = RateLimiter(Inner(), ["1/day", "5/s"], by="global")
    call(app)
    answer = call(app)
    assert int(answer.headers["Retry-After"]) > 3600
    assert answer.headers["x-should-retry"] == "false"
    soon = RateLimiter(Inner(), "1/min", by="global", counters=MemoryCounters(clock=Clock()))
    call(soon)
    assert "x-should-retry" not in call(soon).headers


def test_anthropics_sdk_finds_the_requests_id() -> None:
    """It looks in a header of its own name."""
    answer = call(refusing(), "/v1/messages")
    assert answer.headers["request-id"] == answer.headers["X-Request-Id"]
    assert "request-id" not in call(refusing(), CHAT).headers


def test_a_sane_request_id_is_kept() -> None:
    """The client's id is in the refusal, and in the environ for all layers."""
    answer = call(refusing(), HTTP_X_REQUEST_ID="abc-123_x.y")
    assert answer.headers["X-Request-Id"] == "abc-123_x.y" == answer.environ["aigw.request_id"]


@pytest.mark.parametrize("id_", ["x" * 10_000, "", " ", "a b", "a\r\nb", "é", '"', "-x"])
def test_another_request_id_is_replaced(id_: str, caplog: pytest.LogCaptureFixture) -> None:
    """HDR-5: an id that is long, odd or empty gives way to a new one and is in no log."""
    answer = call(refusing(), HTTP_X_REQUEST_ID=id_)
    assert answer.headers["X-Request-Id"].startswith("req_")
    assert id_ not in caplog.text or not id_.strip()


def test_request_ids_are_unique() -> None:
    """A thousand requests have a thousand ids."""
    assert len({new_request_id() for _ in range(1000)}) == 1000


def test_secrets_of_the_process_are_taken_out() -> None:
    """What a server copies of our variables into the environ is gone behind any layer."""
    from aigw_middleware import HeaderRewriter

    inner = Inner()
    leaked = {"OPENAI_API_KEY": "sk-1", "AIGW_SECRET": "s", "AIGW_ADMIN_TOKEN": "t"}
    call(HeaderRewriter(inner), HTTP_PROXY="http://evil", **leaked)
    assert not {*leaked, "HTTP_PROXY"} & set(inner.environs[0])


class Watched(BytesIO):
    """A body that counts what was read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


@pytest.mark.parametrize(
    ("length", "headers", "taken"),
    [
        pytest.param(1000, {}, 1000, id="a small body"),
        pytest.param(200_000, {}, 65_536, id="64 KiB of a large one"),
        pytest.param(1000, {"HTTP_EXPECT": "100-continue"}, 0, id="not under Expect"),
        pytest.param(0, {}, 0, id="none"),
    ],
)
def test_an_unread_body_is_read_away(length: int, headers: Any, taken: int) -> None:
    """A refusal reads up to 64 KiB of a body that nobody has read, so that it arrives."""
    body = Watched(b"x" * length)
    environ = make_environ(CHAT, body=b"", CONTENT_LENGTH=str(length), **headers)
    environ["wsgi.input"] = body
    send(refusing(), environ)
    assert body.taken == taken


def test_a_broken_body_does_not_hinder_a_refusal() -> None:
    """An input that raises while it is read away changes nothing."""

    class Broken(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("gone")

    environ = make_environ(CHAT, body=b"xx")
    environ["wsgi.input"] = Broken()
    assert send(refusing(), environ).status == 403


def test_retry_after_is_whole_seconds_rounded_up() -> None:
    """RFC 9110 §10.2.3: never earlier than it would be let in."""
    assert Denial("rate_limit_exceeded", "x").with_retry_after(1.01).headers == (
        ("Retry-After", "2"),
    )
    assert Denial("rate_limit_exceeded", "x").with_retry_after(0).headers == (("Retry-After", "1"),)
