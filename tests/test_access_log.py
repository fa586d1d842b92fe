"""`AccessLog`: one line a request, true in every way that an answer can end."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from aigw_middleware import (
    AccessLog,
    IPAllowlist,
    KeyAuth,
    Provider,
    RateLimiter,
    StaticKeys,
    UpstreamForwarder,
    Usage,
    open_store,
    stack,
)

from .support import CHAT, Inner, RawRequest, answering, call, in_child, make_environ, raw_provider

FIELDS = [
    "time", "request_id", "key_id", "client_ip", "method", "path", "provider", "model", "attempts",
    "status", "code", "gate", "bytes_in", "bytes_out", "input_tokens", "output_tokens", "cost",
    "duration", "first_byte", "overhead", "end",
]  # fmt: skip
BODY = json.dumps({"model": "gpt-4o-mini", "messages": []}).encode()
USAGE = {"prompt_tokens": 1000, "completion_tokens": 500}
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def whole(document: Any) -> bytes:
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Log:
    """An AccessLog around `app`, and the lines that it wrote."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.file = io.StringIO()
        self.app = AccessLog(app, self.file, **options)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.getvalue().splitlines()]


def test_a_line_tells_everything() -> None:
    """Every field of the contract, of a request that went through a whole gateway."""
    with raw_provider(answering(whole({"usage": USAGE}))) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        log = Log(
            stack(
                UpstreamForwarder(upstream=upstream),
                partial(KeyAuth, keys=StaticKeys({"ci": "s3cret-s3cret"})),
            )
        )
        answer = call(
            log.app, CHAT, body=BODY, HTTP_X_API_KEY="s3cret-s3cret", QUERY_STRING="key=s3cret"
        )
    (line,) = log.lines
    assert list(line) == FIELDS
    assert line["time"].endswith("Z")
    assert line["request_id"] == answer.environ["aigw.request_id"]
    told = {name: line[name] for name in FIELDS if name not in ("time", "request_id")}
    duration, first, overhead = (told.pop(n) for n in ("duration", "first_byte", "overhead"))
    assert told == {
        "key_id": "ci", "client_ip": "192.0.2.7", "method": "POST", "path": CHAT,
        "provider": "openai", "model": "gpt-4o-mini", "attempts": 1, "status": 200, "code": None,
        "gate": None, "bytes_in": len(BODY), "bytes_out": len(answer.body), "input_tokens": 1000,
        "output_tokens": 500, "cost": 0.00045, "end": "done",
    }  # fmt: skip
    assert 0 < overhead <= first <= duration
    assert "s3cret" not in log.file.getvalue()


def test_a_refusal_names_its_gate_and_code() -> None:
    """Who refused and why; it ended as it should."""
    log = Log(stack(Inner(), partial(KeyAuth, keys=StaticKeys({"ci": "x"}))))
    call(log.app, CHAT)
    (line,) = log.lines
    assert (line["status"], line["code"], line["gate"], line["end"]) == (
        401, "invalid_api_key", "KeyAuth", "done",
    )  # fmt: skip
    address = Log(IPAllowlist(Inner(), ["203.0.113.1"]))
    call(address.app)
    assert address.lines[0]["gate"] == "IPAllowlist"


def failing(error: BaseException) -> Callable[..., Iterator[bytes]]:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"x"
        raise error

    return app


def test_an_app_that_raises_is_logged() -> None:
    """At once, and in mid-answer; the error goes on to the server."""

    def at_once(environ: Any, start_response: Any) -> Any:
        raise RuntimeError("no")

    for app in (at_once, failing(RuntimeError("no"))):
        log = Log(app)
        with pytest.raises(RuntimeError, match="no"):
            list(log.app(make_environ(), lambda *a: None))
        assert [line["end"] for line in log.lines] == ["upstream_broke"]


def ended(provider_bytes: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Stream an answer of a provider to its end, whatever that is; return its line."""
    with raw_provider(provider_bytes) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        log = Log(UpstreamForwarder(upstream=upstream, **options))
        body: Any = log.app(make_environ(CHAT, body=BODY), lambda *a: None)
        try:
            with suppress(Exception):  # what it is, is told by the line
                list(body)
        finally:
            body.close()
    (line,) = log.lines
    return line


def test_how_an_answer_ended() -> None:
    """Broken off, or silent for too long."""
    event = b'data: {"choices": []}\n\n'
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    assert ended(answering(STREAM + chunk))["end"] == "upstream_broke"
    assert ended(answering(STREAM + chunk + b"0\r\n\r\n"))["end"] == "done"

    def silent(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + chunk)
        connection.recv(1)

    assert ended(silent, idle_timeout=0.05)["end"] == "timeout"


def test_a_client_that_left() -> None:
    """Closed before its end."""
    log = Log(Inner(body=(b"1", b"2")))
    body: Any = log.app(make_environ(), lambda *a: None)
    next(body)
    body.close()
    body.close()
    (line,) = log.lines
    assert (line["end"], line["bytes_out"]) == ("client_left", 1)


def test_a_key_that_was_revoked_and_a_budget_that_was_spent(tmp_path: Path) -> None:
    """What ended a stream from our side has its own word."""
    store = open_store(f"sqlite:///{tmp_path}/aigw.db")
    key, token = store.keys.create()

    def endless(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        while True:
            environ["aigw.usage"] = Usage(0, 50)
            yield b"data: 1\n\n"

    log = Log(KeyAuth(endless, store.keys))
    body: Any = log.app(make_environ(HTTP_X_API_KEY=token), lambda *a: None)
    next(body)
    store.keys.delete(key.id)
    with pytest.raises(Exception, match="revoked"):
        list(body)
    body.close()
    budget = Log(RateLimiter(endless, "10 output_tokens/min", by="global"))
    call(budget.app)
    assert [line["end"] for line in log.lines + budget.lines] == ["revoked", "budget"]


def test_a_list_is_logged_although_nobody_closes_it() -> None:
    """Some servers never do."""
    log = Log(lambda e, s: (s("200 OK", []), [b"ab", b"c"])[1])
    assert log.app(make_environ(), lambda *a: None) == [b"ab", b"c"]
    assert log.lines[0]["bytes_out"] == 3


def test_a_head_that_came_too_late_is_none() -> None:
    """An error behind the first bytes: the client has its 200, and that is what is told."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"1"
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start_response("500 X", [("Content-Type", "text/plain")], sys.exc_info())

    class Sent(Exception):
        """As a server raises what it is given once the head has gone."""

    def respond(status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info:
            raise Sent

    log = Log(app)
    body: Any = log.app(make_environ(), respond)
    assert next(body) == b"1"
    with pytest.raises(Sent):
        next(body)
    body.close()
    assert [line["status"] for line in log.lines] == [200]


def test_of_a_file_that_the_server_sends_nobody_knows_how_much_was_sent() -> None:
    """`wsgi.file_wrapper`: the line is written before, so that it claims no bytes."""
    path = Path(__file__)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return FileWrapper(path.open("rb"))

    log = Log(app)
    answer = call(log.app, **{"wsgi.file_wrapper": FileWrapper})
    assert answer.body == path.read_bytes()
    assert log.lines[0]["bytes_out"] is None


@pytest.mark.parametrize(
    ("path", "shown"), [("/caf\xc3\xa9", "/caf\xe9"), ("/caf\xe9", "/caf\\xe9")]
)
def test_a_path_is_shown_as_it_is_read(path: str, shown: str) -> None:
    """The environ has its bytes as Latin-1; what is no UTF-8 is told byte by byte."""
    log = Log(Inner())
    call(log.app, path)
    assert log.lines[0]["path"] == shown


# --- where it goes


def test_a_file_that_somebody_has_closed_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """The line is lost, and that is said."""
    file = io.StringIO()
    app = AccessLog(Inner(), file)
    file.close()
    assert call(app).status == 200
    assert "is lost" in caplog.text


def test_a_path_is_appended_to_and_opened_anew(tmp_path: Path) -> None:
    """Several processes share it, and a rotation loses no line; it is for its owner alone."""
    path = tmp_path / "access.log"
    app = AccessLog(Inner(), path)
    call(app)
    assert in_child(lambda: call(app).status == 200)
    path.rename(tmp_path / "access.log.1")
    call(app)
    assert len((tmp_path / "access.log.1").read_text().splitlines()) == 2
    assert len(path.read_text().splitlines()) == 1
    assert path.stat().st_mode & 0o077 == 0


def test_lines_of_many_threads_are_whole(tmp_path: Path) -> None:
    """No line is torn by another."""
    path = tmp_path / "access.log"
    app = AccessLog(Inner(), str(path))
    threads = [threading.Thread(target=lambda: [call(app) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 400


def test_a_logger_and_standard_output(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line is the message of a logger, or a line on standard output."""
    with caplog.at_level(logging.INFO):
        call(AccessLog(Inner(), logging.getLogger("mine")))
    assert json.loads(caplog.records[-1].getMessage())["status"] == 200
    call(AccessLog(Inner()))
    assert json.loads(capsys.readouterr().out)["status"] == 200


def test_text_has_one_line_whatever_a_client_sends() -> None:
    """`name=value` pairs, in which nothing breaks a line (CWE-117)."""
    log = Log(Inner(), format="text")
    call(log.app, "/a\nb \x1b[31m")
    (line,) = log.file.getvalue().splitlines()
    assert 'path="/a\\nb \\u001b[31m"' in line
    assert "status=200" in line


def test_a_full_disk_loses_a_line_and_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be written is said, and the client has its answer."""

    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    assert call(AccessLog(Inner(), Full())).status == 200
    assert "lost" in caplog.text


@pytest.mark.parametrize(
    ("options", "named"),
    [({"destination": 5}, "destination"), ({"destination": "/no/such/dir/x"}, "destination"),
     ({"format": "xml"}, "format")],
)  # fmt: skip
def test_wrong_options_are_named(options: Any, named: str) -> None:
    """A wrong option is a ValueError when it is built."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        AccessLog(Inner(), **options)


def test_combined_has_the_form_that_log_readers_know() -> None:
    """Apache's combined form; the key's id for the user, no query, no line or quote broken."""
    lines = io.StringIO()
    app = AccessLog(Inner(), lines, format="combined")
    agent, referer = 'x" "\n- evil', "http://h/p?secret=1"
    call(app, "/a", QUERY_STRING="k=v", HTTP_USER_AGENT=agent, HTTP_REFERER=referer)
    pattern = (
        r"192\.0\.2\.7 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\] "
        r'"GET /a HTTP/1\.[01]" 200 5 "http://h/p" "x\\" \\"\\n- evil"\n'
    )
    assert re.fullmatch(pattern, lines.getvalue())
