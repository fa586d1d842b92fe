"""`stack` puts layers around an app in the order that they are named."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest

from aigw_middleware import (
    ClientAddress,
    HeaderRewriter,
    IPAllowlist,
    KeyAuth,
    Provider,
    RateLimiter,
    StaticKeys,
    UpstreamForwarder,
    stack,
)
from aigw_middleware.dialects import _meanings, spoken

from .support import Inner, call, call_oddly, make_environ

KEYS = StaticKeys({"ci": "s3cret"})
NOWHERE = "http://127.0.0.1:9"
LAYERS = {
    "ip": partial(IPAllowlist, allow=["192.0.2.0/24"]),
    "key": partial(KeyAuth, keys=KEYS),
    "rate": partial(RateLimiter, limits="1000/min"),
    "headers": partial(
        HeaderRewriter, request={"set": {"X-Team": "a"}}, response={"add": {"X-Out": "b"}}
    ),
    "forwarder": partial(UpstreamForwarder, upstream="http://127.0.0.1:9"),
}
ORDERS = list(itertools.permutations(LAYERS))


def tagging(tag: str) -> Any:
    def layer(app: Any) -> Any:
        def wrapped(environ: Any, start_response: Any) -> Any:
            environ.setdefault("tags", []).append(tag)
            return app(environ, start_response)

        return wrapped

    return layer


def test_the_first_named_layer_is_met_first() -> None:
    """A request meets the layers in the order of the arguments."""
    app = stack(Inner(), tagging("a"), tagging("b"), tagging("c"))
    assert call(app).environ["tags"] == ["a", "b", "c"]


def test_without_layers_the_app_itself_comes_back() -> None:
    """`stack(app)` is `app`."""
    inner = Inner()
    assert stack(inner) is inner


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_any_order_is_valid_wsgi_and_closes_once(order: tuple[str, ...]) -> None:
    """Each of the 120 orders passes wsgiref's validator and closes the inner iterable once."""
    inner = Inner((b"a", b"b"))
    app = stack(inner, *(LAYERS[name] for name in order))
    answer = call(app, HTTP_AUTHORIZATION="Bearer s3cret")
    assert (answer.status, answer.body, inner.closed) == (200, b"ab", 1)
    assert answer.headers["X-Out"] == "b"
    assert inner.environs[0]["HTTP_X_TEAM"] == "a"
    assert "HTTP_AUTHORIZATION" not in inner.environs[0]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_close_reaches_the_inner_app_when_the_client_leaves_early(order: tuple[str, ...]) -> None:
    """A server that closes before the first chunk closes the inner iterable exactly once."""
    inner = Inner((b"a", b"b"))
    app = stack(inner, *(LAYERS[name] for name in order))
    environ = make_environ(HTTP_AUTHORIZATION="Bearer s3cret")
    iterable = app(environ, lambda status, headers, exc_info=None: lambda data: None)
    iterable.close()
    assert inner.closed == 1


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_refusal_in_any_order_is_valid_and_never_reaches_the_app(order: tuple[str, ...]) -> None:
    """A bad key is refused in each order, in valid WSGI, and the app is not called."""
    inner = Inner()
    app = stack(inner, *(LAYERS[name] for name in order))
    answer = call(app, HTTP_AUTHORIZATION="Bearer wrong")
    assert (answer.status, answer.code, inner.calls) == (401, "invalid_api_key", 0)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_alone_is_valid_wsgi(name: str) -> None:
    """Each layer is useful alone: valid WSGI, and close() is called once."""
    inner = Inner()
    answer = call(stack(inner, LAYERS[name]), HTTP_X_API_KEY="s3cret")
    assert (answer.status, inner.closed) == (200, 1)


@pytest.mark.parametrize("name", LAYERS)
def test_an_exception_of_the_app_passes_through_every_layer(name: str) -> None:
    """A layer does not swallow what the wrapped app raises."""

    def failing(environ: Any, start_response: Any) -> Any:
        raise LookupError("from within")

    app = stack(failing, LAYERS[name])
    with pytest.raises(LookupError, match="from within"):
        app(make_environ(HTTP_X_API_KEY="s3cret"), lambda *a: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYERS)
def test_exc_info_is_handed_on(name: str) -> None:
    """A layer hands `exc_info` to the server's start_response (PEP 3333)."""
    import sys

    seen = []

    def failing(environ: Any, start_response: Any) -> Any:
        try:
            raise LookupError
        except LookupError:
            start_response("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"x"]

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        seen.append((status, exc_info and exc_info[0]))
        return lambda data: None

    stack(failing, LAYERS[name])(make_environ(HTTP_X_API_KEY="s3cret"), start_response)
    assert seen == [("500 Oops", LookupError)]


@pytest.mark.parametrize("name", ["headers", "rate", "key"])
def test_the_write_callable_is_handed_on(name: str) -> None:
    """A layer returns the server's `write`, for apps of the old form."""

    def write(data: bytes) -> None: ...

    def app(environ: Any, start_response: Any) -> Any:
        assert start_response("200 OK", []) is write
        return []

    stack(app, LAYERS[name])(make_environ(HTTP_X_API_KEY="s3cret"), lambda *a: write)


def test_an_instance_where_a_layer_belongs_says_what_to_write() -> None:
    """A built middleware given as a layer is a TypeError that shows the right form."""
    built = IPAllowlist(Inner(), allow=["10.0.0.0/8"])
    with pytest.raises(
        TypeError, match=r"layer 2 is an instance of IPAllowlist.*partial\(IPAllowlist"
    ):
        stack(Inner(), LAYERS["rate"], built)


def test_a_foreign_wsgi_app_where_a_layer_belongs_is_told_too() -> None:
    """A WSGI function takes two arguments; it is recognised without being called."""
    called = []

    def app(environ: Any, start_response: Any) -> Any:
        called.append(1)

    with pytest.raises(TypeError, match="WSGI application already"):
        stack(Inner(), app)
    assert not called


@pytest.mark.parametrize("layer", [None, "KeyAuth", 3])
def test_something_that_cannot_be_called_is_no_layer(layer: Any) -> None:
    """What is not callable is a TypeError that names its place."""
    with pytest.raises(TypeError, match="layer 1"):
        stack(Inner(), layer)


def test_a_layer_that_returns_no_app_is_told() -> None:
    """A function that forgets to return is found when the stack is built."""
    with pytest.raises(TypeError, match="returned NoneType"):
        stack(Inner(), lambda app: None)  # type: ignore[arg-type, return-value]


GUARDED = [
    pytest.param("/v1/chat/completions", True, id="below the prefix"),
    pytest.param("/v1", True, id="the prefix itself"),
    pytest.param("/v1/", True, id="the prefix with its slash"),
    pytest.param("/admin", True, id="exact"),
    pytest.param("/admin/x", False, id="below an exact path"),
    pytest.param("/", False, id="another"),
    pytest.param("/v10/x", False, id="a longer segment"),
    pytest.param("/V1/x", True, id="another case"),
    pytest.param("//v1/x", True, id="an empty segment"),
    pytest.param("/x/../v1/y", True, id="dot segments"),
    pytest.param("/x/./y", True, id="a single dot"),
    pytest.param("/x/..", True, id="dots at the end"),
    pytest.param("/x/..;/v1", True, id="dots with a parameter"),
    pytest.param("/x\\..\\v1", True, id="backslashes"),
    pytest.param("admin", True, id="no slash at its beginning"),
    pytest.param("./admin", True, id="a dot at its beginning"),
    pytest.param("", False, id="nothing"),
    pytest.param("/admin/", True, id="an exact path with a slash behind it"),
    pytest.param("/ad\xffmin", True, id="a byte that is no UTF-8"),
    pytest.param("/admin\n", True, id="a newline at the end"),
    pytest.param("/caf\xc3\xa9", False, id="letters that are UTF-8"),
    pytest.param("/files/a..b", False, id="dots within a name"),
    pytest.param("/.well-known/x", False, id="a name that begins with a dot"),
]


@pytest.mark.parametrize(("path", "guarded"), GUARDED)
def test_paths_guard_what_matches_in_any_spelling(path: str, guarded: bool) -> None:
    """`paths` guards exact paths and prefixes, and every path that could be read as another."""
    inner = Inner()
    app = stack(inner, LAYERS["key"], paths=["/v1/*", "/admin"])
    assert call_oddly(app, path).status == (401 if guarded else 200)


def test_paths_are_judged_on_the_whole_path() -> None:
    """SCRIPT_NAME counts, and so does what an app sees that routes without it."""
    app = stack(Inner(), LAYERS["key"], paths=["/v1/*"])
    assert call(app, "/chat/completions", SCRIPT_NAME="/v1").status == 401
    assert call(app, "/chat/completions", SCRIPT_NAME="/app/v1").status == 401
    assert call(app, "/v1/x", SCRIPT_NAME="/other").status == 401
    assert call(app, "/x", SCRIPT_NAME="/other").status == 200


def test_a_prefix_that_ends_within_a_segment_hides_nothing() -> None:
    """With SCRIPT_NAME=/a gunicorn makes PATH_INFO `v1/x` of `/av1/x`; Flask serves /v1/x then."""
    app = stack(Inner(), LAYERS["key"], paths=["/v1/*"])
    assert call_oddly(app, "v1/x", SCRIPT_NAME="/a").status == 401


def test_what_pyramids_traversal_reads_otherwise_is_guarded() -> None:
    """A view by its selector, and a root from a header."""
    app = stack(Inner(), LAYERS["key"], paths=["/secret", "/admin/*"])
    assert call(app, "/@@secret").status == 401
    assert call(app, "/users", HTTP_X_VHM_ROOT="/admin").status == 401
    assert call(app, "/users").status == 200


def test_a_prefix_of_a_thousand_segments_is_guarded_and_not_looked_into() -> None:
    """A client may choose SCRIPT_NAME under some proxies: it is not to cost its square."""
    script = "/a" * 4000
    app = stack(Inner(), LAYERS["key"], paths=["/v1/*"])
    assert call(app, "/x", SCRIPT_NAME=script).status == 401
    assert len(list(_meanings(script + "\xff", "/x"))) == 2
    assert spoken(make_environ("/x", SCRIPT_NAME=script + "/v1/chat")).path == "/v1/chat/x"


@pytest.mark.parametrize("path", ["/v1beta/models/g:generateContent", "/v1beta/openai/embeddings"])
def test_what_goes_by_the_layers_is_not_forwarded(path: str) -> None:
    """An AI path that `paths` does not guard reaches the app, never a provider."""
    upstream = Provider("google", base_url="http://127.0.0.1:9", api_keys=["k"])
    inner = Inner()
    for app in (UpstreamForwarder(inner, upstream), UpstreamForwarder(upstream=upstream)):
        answer = call(stack(app, LAYERS["key"], paths=["/v1/*"]), path)
        assert answer.status == (200 if app.app else 404)
    assert inner.calls == 1


def test_a_stack_around_a_guarded_one_may_have_paths_of_its_own() -> None:
    """What goes by the outer layers and is judged by an inner gate is forwarded."""
    upstream = Provider("openai", base_url="http://127.0.0.1:9", api_keys=["k"])
    inner = stack(UpstreamForwarder(upstream=upstream), LAYERS["key"])
    app = stack(inner, LAYERS["rate"], paths=["/v1/chat/*"])
    assert call(app, "/v1/models", HTTP_X_API_KEY="s3cret").code == "upstream_unreachable"


@pytest.mark.parametrize(
    "paths", [["v1/*"], ["/v1*"], ["/*/x"], ["/a/../b"], [""], [3], []], ids=repr
)
def test_wrong_paths_are_named(paths: Any) -> None:
    """A pattern that could not do what it seems to say is a ValueError."""
    with pytest.raises(ValueError, match="paths: "):
        stack(Inner(), LAYERS["key"], paths=paths)


def test_a_single_pattern_may_be_a_text() -> None:
    """`paths="/v1/*"` means the one pattern, not its letters."""
    app = stack(Inner(), LAYERS["key"], paths="/v1/*")  # type: ignore[arg-type]
    assert call(app, "/v1/x").status == 401


@pytest.mark.parametrize(
    "outer",
    [partial(RateLimiter, limits="100/s"), partial(IPAllowlist, deny=["198.51.100.1"])],
    ids=["RateLimiter", "IPAllowlist"],
)
def test_a_gate_outside_does_not_stand_in_for_the_key(outer: Any) -> None:
    """A limiter around a stack does not open the AI paths that its KeyAuth was not asked for."""
    forwarder = UpstreamForwarder(Inner(), Provider("google", api_keys=["k"], base_url=NOWHERE))
    gateway = stack(forwarder, partial(KeyAuth, keys=KEYS), paths=["/v1/*"])
    path = "/v1beta/models/g:generateContent"
    assert call(stack(gateway, outer), path, body=b"{}").body == b"inner"


def test_a_key_outside_does() -> None:
    """Behind a KeyAuth for everything, layers for some paths are only that."""
    forwarder = UpstreamForwarder(Inner(), Provider("google", api_keys=["k"], base_url=NOWHERE))
    limited = stack(forwarder, partial(RateLimiter, limits="100/s"), paths=["/v1/*"])
    app = stack(limited, partial(KeyAuth, keys=KEYS))
    answer = call(app, "/v1beta/models/g:generateContent", body=b"{}", HTTP_X_API_KEY="s3cret")
    assert answer.code == "upstream_unreachable"


def test_a_plain_proxy_hands_on_what_is_not_guarded() -> None:
    """With a URL every path goes on; those outside `paths` as they come."""
    app = stack(UpstreamForwarder(upstream=NOWHERE), partial(KeyAuth, keys=KEYS), paths=["/v1/*"])
    assert call(app, "/docs").code == "upstream_unreachable"
    assert call(app, "/v1/models").code == "invalid_api_key"


def test_a_partial_that_lacks_its_options_is_named() -> None:
    """The error says which class stands there, also for a partial."""
    with pytest.raises(TypeError, match=r"partial\(KeyAuth"):
        stack(Inner(), partial(KeyAuth))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: IPAllowlist(Inner(), allow=5), "allow"),
        (lambda: IPAllowlist(Inner(), ["::1"], deny=None), "deny"),
        (lambda: IPAllowlist(Inner(), ["fe80::1%eth0"]), "allow"),
        (lambda: IPAllowlist(Inner(), ["::1"], trusted_proxies=None), "trusted_proxies"),
        (lambda: ClientAddress(Inner(), None), "trusted_proxies"),
        (lambda: ClientAddress(None, ["::1"]), "app"),
        (lambda: HeaderRewriter(None), "app"),
        (lambda: HeaderRewriter(Inner(), request={"remove": 5}), "request"),
        (lambda: KeyAuth(Inner(), KEYS, headers=None), "headers"),
        (lambda: KeyAuth(Inner(), KEYS, exempt=None), "exempt"),
        (lambda: KeyAuth(Inner(), KEYS, endpoint=5), "endpoint"),
        (lambda: KeyAuth(Inner(), KEYS, query_parameter=5), "query_parameter"),
        (lambda: RateLimiter(Inner(), 5), "limits"),
        (lambda: RateLimiter(Inner(), None), "limits"),
        (lambda: stack(None), "app"),
        (lambda: stack(Inner(), paths=5), "paths"),
        (lambda: Provider("mine", base_url=5), "base_url"),
        (lambda: Provider("openai", api_keys=None), "api_keys"),
        (lambda: Provider("openai", dialect=[]), "dialect"),
        (lambda: StaticKeys(["a"]), "secrets"),
    ],
)
def test_a_wrong_option_is_a_valueerror_with_its_name(build: Any, named: str) -> None:
    """Whatever stands where a list or an app belongs, the option is named when it is built."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        build()
