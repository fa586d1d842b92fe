"""A Flask app with pages of its own, and an AI gateway in front of /v1.

Visitors read the pages and sign in with a cookie. One route asks the provider itself. Programs
that hold a gateway key reach the provider through /v1; no visitor and no program ever holds the
provider's key.
"""

import os
from functools import partial

import requests
from flask import Flask, abort, redirect, render_template_string, request, session, url_for
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from aigw_middleware import KeyAuth, Provider, RateLimiter, UpstreamForwarder, open_store, stack

PROVIDER_URL = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
PROVIDER_KEY = os.environ["OPENAI_API_KEY"]
MODEL = os.environ.get("SUMMARY_MODEL", "gpt-4o-mini")

app = Flask(__name__)
app.secret_key = os.environ["SECRET_KEY"]
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"

# The app's own pages. They know nothing of the gateway.

HOME = """
<!doctype html>
<title>Notes</title>
<h1>Notes</h1>
{% if name %}
<p>Hello, {{ name }}!</p>
<form method="post" action="{{ url_for('summary') }}">
  <textarea name="text" required></textarea> <button>Sum it up</button>
</form>
{% else %}
<form method="post" action="{{ url_for('login') }}">
  <input name="name" placeholder="Your name" required> <button>Sign in</button>
</form>
{% endif %}
"""


@app.get("/")
def home():
    return render_template_string(HOME, name=session.get("name"))


@app.post("/login")
def login():
    session["name"] = request.form["name"]  # a real app asks for a password here
    return redirect(url_for("home"))


@app.post("/summary")
def summary():
    """Ask the provider directly, with the provider's key, for a visitor who has signed in."""
    if "name" not in session:
        abort(401)
    answer = requests.post(
        f"{PROVIDER_URL}/chat/completions",
        headers={"Authorization": f"Bearer {PROVIDER_KEY}"},
        json={
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "Sum the text up in one sentence."},
                {"role": "user", "content": request.form["text"]},
            ],
        },
        timeout=60,
    )
    if not answer.ok:
        abort(502)
    return {"summary": answer.json()["choices"][0]["message"]["content"]}


# The gateway. Whatever is under /v1 meets its layers first and never reaches the routes above.

store = open_store(os.environ.get("AIGW_STORE", "sqlite:///aigw.db"))
gateway = stack(
    UpstreamForwarder(
        upstream=Provider("openai", base_url=PROVIDER_URL, api_keys=[PROVIDER_KEY]),
    ),
    partial(KeyAuth, keys=store.keys),
    partial(RateLimiter, limits="100/min"),
)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/v1": gateway})
