"""The app without a framework: PEP 3333 and the standard library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.util import FileWrapper, application_uri

from .probe import FILE, FILES, chunks, look, lowered

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
Answer = tuple[Headers, Iterable[bytes]]


def text(body: str, *headers: tuple[str, str]) -> Answer:
    data = body.encode()
    length = ("Content-Length", str(len(data)))
    return [("Content-Type", "text/plain; charset=utf-8"), length, *headers], [data]


def document(value: Any) -> Answer:
    headers, body = text(json.dumps(value))
    return [("Content-Type", "application/json"), *headers[1:]], body


def home(environ: Environ) -> Answer:
    return text("hello")


def set_cookies(environ: Environ) -> Answer:
    return text(
        "set",
        ("Set-Cookie", "session=s1; HttpOnly; Path=/"),
        ("Set-Cookie", "theme=dark; Path=/; SameSite=Lax"),
    )


def cookies(environ: Environ) -> Answer:
    jar = SimpleCookie(environ.get("HTTP_COOKIE", ""))
    return document({name: morsel.value for name, morsel in jar.items()})


def headers(environ: Environ) -> Answer:
    sent = {name[5:]: value for name, value in environ.items() if name.startswith("HTTP_")}
    return document(lowered(sent))


def stream(environ: Environ) -> Answer:
    return [("Content-Type", "text/plain")], chunks(look(environ))


def download(environ: Environ) -> Answer:
    wrap = environ.get("wsgi.file_wrapper", FileWrapper)
    return [
        ("Content-Type", "application/octet-stream"),
        ("Content-Disposition", f'attachment; filename="{FILE}"'),
        ("Content-Length", str((FILES / FILE).stat().st_size)),
    ], wrap((FILES / FILE).open("rb"), 128)


def item(environ: Environ) -> Answer:
    return text("item " + environ["PATH_INFO"].rpartition("/")[2])


def link(environ: Environ) -> Answer:
    return text(application_uri(environ).rstrip("/") + "/items/7")


def boom(environ: Environ) -> Answer:
    raise RuntimeError("boom")


def form(environ: Environ) -> Answer:
    return document(dict(parse_qsl(_body(environ).decode())))


def json_body(environ: Environ) -> Answer:
    return document(json.loads(_body(environ)))


def _body(environ: Environ) -> bytes:
    data: bytes = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return data


VIEWS: dict[str, Callable[[Environ], Answer]] = {
    "/": home,
    "/cookies/set": set_cookies,
    "/cookies": cookies,
    "/headers": headers,
    "/stream": stream,
    "/files/report.bin": download,
    "/items/7": item,
    "/link": link,
    "/boom": boom,
    "/form": form,
    "/json": json_body,
}


def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
    look(environ)
    view = VIEWS.get(environ["PATH_INFO"])
    if view is None:
        return _start(start_response, "404 Not Found", text("no such page"), environ)
    try:
        answer = view(environ)
    except RuntimeError:
        # What was begun is taken back, as PEP 3333 allows as long as no byte has gone out.
        start_response("200 OK", [("Content-Type", "text/plain")])
        failed = text("Something went wrong.")
        return _start(start_response, "500 Internal Server Error", failed, environ, sys.exc_info())
    return _start(start_response, "200 OK", answer, environ)


def _start(
    start_response: Any, status: str, answer: Answer, environ: Environ, exc_info: Any = None
) -> Iterable[bytes]:
    headers, body = answer
    start_response(status, headers, exc_info)
    if environ["REQUEST_METHOD"] != "HEAD":
        return body
    getattr(body, "close", lambda: None)()
    return []
