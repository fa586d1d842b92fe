"""`aigw --api`: the command on a running gateway instead of a store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aigw_middleware import ManagementAPI, open_store
from aigw_middleware.cli.root import aigw
from aigw_middleware.store import Store
from aigw_middleware.testing import serving

TOKEN = "admin-token-0123456789"


@pytest.fixture
def store(sqlite_url: str) -> Store:
    return open_store(sqlite_url, secret="a master secret for the tests")


@pytest.fixture
def api(store: Store) -> Iterator[str]:
    with serving(ManagementAPI(store, TOKEN)) as url:
        yield url


def run(api: str, *args: str, token: str = TOKEN, **options: Any) -> Result:
    env = {"AIGW_API": api, "AIGW_ADMIN_TOKEN": token, "AIGW_STORE": "sqlite:////none/x.db"}
    return CliRunner(env=env).invoke(aigw, args, **options)


def test_a_key_by_the_api(api: str, store: Store) -> None:
    """Create, list, get, update, rotate and delete do what they do on a store."""
    made = run(
        api, "keys", "create", "--name", "web", "--limit", "5/min", "--expires", "30d",
        "--model", "gpt-*", "--network", "10.0.0.0/8",
    )  # fmt: skip
    token = made.stdout.strip()
    key = store.keys.verify(token)
    assert key is not None
    assert (key.name, key.limits, key.models) == ("web", ("5/min",), ("gpt-*",))
    (listed,) = json.loads(run(api, "keys", "list", "--json").stdout)
    assert json.loads(run(api, "keys", "get", key.id, "--json").stdout) == listed
    run(api, "keys", "update", key.id, "--disable", "--limit", "", "--expires", "never")
    changed = store.keys.get(key.id)
    assert (changed.disabled, changed.limits, changed.expires_at) == (True, (), None)
    run(api, "keys", "update", key.id, "--enable")
    rotated = run(api, "keys", "rotate", key.id, "--grace", "0").stdout.strip()
    assert [store.keys.verify(t) is not None for t in (token, rotated)] == [False, True]
    assert run(api, "keys", "delete", key.id).exit_code == 0
    assert run(api, "keys", "delete", key.id).exit_code == 1
    assert run(api, "keys", "get", key.id).exit_code == 1
    assert run(api, "keys", "list", "--before-id", "aigk_none").exit_code == 1


def test_provider_keys_usage_and_audit_by_the_api(api: str, store: Store) -> None:
    """The other parts that the API shows."""
    run(api, "provider-keys", "add", "openai", input="sk-one\n")
    (listed,) = json.loads(run(api, "provider-keys", "list", "--json").stdout)
    run(api, "provider-keys", "rotate", listed["id"], input="sk-two\n")
    assert store.provider_keys.secrets("openai") == ("sk-two",)
    assert run(api, "provider-keys", "delete", listed["id"]).exit_code == 0
    store.usage.book(
        request_id="r", key_id="k", provider=None, model=None, path="/", status=200, usage=None,
        duration=1, first_byte=None,
    )  # fmt: skip
    assert json.loads(run(api, "usage", "--json").stdout) == store.usage.totals()
    rows = json.loads(run(api, "audit", "list", "--json").stdout)
    assert [row["action"] for row in rows] == ["delete", "rotate", "create"]
    assert {row["actor"] for row in rows} == {"api:admin"}


WRONG = [
    pytest.param({"token": "wrong"}, 1, "admin token", id="a wrong token"),
    pytest.param({"token": ""}, 2, "AIGW_ADMIN_TOKEN", id="no token"),
    pytest.param({"api": "http://127.0.0.1:9"}, 2, "gave no answer", id="nobody there"),
    pytest.param({"api": "ftp://x"}, 2, "--api", id="no such scheme"),
    pytest.param({"api": "http://u:s3cret@x"}, 2, "--api", id="a password in the URL"),
]


@pytest.mark.parametrize(("options", "code", "told"), WRONG)
def test_what_goes_wrong_is_told(api: str, options: dict[str, str], code: int, told: str) -> None:
    """One line and exit code 2; no secret is repeated."""
    result = run(options.get("api", api), "keys", "list", token=options.get("token", TOKEN))
    assert result.exit_code == code
    assert told in result.output
    assert "s3cret" not in result.output
    assert TOKEN not in result.output


def test_a_value_that_the_api_refuses_is_told(api: str) -> None:
    """The API's own words, with the field, and exit code 2."""
    result = run(api, "keys", "create", "--limit", "ten per day")
    assert result.exit_code == 2
    assert "limits: " in result.output


def test_something_else_at_the_address_is_told() -> None:
    """An answer that is no JSON of ours is not taken for one."""

    def page(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", "6")])
        return [b"<html>"]

    with serving(page) as url:
        result = run(url, "keys", "list")
    assert result.exit_code == 2
    assert "no management API" in result.output


def test_admin_tokens_by_command(sqlite_url: str) -> None:
    """`aigw admin-tokens`: create prints the token once; list and delete."""

    def local(*args: str) -> Result:
        return CliRunner(env={"AIGW_STORE": sqlite_url}).invoke(aigw, ["admin-tokens", *args])

    token = local("create", "--role", "read", "--name", "ops").stdout.strip()
    store = open_store(sqlite_url)
    record = store.admin_tokens.verify(token)
    assert record is not None
    assert (record.role, record.name) == ("read", "ops")
    (listed,) = json.loads(local("list", "--json").stdout)
    assert listed["id"] == record.id
    assert "ops" in local("list").stdout
    assert local("list", "--before-id", "aigat_none").exit_code == 1
    assert local("delete", record.id).exit_code == 0
    assert local("delete", record.id).exit_code == 1
    assert local("create", "--role", "all").exit_code == 2
    made = json.loads(local("create", "--role", "write", "--json").stdout)
    assert store.admin_tokens.verify(made["token"]) is not None


REDIRECT = [("Location", "https://elsewhere/"), ("Content-Length", "0")]


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [("308 Permanent Redirect", REDIRECT, b""), ("200 OK", [("Content-Length", "2")], b"{}"),
     ("200 OK", [("Content-Length", "4")], b"null")],
)  # fmt: skip
def test_only_the_apis_own_answers_count(status: str, headers: Any, body: bytes) -> None:
    """A redirect or another's answer has deleted, created and listed nothing: exit code 2."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, headers)
        return [body]

    with serving(app) as url:
        for args in (["delete", "aigk_x"], ["create"], ["list"], ["get", "aigk_x"]):
            result = run(url, "keys", *args)
            assert (result.exit_code, "Traceback" in result.output) == (2, False), args
        assert run(url, "usage").exit_code == 2


def test_what_looks_after_a_store_is_not_for_the_api(api: str) -> None:
    """With AIGW_API set, nobody takes a local file's verdict for that of the gateway."""
    assert "AIGW_API" in run(api, "audit", "verify").output
