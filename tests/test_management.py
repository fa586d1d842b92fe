"""The management API (ADM-1, ADM-2, ADM-4, ADM-6, ADM-7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aigw_middleware import KeyAuth, ManagementAPI, open_store
from aigw_middleware.store import Store

from .support import Answer, Inner, call

TOKEN = "admin-token-0123456789"
PROVIDER_SECRET = "sk-live-Qx7Lm2Vt9Rb4Zc8Nk1"
KEYS = "/ai_gateway_api_keys"
PROVIDER_KEYS = "/provider_keys"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url, secret="a master secret for the tests")


@pytest.fixture
def api(store: Store) -> ManagementAPI:
    return ManagementAPI(store, TOKEN)


def ask(api: Any, method: str, path: str, body: Any = None, **environ: Any) -> Answer:
    path, _, query = path.partition("?")
    extra: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "QUERY_STRING": query,
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
        "HTTP_HOST": "127.0.0.1:8081",
    }
    if body is not None:
        extra["body"] = body if isinstance(body, bytes) else json.dumps(body).encode()
        extra["CONTENT_TYPE"] = "application/json"
    return call(api, path, **{**extra, **environ})


def test_a_key_is_created_shown_changed_rotated_and_deleted(api: Any, store: Store) -> None:
    """The five calls and rotate, with the token in the answers that make one and nowhere else."""
    made = ask(api, "POST", KEYS, {"description": "My app", "limits": ["5/min"]})
    assert made.status == 201
    document = made.json
    token = document.pop("token")
    uri = f"http://127.0.0.1:8081{KEYS}/{document['id']}"
    assert document["uri"] == uri == made.headers["Location"]
    assert (document["description"], document["limits"]) == ("My app", ["5/min"])
    one = f"{KEYS}/{document['id']}"
    assert ask(api, "GET", one).json == document
    assert ask(api, "GET", KEYS).json == {
        "ai_gateway_api_keys": [document],
        "uri": f"http://127.0.0.1:8081{KEYS}",
        "next_page_uri": None,
    }
    assert store.keys.verify(token) is not None
    assert ask(api, "GET", one).json["last_used"] is not None
    changed = ask(api, "PATCH", one, {"name": "web", "limits": None, "disabled": True})
    assert (changed.json["name"], changed.json["limits"], changed.json["description"]) == (
        "web", [], "My app",
    )  # fmt: skip
    assert store.keys.verify(token) is None
    ask(api, "PATCH", one, {"disabled": None})
    rotated = ask(api, "POST", f"{one}/rotate", {"grace": 0}).json["token"]
    assert [store.keys.verify(t) is not None for t in (token, rotated)] == [False, True]
    gone = ask(api, "DELETE", one)
    assert (gone.status, gone.body) == (204, b"")
    assert ask(api, "DELETE", one).status == 404
    assert ask(api, "GET", one).status == 404
    assert store.keys.verify(rotated) is None


def test_rotate_needs_no_body(api: Any, store: Store) -> None:
    """Without a body the grace is an hour."""
    key, token = store.keys.create()
    answer = ask(api, "POST", f"{KEYS}/{key.id}/rotate")
    assert answer.status == 200
    assert store.keys.verify(token) is not None


def test_a_provider_key_is_managed_and_never_shown(api: Any, store: Store) -> None:
    """ADM-6: the secret goes in and is in no answer."""
    made = ask(api, "POST", PROVIDER_KEYS, {"provider": "openai", "secret": PROVIDER_SECRET})
    assert made.status == 201
    one = f"{PROVIDER_KEYS}/{made.json['id']}"
    answers = [
        made,
        ask(api, "GET", one),
        ask(api, "GET", PROVIDER_KEYS),
        ask(api, "PATCH", one, {"description": "d", "disabled": False}),
        ask(api, "POST", f"{one}/rotate", {"secret": PROVIDER_SECRET + "x"}),
    ]
    assert [answer.status for answer in answers] == [201, 200, 200, 200, 200]
    for answer in answers:
        for start in range(len(PROVIDER_SECRET) - 7):
            assert PROVIDER_SECRET[start : start + 8].encode() not in answer.body
    assert store.provider_keys.secrets("openai") == (PROVIDER_SECRET + "x",)
    assert ask(api, "DELETE", one).status == 204


def test_no_answer_but_the_creation_has_a_token(api: Any) -> None:
    """ADM-6: list, get and patch hold neither the token nor a hash of it."""
    made = ask(api, "POST", KEYS, {}).json
    one = f"{KEYS}/{made['id']}"
    secret = made["token"].rpartition("-")[2]
    for answer in (ask(api, "GET", one), ask(api, "GET", KEYS), ask(api, "PATCH", one, {})):
        assert secret[:8] not in answer.body.decode()
        assert "token" not in answer.body.decode()


ROUTES = [
    ("GET", KEYS), ("POST", KEYS), ("GET", f"{KEYS}/x"), ("PATCH", f"{KEYS}/x"),
    ("DELETE", f"{KEYS}/x"), ("POST", f"{KEYS}/x/rotate"), ("GET", PROVIDER_KEYS),
    ("POST", PROVIDER_KEYS), ("DELETE", f"{PROVIDER_KEYS}/x"), ("GET", "/openapi.json"),
    ("GET", "/nothing"), ("PUT", KEYS),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_asks_for_the_admin_token(
    api: Any, store: Store, method: str, path: str
) -> None:
    """ADM-1: none, a wrong one, another scheme, or a gateway key is 401 everywhere."""
    _, key = store.keys.create()
    for presented in ("", "Bearer wrong", f"Bearer {key}", f"Basic {TOKEN}", "Bearer", TOKEN):
        answer = ask(api, method, path, HTTP_AUTHORIZATION=presented, HTTP_COOKIE=f"token={TOKEN}")
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert ask(api, method, path, HTTP_X_API_KEY=TOKEN, HTTP_AUTHORIZATION="").status == 401


def test_the_admin_token_is_no_gateway_key(store: Store) -> None:
    """The other way round: the admin token lets nobody through the gateway."""
    assert call(KeyAuth(Inner(), store.keys), HTTP_X_API_KEY=TOKEN).status == 401


def test_healthz_is_open_and_says_nothing(api: Any) -> None:
    """A load balancer needs no token."""
    answer = ask(api, "GET", "/healthz", HTTP_AUTHORIZATION="")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


def test_answers_are_not_kept_or_sniffed(api: Any) -> None:
    """Every answer says `no-store` and `nosniff`, and carries a request id."""
    for answer in (ask(api, "GET", KEYS), ask(api, "GET", "/x"), ask(api, "POST", KEYS, {})):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Request-Id"]


BODIES = [
    pytest.param({"id": "x"}, 400, "UNKNOWN_FIELD", "id", id="ADM-2: id"),
    pytest.param({"created_at": "x"}, 400, "UNKNOWN_FIELD", "created_at", id="ADM-2: created_at"),
    pytest.param({"token": "x"}, 400, "UNKNOWN_FIELD", "token", id="ADM-2: token"),
    pytest.param({"disabled": True}, 400, "UNKNOWN_FIELD", "disabled", id="not at creation"),
    pytest.param({"nmae": "x"}, 400, "UNKNOWN_FIELD", "nmae", id="a misspelt field"),
    pytest.param({"name": 5}, 400, "WRONG_TYPE", "name", id="a number for a text"),
    pytest.param({"limits": "5/min"}, 400, "WRONG_TYPE", "limits", id="a text for a list"),
    pytest.param({"limits": [5]}, 400, "WRONG_TYPE", "limits", id="a list of numbers"),
    pytest.param({"expires_at": 5}, 400, "WRONG_TYPE", "expires_at", id="a number for a time"),
    pytest.param({"expires_at": "soon"}, 422, "INVALID_VALUE", "expires_at", id="no time"),
    pytest.param({"expires_at": "2030-01-01T00:00:00"}, 422, "INVALID_VALUE", "expires_at", id="no zone"),
    pytest.param({"expires_at": "0001-01-01T00:00:00+23:00"}, 422, "INVALID_VALUE", "expires_at", id="before all years"),
    pytest.param({"description": "x" * 256}, 422, "INVALID_VALUE", "description", id="too long"),
    pytest.param({"metadata": "x" * 4097}, 422, "INVALID_VALUE", "metadata", id="metadata too long"),
    pytest.param({"limits": ["x"]}, 422, "INVALID_VALUE", "limits", id="no limit"),
    pytest.param({"networks": ["x"]}, 422, "INVALID_VALUE", "networks", id="no network"),
    pytest.param({"models": ["a b"]}, 422, "INVALID_VALUE", "models", id="no pattern"),
    pytest.param({"name": "\ud800"}, 422, "INVALID_VALUE", "name", id="half a surrogate pair"),
    pytest.param(b"[]", 400, "INVALID_BODY", None, id="no object"),
    pytest.param(b"{", 400, "INVALID_BODY", None, id="no JSON"),
    pytest.param(b'{"name":"a","name":"b"}', 400, "INVALID_BODY", None, id="a name twice"),
    pytest.param(b"x" * 70_000, 413, "REQUEST_TOO_LARGE", None, id="too much"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "field"), BODIES)
def test_wrong_bodies_are_told_by_field(
    api: Any, store: Store, body: Any, status: int, code: str, field: str | None
) -> None:
    """400 for what cannot be set or has the wrong type, 422 for values; nothing is made."""
    answer = ask(api, "POST", KEYS, body)
    assert answer.status == status
    assert answer.json["error_code"] == f"ERR_AIGW_{code}"
    assert answer.json["status_code"] == status
    assert answer.json["msg"]
    assert answer.json["details"].get("field") == field
    assert answer.json["details"]["operation_id"] == answer.headers["X-Request-Id"]
    assert store.keys.list() == []


def test_the_content_type_must_be_json(api: Any) -> None:
    """ADM-7: a form of another origin's page is refused whatever it holds."""
    answer = ask(api, "POST", KEYS, {}, CONTENT_TYPE="application/x-www-form-urlencoded")
    assert answer.status == 415


def test_required_fields_are_named(api: Any) -> None:
    """A provider key needs its provider and its secret."""
    answer = ask(api, "POST", PROVIDER_KEYS, {"provider": "openai"})
    assert (answer.status, answer.json["details"]["field"]) == (400, "secret")
    answer = ask(api, "POST", PROVIDER_KEYS, {"provider": "openai", "secret": "sk\nx"})
    assert (answer.status, answer.json["details"]["field"]) == (422, "secret")
    assert b"sk" not in answer.body.replace(b"secret", b"")


@pytest.mark.parametrize("limit", ["-1", "0", "101", "1e9", "abc", "", "٣", "9" * 50])
def test_a_page_is_bounded(api: Any, limit: str) -> None:
    """ADM-4: a limit outside 1 to 100 is 400, never the whole table."""
    answer = ask(api, "GET", f"{KEYS}?limit={limit.encode().decode('latin-1')}")
    assert (answer.status, answer.json["details"]["field"]) == (400, "limit")


def test_an_unknown_before_id_is_told(api: Any, store: Store) -> None:
    """ADM-4: an id that never was is 400, never the whole table."""
    store.keys.create()
    answer = ask(api, "GET", f"{KEYS}?before_id=aigk_none")
    assert (answer.status, answer.json["details"]["field"]) == (400, "before_id")
    assert ask(api, "GET", f"{KEYS}?page=2").status == 400


def test_pages_are_stable_while_keys_come_and_go(api: Any, store: Store) -> None:
    """Every key that was there all the time is seen once, whatever happens between the pages."""
    made = [store.keys.create(name=str(number))[0] for number in range(25)]
    seen: list[str] = []
    path = f"{KEYS}?limit=4"
    while path:
        page = ask(api, "GET", path).json
        seen += [key["name"] for key in page["ai_gateway_api_keys"]]
        store.keys.delete(page["ai_gateway_api_keys"][-1]["id"])
        store.keys.create(name="new")
        following = page["next_page_uri"]
        path = following.removeprefix("http://127.0.0.1:8081") if following else ""
    assert seen == [key.name for key in reversed(made)]


def test_a_full_last_page_has_no_next(api: Any, store: Store) -> None:
    """`next_page_uri` is null where the page has the last records, if they fill it too."""
    for _ in range(4):
        store.keys.create()
    assert ask(api, "GET", f"{KEYS}?limit=4").json["next_page_uri"] is None
    assert ask(api, "GET", f"{KEYS}?limit=3").json["next_page_uri"] is not None


def test_unknown_paths_and_methods(api: Any) -> None:
    """404 and 405 (with Allow) are JSON like every other error."""
    assert ask(api, "GET", "/x").json["error_code"] == "ERR_AIGW_NOT_FOUND"
    answer = ask(api, "PUT", KEYS)
    assert (answer.status, answer.json["error_code"]) == (405, "ERR_AIGW_METHOD_NOT_ALLOWED")
    assert "POST" in answer.headers["Allow"]


def test_a_store_that_is_down_is_503(api: Any, store: Store) -> None:
    """The records are named, and when to come again."""
    store.close()
    answer = ask(api, "GET", KEYS)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json["error_code"] == "ERR_AIGW_STORE_UNAVAILABLE"


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8081", 200), ("127.0.0.1", 200), ("[::1]:8081", 200), ("evil.example:8081", 403),
     ("localhost.evil.example", 403), ("", 403)],
)  # fmt: skip
def test_dns_rebinding_is_stopped(store: Store, host: str, status: int) -> None:
    """With `allowed_hosts` another name for the same address is refused."""
    api = ManagementAPI(store, TOKEN, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    assert ask(api, "GET", KEYS, HTTP_HOST=host).status == status


def test_the_document_describes_every_route(api: Any) -> None:
    """OpenAPI 3.1: each path and method that answers is described, and nothing else."""
    document = ask(api, "GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path.replace("{id}", "<string:id_>"))
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    served = {
        (method, rule.rule)
        for rule in api._routes.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert described == served - {("GET", "/healthz"), ("GET", "/openapi.json")}


@pytest.mark.parametrize("token", ["", None, "a\nb", "pä ss"])
def test_wrong_options_are_named(store: Store, token: Any) -> None:
    """Without an admin token there is no API."""
    with pytest.raises(ValueError, match=r"^admin_token: "):
        ManagementAPI(store, token)
    with pytest.raises(ValueError, match=r"^store: "):
        ManagementAPI(5, TOKEN)  # type: ignore[arg-type]


@pytest.mark.parametrize(("role", "status"), [("read", 403), ("write", 201)])
def test_a_named_token_may_do_what_its_role_says(
    api: Any, store: Store, role: str, status: int
) -> None:
    """`read` looks at everything and changes nothing; the audit tells whose token it was."""
    record, token = store.admin_tokens.create(role=role, name="deploy")
    bearer = {"HTTP_AUTHORIZATION": f"Bearer {token}"}
    for path in (KEYS, PROVIDER_KEYS, "/usage", "/audit", "/openapi.json"):
        assert ask(api, "GET", path, **bearer).status == 200
    made = ask(api, "POST", KEYS, {}, **bearer)
    assert made.status == status
    if status == 201:
        assert store.audit.list(limit=1)[0].actor == "api:deploy"
    else:
        assert made.json["error_code"] == "ERR_AIGW_ROLE_NOT_ALLOWED"
        assert ask(api, "DELETE", f"{KEYS}/x", **bearer).status == 403
    assert store.admin_tokens.list() == [record]
    assert store.admin_tokens.delete(record.id)
    assert not store.admin_tokens.delete(record.id)
    assert ask(api, "GET", KEYS, **bearer).status == 401


def test_an_admin_token_is_kept_as_a_hash(store: Store, tmp_path: Path) -> None:
    """Its record, the audit and the files hold nothing of the secret; it opens no gateway."""
    record, token = store.admin_tokens.create(role="write")
    store.backup(str(tmp_path / "copy"))
    secret = token.rpartition("-")[2]
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    text = repr(record) + repr(store.audit.list())
    for start in range(len(secret) - 7):
        assert secret[start : start + 8] not in text
        assert secret[start : start + 8].encode() not in files
    assert store.keys.verify(token) is None
    assert store.admin_tokens.verify(token[:-1] + ("a" if token[-1] != "a" else "b")) is None
    with pytest.raises(ValueError, match=r"^role: "):
        store.admin_tokens.create(role="admin")


@pytest.mark.parametrize("host", ["a..b", "..", "x" * 64 + ".test"])
def test_a_host_that_is_none_is_told(api: Any, host: str) -> None:
    """400, and no traceback, whether or not a token comes with it."""
    for path in ("/healthz", KEYS):
        assert ask(api, "GET", path, HTTP_HOST=host).status == 400


def test_addresses_know_where_the_api_is_mounted(api: Any) -> None:
    """Below a prefix, `uri` names it."""
    made = ask(api, "POST", KEYS, {}, SCRIPT_NAME="/admin")
    assert made.json["uri"].startswith(f"http://127.0.0.1:8081/admin{KEYS}/")


@pytest.mark.parametrize("host", ["127.0.0.2:8081", "LOCALHOST", "[::1]"])
def test_every_name_of_loopback_is_loopback(store: Store, host: str) -> None:
    """With loopback allowed, so is each of its addresses."""
    api = ManagementAPI(store, TOKEN, allowed_hosts=["localhost", "127.0.0.1"])
    assert ask(api, "GET", KEYS, HTTP_HOST=host).status == 200
