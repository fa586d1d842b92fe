"""The app in Bottle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import bottle
from bottle import request, response

from .probe import FILE, FILES, chunks, look, lowered

application = bottle.Bottle()


@application.hook("before_request")
def _look() -> None:
    look(request.environ)


@application.get("/")
def home() -> str:
    return "hello"


@application.get("/cookies/set")
def set_cookies() -> str:
    response.set_cookie("session", "s1", httponly=True)
    response.set_cookie("theme", "dark", samesite="Lax")
    return "set"


@application.get("/cookies")
def cookies() -> dict[str, str]:
    return dict(request.cookies)


@application.get("/headers")
def headers() -> dict[str, str]:
    return lowered(request.headers)


@application.get("/stream")
def stream() -> Iterator[bytes]:
    response.content_type = "text/plain"
    return chunks(look(request.environ))


@application.get("/files/report.bin")
def download() -> Any:
    return bottle.static_file(FILE, root=FILES, download=True)


@application.get("/items/<number:int>", name="item")
def item(number: int) -> str:
    return f"item {number}"


@application.get("/link")
def link() -> str:
    return urljoin(request.url, application.get_url("item", number=7))


@application.get("/boom")
def boom() -> Any:
    raise RuntimeError("boom")


@application.post("/form")
def form() -> dict[str, str]:
    return dict(request.forms.decode())  # from Latin-1


@application.post("/json")
def json_body() -> Any:
    return request.json
