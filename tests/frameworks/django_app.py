"""The app in Django. A process has one Django: it is set up when this module is first imported."""

from __future__ import annotations

import json
from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST, require_safe

from .probe import FILE, FILES, chunks, look, lowered

if not settings.configured:
    settings.configure(
        SECRET_KEY="a secret of the tests",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        LOGGING_CONFIG=None,
    )
    django.setup()


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    look(request.environ)
    return HttpResponse("hello")


@require_safe
def set_cookies(request: HttpRequest) -> HttpResponse:
    response = HttpResponse("set")
    response.set_cookie("session", "s1", httponly=True)
    response.set_cookie("theme", "dark", samesite="Lax")
    return response


@require_safe
def cookies(request: HttpRequest) -> HttpResponse:
    return JsonResponse(request.COOKIES)


@require_safe
def headers(request: HttpRequest) -> HttpResponse:
    look(request.environ)
    return JsonResponse(lowered(request.headers))


@require_safe
def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(chunks(look(request.environ)), content_type="text/plain")


@require_safe
def download(request: HttpRequest) -> FileResponse:
    return FileResponse((FILES / FILE).open("rb"), as_attachment=True)


@require_safe
def item(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(f"item {number}")


@require_safe
def link(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.build_absolute_uri(reverse("item", kwargs={"number": 7})))


@require_safe
def boom(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("boom")


@require_POST
def form(request: HttpRequest) -> HttpResponse:
    return JsonResponse(request.POST.dict())


@require_POST
def json_body(request: HttpRequest) -> HttpResponse:
    return JsonResponse(json.loads(request.body))


urlpatterns: list[Any] = [
    path("", home),
    path("cookies/set", set_cookies),
    path("cookies", cookies),
    path("headers", headers),
    path("stream", stream),
    path("files/report.bin", download),
    path("items/<int:number>", item, name="item"),
    path("link", link),
    path("boom", boom),
    path("form", form),
    path("json", json_body),
]

application = get_wsgi_application()
