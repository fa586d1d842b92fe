"""Each framework's app does the same in the layers as without them, but for what layers do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.cookies import SimpleCookie
from importlib import import_module
from typing import Any
from urllib.parse import urlencode
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigw_middleware import (
    HeaderRewriter,
    IPAllowlist,
    KeyAuth,
    RateLimiter,
    StaticKeys,
    stack,
)

from ..support import Answer, call, make_environ
from .probe import CHUNKS, FILE, FILES, PROBE, Probe

TOKEN = "gateway-key-0123456789"
CREDENTIALS = {
    "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    "HTTP_X_API_KEY": TOKEN,
    "HTTP_API_KEY": TOKEN,
    "HTTP_X_GOOG_API_KEY": TOKEN,
}
KEY = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
ADDED = {
    "RateLimit-Policy",
    "RateLimit",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "X-Served-By",
}
DOWNLOAD = f"/files/{FILE}"
CONTENT = (FILES / FILE).read_bytes()
JSON = b'{"name": "Zo\\u00eb", "tags": ["a", "b"], "deep": {"n": 1}}'


@pytest.fixture(params=["bare", "bottle", "django", "falcon", "flask", "pyramid"])
def app(request: pytest.FixtureRequest) -> Any:
    """Return the app in one framework."""
    return import_module(f".{request.param}_app", __package__).application


def wrap(app: Any) -> Any:
    return stack(
        app,
        partial(IPAllowlist, allow=["192.0.2.0/24"]),
        partial(KeyAuth, keys=StaticKeys({"web": TOKEN})),
        partial(RateLimiter, limits="100/min"),
        partial(
            HeaderRewriter,
            request={"set": {"X-Team": "search"}},
            response={"set": {"X-Served-By": "gateway"}},
        ),
    )


def ask(app: Any, path: str, **environ: Any) -> Answer:
    return call(app, path, **{PROBE: Probe()}, **environ)


def both(app: Any, path: str, **environ: Any) -> Answer:
    """Return the answer of the wrapped app, after it was found to be that of the bare one."""
    bare = ask(app, path, **environ)
    wrapped = ask(wrap(app), path, **KEY, **environ)
    assert wrapped.status == bare.status
    assert wrapped.body == bare.body
    assert {name for name, _ in wrapped.headers} >= ADDED
    assert own_headers(wrapped) == own_headers(bare)
    return wrapped


def own_headers(answer: Answer) -> Counter[tuple[str, str]]:
    """Return the headers that no layer has put there; of a date only that there is one."""
    return Counter(
        (name, "" if name == "Date" else value)
        for name, value in answer.headers
        if name not in ADDED
    )


@contextmanager
def begun(app: Any, path: str) -> Iterator[tuple[Iterator[bytes], Probe]]:
    """Call an app under wsgiref's validator; yield its chunks, which are read one by one.

    Its iterable is closed at the end, as a server does it, whether or not it was read.
    """
    probe = Probe()

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        return lambda data: None

    environ = make_environ(path, **{PROBE: probe}, **KEY)
    with closing(validator(app)(environ, start_response)) as iterable:
        yield (chunk for chunk in iterable if chunk), probe


@pytest.mark.parametrize(
    "path", ["/", "/cookies/set", "/cookies", "/stream", DOWNLOAD, "/items/7", "/link"]
)
def test_a_page_is_the_same(app: Any, path: str) -> None:
    """Status, headers and body of a page are those of the bare app."""
    answer = both(app, path)
    assert answer.status == 200
    assert answer.body


def test_cookies_are_set(app: Any) -> None:
    """Two cookies are two `Set-Cookie` headers with their attributes."""
    jar: SimpleCookie = SimpleCookie()
    for header in both(app, "/cookies/set").headers.getlist("Set-Cookie"):
        jar.load(header)
    assert {name: morsel.value for name, morsel in jar.items()} == {
        "session": "s1",
        "theme": "dark",
    }
    assert jar["session"]["httponly"]
    assert jar["theme"]["samesite"].lower() == "lax"  # Bottle writes it small


def test_cookies_are_read(app: Any) -> None:
    """A view reads the cookies that the client sent."""
    answer = both(app, "/cookies", HTTP_COOKIE="session=s1; theme=dark")
    assert answer.json == {"session": "s1", "theme": "dark"}


def test_a_stream_is_not_buffered(app: Any) -> None:
    """Each chunk of a stream can be had before the app is asked for the next one."""
    with begun(wrap(app), "/stream") as (chunks, probe):
        for number, wanted in enumerate(CHUNKS, 1):
            assert next(chunks) == wanted
            assert probe.produced == list(CHUNKS[:number])
        assert list(chunks) == []
    assert probe.ended == 1


def test_a_file_is_downloaded(app: Any) -> None:
    """A download has its bytes, its length and its name."""
    answer = both(app, DOWNLOAD)
    assert answer.body == CONTENT
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert FILE in answer.headers["Content-Disposition"]


class ServersWrapper(FileWrapper):
    """What a server offers as `wsgi.file_wrapper` and recognises when it comes back."""


def test_a_file_reaches_the_server_in_its_own_wrapper(app: Any) -> None:
    """The server gets its `wsgi.file_wrapper` back itself, so that it can use `sendfile`."""
    kinds = []
    for each in (app, wrap(app)):
        environ = make_environ(DOWNLOAD, **{PROBE: Probe()}, **KEY)
        environ["wsgi.file_wrapper"] = ServersWrapper
        iterable = each(environ, lambda status, headers, exc_info=None: lambda data: None)
        kinds.append(type(iterable))
        assert b"".join(iterable) == CONTENT
        iterable.close()
    assert kinds == [ServersWrapper, ServersWrapper]


@pytest.mark.parametrize("script_name", ["", "/app", "/app/v2"])
def test_a_link_leads_to_its_page(app: Any, script_name: str) -> None:
    """A URL made by the framework keeps the mount point (SCRIPT_NAME)."""
    answer = both(app, "/link", SCRIPT_NAME=script_name)
    assert answer.body.decode() == f"http://127.0.0.1{script_name}/items/7"
    assert both(app, "/items/7", SCRIPT_NAME=script_name).body == b"item 7"


def test_the_page_for_what_is_not_there_is_the_apps_own(app: Any) -> None:
    """A 404 is the framework's page, not a refusal of ours."""
    answer = both(app, "/nothing/here")
    assert answer.status == 404
    assert answer.code is None


def test_the_page_for_an_exception_is_the_apps_own(app: Any) -> None:
    """An exception in a view is the framework's 500, whichever way it makes one."""
    answer = both(app, "/boom")
    assert answer.status == 500
    assert answer.code is None
    assert TOKEN.encode() not in answer.body


def test_a_form_is_read(app: Any) -> None:
    """A view reads the fields of a posted form."""
    fields = {"name": "Zoë & Co", "size": "10"}
    answer = both(
        app,
        "/form",
        body=urlencode(fields).encode(),
        CONTENT_TYPE="application/x-www-form-urlencoded",
    )
    assert answer.json == fields


def test_json_is_read(app: Any) -> None:
    """A view reads a posted JSON document."""
    answer = both(app, "/json", body=JSON, CONTENT_TYPE="application/json")
    assert answer.json == {"name": "Zoë", "tags": ["a", "b"], "deep": {"n": 1}}


@pytest.mark.parametrize("path", ["/", DOWNLOAD, "/stream", "/nothing/here"])
def test_head_is_the_same(app: Any, path: str) -> None:
    """HEAD has the status and the headers of the bare app."""
    both(app, path, REQUEST_METHOD="HEAD")


class Counting:
    """Puts a count of `close()` calls around an app's iterable."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.closed = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        return _Counted(self, self.app(environ, start_response))


class _Counted:
    def __init__(self, counting: Counting, iterable: Any) -> None:
        self.counting = counting
        self.iterable = iterable

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.iterable)

    def close(self) -> None:
        self.counting.closed += 1
        getattr(self.iterable, "close", lambda: None)()


@pytest.mark.parametrize("path", ["/", "/stream", DOWNLOAD, "/nothing/here", "/boom"])
def test_an_answer_that_was_read_is_closed(app: Any, path: str) -> None:
    """`close()` of the app's iterable is called once."""
    counting = Counting(app)
    ask(wrap(counting), path, **KEY)
    assert counting.closed == 1


@pytest.mark.parametrize(
    "read", [pytest.param(0, id="before the first chunk"), pytest.param(1, id="after it")]
)
def test_an_answer_that_the_client_left_is_closed(app: Any, read: int) -> None:
    """`close()` reaches the app when a stream is given up, and the generator of a view ends."""
    counting = Counting(app)
    with begun(wrap(counting), "/stream") as (chunks, probe):
        for _ in range(read):
            next(chunks)
    assert counting.closed == 1
    assert probe.produced == list(CHUNKS[: len(probe.produced)]) != list(CHUNKS)
    assert probe.ended == (1 if probe.produced else 0)  # what has not begun has nothing to end


def test_a_view_sees_no_credential(app: Any) -> None:
    """The headers that a framework shows are the client's, without credentials, with ours."""
    sent = {"HTTP_X_CLIENT": "kept", "HTTP_COOKIE": "session=s1"}
    bare = ask(app, "/headers", **CREDENTIALS, **sent).json
    assert list(bare.values()).count(TOKEN) == 3
    wrapped = ask(wrap(app), "/headers", **CREDENTIALS, **sent)
    gone = {"authorization", "x-api-key", "api-key", "x-goog-api-key"}
    kept = {name: value for name, value in bare.items() if name not in gone}
    assert wrapped.json == kept | {"x-team": "search"}


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_a_view_sees_whose_request_it_is(app: Any, credential: str) -> None:
    """Whichever header the key came in, a view has its record and nowhere the token."""
    answer = ask(wrap(app), "/headers", **{credential: CREDENTIALS[credential]})
    seen = answer.environ[PROBE].environ
    assert (seen["aigw.key"].id, seen["aigw.key"].name) == ("web", "web")
    assert [name for name, value in seen.items() if TOKEN in repr(value)] == []
    assert not CREDENTIALS.keys() & seen.keys()


@pytest.mark.parametrize("path", ["/", "/json", "/nothing/here"])
def test_without_a_key_no_view_is_reached(app: Any, path: str) -> None:
    """A request without a key is refused, and the app is never called."""
    counting = Counting(app)
    answer = ask(wrap(counting), path, body=JSON, CONTENT_TYPE="application/json")
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert counting.closed == 0
    assert answer.environ[PROBE].environ == {}


ODD = [
    "\xff",
    "\xc0\xaf",
    "\xed\xa0\x80",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "/",
    "//",
    "/.",
    "./",
    "\\",
    ";x",
    " ",
]


def reached(app: Any, script_name: str, path_info: str) -> bool:
    """Whether a request by that path reaches the view; as no validator would let it through."""
    started: list[str] = []
    environ = make_environ("/", **{PROBE: Probe()})
    environ |= {"SCRIPT_NAME": script_name, "PATH_INFO": path_info, "HTTP_COOKIE": "session=s1"}

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.append(status)
        return lambda data: None

    try:
        chunks = app(environ, start_response)
    except UnicodeError:  # some apps break on bytes that are no text
        return False
    body = b"".join(chunks)
    if hasattr(chunks, "close"):
        chunks.close()
    return started[-1].startswith("200") and b"s1" in body


@given(
    odd=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(ODD)), max_size=2),
    cut=st.integers(0, 3),
    bare_slash=st.booleans(),
    capital=st.booleans(),
    script=st.sampled_from(["", "/a", "/cookies", "/static"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_spelling_of_a_guarded_path_reaches_its_view(
    app: Any, odd: list[tuple[int, str]], cut: int, bare_slash: bool, capital: bool, script: str
) -> None:
    """Whatever path a framework takes for `/cookies`, the layers do too, however it is mounted."""
    path = "/COOKIES" if capital else "/cookies"
    for position, letters in odd:
        path = path[:position] + letters + path[position:]
    if bare_slash:
        path = path.removeprefix("/")
    guarded = stack(app, partial(KeyAuth, keys=StaticKeys({"web": TOKEN})), paths=["/cookies"])
    assert not reached(guarded, script, path)
    assert not reached(guarded, script + path[:cut], path[cut:])
