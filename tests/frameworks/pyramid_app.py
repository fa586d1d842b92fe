"""The app in Pyramid."""

from __future__ import annotations

import warnings
from typing import Any

from .probe import FILE, FILES, chunks, look, lowered

with warnings.catch_warnings():
    # WebOb imports `cgi` and Pyramid `pkg_resources`, which warn of their end.
    warnings.simplefilter("ignore")
    from pyramid.config import Configurator
    from pyramid.request import Request
    from pyramid.response import FileResponse, Response


def home(request: Request) -> Response:
    look(request.environ)
    return Response("hello")


def set_cookies(request: Request) -> Response:
    response = Response("set")
    response.set_cookie("session", "s1", httponly=True)
    response.set_cookie("theme", "dark", samesite="Lax")
    return response


def cookies(request: Request) -> Response:
    return Response(json=dict(request.cookies))


def headers(request: Request) -> Response:
    look(request.environ)
    return Response(json=lowered(request.headers))


def stream(request: Request) -> Response:
    return Response(app_iter=chunks(look(request.environ)), content_type="text/plain")


def download(request: Request) -> FileResponse:
    response = FileResponse(FILES / FILE, request=request)
    response.content_disposition = f'attachment; filename="{FILE}"'
    return response


def item(request: Request) -> Response:
    return Response(f"item {request.matchdict['number']}")


def link(request: Request) -> Response:
    return Response(request.route_url("item", number=7))


def boom(request: Request) -> Response:
    raise RuntimeError("boom")


def error_page(error: Exception, request: Request) -> Response:
    return Response("Something went wrong.", status=500)


def form(request: Request) -> Response:
    return Response(json=dict(request.POST))


def json_body(request: Request) -> Response:
    return Response(json=request.json_body)


ROUTES = [
    ("home", "/", home, "GET"),
    ("set_cookies", "/cookies/set", set_cookies, "GET"),
    ("cookies", "/cookies", cookies, "GET"),
    ("headers", "/headers", headers, "GET"),
    ("stream", "/stream", stream, "GET"),
    ("download", "/files/report.bin", download, "GET"),
    ("item", "/items/{number}", item, "GET"),
    ("link", "/link", link, "GET"),
    ("boom", "/boom", boom, "GET"),
    ("form", "/form", form, "POST"),
    ("json", "/json", json_body, "POST"),
]


def _application() -> Any:
    with Configurator() as config:
        for name, pattern, view, method in ROUTES:
            config.add_route(name, pattern, request_method=("HEAD", "GET", "POST"))
            config.add_view(view, route_name=name, request_method=method)
        config.add_exception_view(error_page, context=Exception)
        return config.make_wsgi_app()


application = _application()
