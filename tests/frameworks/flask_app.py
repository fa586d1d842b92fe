"""The app in Flask."""

from __future__ import annotations

from typing import Any

import flask
from flask import request

from .probe import FILE, FILES, chunks, look, lowered

app = flask.Flask(__name__)
app.before_request(lambda: look(request.environ) and None)


@app.get("/")
def home() -> str:
    return "hello"


@app.get("/cookies/set")
def set_cookies() -> flask.Response:
    response = flask.make_response("set")
    response.set_cookie("session", "s1", httponly=True)
    response.set_cookie("theme", "dark", samesite="Lax")
    return response


@app.get("/cookies")
def cookies() -> dict[str, str]:
    return dict(request.cookies)


@app.get("/headers")
def headers() -> dict[str, str]:
    return lowered(request.headers)


@app.get("/stream")
def stream() -> flask.Response:
    return flask.Response(chunks(look(request.environ)), mimetype="text/plain")


@app.get("/files/report.bin")
def download() -> flask.Response:
    return flask.send_file(FILES / FILE, as_attachment=True)


@app.get("/items/<int:number>")
def item(number: int) -> str:
    return f"item {number}"


@app.get("/link")
def link() -> str:
    return flask.url_for("item", number=7, _external=True)


@app.get("/boom")
def boom() -> Any:
    raise RuntimeError("boom")


@app.post("/form")
def form() -> dict[str, str]:
    return request.form.to_dict()


@app.post("/json")
def json_body() -> Any:
    return flask.jsonify(request.get_json())


application = app.wsgi_app
