"""The app in Falcon, which has classes with a method a verb in the place of view functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon
from falcon import Request, Response

from .probe import FILES, chunks, look, lowered


class Looking:
    """Falcon's own middleware, around every resource."""

    def process_resource(self, req: Request, resp: Response, resource: Any, params: Any) -> None:
        look(req.env)

    def process_response(self, req: Request, resp: Response, resource: Any, ok: bool) -> None:
        if req.method == "HEAD" and resp.stream:
            resp.stream.close()  # Falcon leaves the file of a static route open


class Page:
    """A resource that is read: GET and HEAD are one responder."""

    def __init__(self, read: Callable[..., None]) -> None:
        self.read = read

    def on_get(self, req: Request, resp: Response, **params: Any) -> None:
        self.read(req, resp, **params)

    on_head = on_get


class Target:
    """A resource that is posted to."""

    def __init__(self, take: Callable[[Request, Response], None]) -> None:
        self.take = take

    def on_post(self, req: Request, resp: Response) -> None:
        self.take(req, resp)


def home(req: Request, resp: Response) -> None:
    resp.text = "hello"


def set_cookies(req: Request, resp: Response) -> None:
    resp.set_cookie("session", "s1", secure=False, http_only=True)
    resp.set_cookie("theme", "dark", secure=False, same_site="Lax")
    resp.text = "set"


def cookies(req: Request, resp: Response) -> None:
    resp.media = dict(req.cookies)


def headers(req: Request, resp: Response) -> None:
    resp.media = lowered(req.headers)


def stream(req: Request, resp: Response) -> None:
    resp.content_type = "text/plain"
    resp.stream = chunks(look(req.env))


def item(req: Request, resp: Response, number: int) -> None:
    resp.text = f"item {number}"


def link(req: Request, resp: Response) -> None:
    resp.text = f"{req.prefix}/items/7"  # Falcon reverses no routes; this is what it offers


def boom(req: Request, resp: Response) -> None:
    raise RuntimeError("boom")


def form(req: Request, resp: Response) -> None:
    resp.media = req.get_media()


def json_body(req: Request, resp: Response) -> None:
    resp.media = req.get_media()


application = falcon.App(middleware=[Looking()])
application.add_static_route("/files", FILES, downloadable=True)
for _pattern, _read in {
    "/": home,
    "/cookies/set": set_cookies,
    "/cookies": cookies,
    "/headers": headers,
    "/stream": stream,
    "/items/{number:int}": item,
    "/link": link,
    "/boom": boom,
}.items():
    application.add_route(_pattern, Page(_read))
application.add_route("/form", Target(form))
application.add_route("/json", Target(json_body))
