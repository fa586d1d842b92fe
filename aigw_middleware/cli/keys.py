"""`aigw keys`: create, list, show, change, rotate and delete gateway keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from ..keys import ApiKey
from ..management.fields import key_document
from .common import (
    Records,
    before_id_option,
    deleted,
    found,
    json_option,
    page_size_option,
    print_record,
    print_table,
    store_option,
    without_address,
)

F = TypeVar("F", bound=Callable[..., Any])

_SPAN = re.compile(r"([0-9]+)([smhd])").fullmatch
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class _Span(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from 8.2 on
    """A number of seconds, or a span such as `30d`."""

    name = "30d"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        span = _SPAN(value if value[-1:].isalpha() else f"{value}s")
        if not span or len(span[1]) > 12:
            self.fail(f"{value!r} is no span like 30d, 12h or 3600", param, ctx)
        return int(span[1]) * _SECONDS[span[2]]


class _Expiry(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A span from now (`30d`), a moment (RFC 3339), or `never`."""

    name = "30d|RFC3339|never"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | str:
        if isinstance(value, datetime) or value == "never":
            return value  # type: ignore[no-any-return]
        span = _SPAN(value)
        try:
            if span:
                seconds = int(span[1]) * _SECONDS[span[2]]
                return datetime.now(UTC) + timedelta(seconds=seconds)
            moment = datetime.fromisoformat(value)
            in_utc = None if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a span like 30d nor an RFC 3339 time", param, ctx)
        if in_utc is None:
            self.fail(f"{value!r} names no time zone; add Z for UTC", param, ctx)
        return in_utc


def _field_options(command: F) -> F:
    """Add the options of the fields that `create` and `update` have in common."""
    options = [
        click.option("--name", default=None, help="A short name."),
        click.option("--description", default=None, help="What it is for, up to 255 characters."),
        click.option("--metadata", default=None, help="Free text, often JSON, up to 4,096."),
        click.option("--endpoint-id", default=None, help="The endpoint that it is for."),
        click.option("--expires", type=_Expiry(), default=None, help="From when on it is refused."),
        click.option("--limit", "limits", multiple=True, help='Such as "100/min"; repeatable.'),
        click.option("--model", "models", multiple=True, help="A pattern; repeatable."),
        click.option("--network", "networks", multiple=True, help="In CIDR; repeatable."),
        click.option(
            "--active",
            multiple=True,
            help='Such as "mon-fri 08:00-18:00 Europe/Berlin"; repeatable.',
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that were given; an empty text in a list clears it."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or value == ():
            continue
        if name == "expires":
            values["expires_at"] = None if value == "never" else value
        elif value == ("",):
            values[name] = None if name == "models" else ()
        else:
            values[name] = value
    return values


@click.group()
def keys() -> None:
    """Create, list, show, change, rotate and delete gateway keys."""


_disable_option = click.option(
    "--disable/--enable", "disabled", default=None, help="Refuse it for now, or not."
)


@keys.command()
@_field_options
@_disable_option
@store_option
@json_option
def create(store: Records, as_json: bool, disabled: bool | None, **fields: Any) -> None:
    """Create a key and print its token, which is shown this once."""
    key, token = store.keys.create(**_given(fields))
    if disabled:
        key = store.keys.update(key.id, disabled=True)
    _print_token(key, token, "was created", as_json)


@keys.command(name="list")
@page_size_option
@before_id_option
@store_option
@json_option
def list_keys(page_size: int, before_id: str | None, store: Records, as_json: bool) -> None:
    """List keys, the newest first."""
    records = found(lambda: store.keys.list(limit=page_size, before_id=before_id), before_id)
    if as_json:
        click.echo(json.dumps([document(key) for key in records]))
        return
    print_table(
        ["id", "name", "description", "created", "expires", "last used", "disabled", "limits"],
        [
            [
                key.id,
                key.name,
                key.description,
                key.created_at,
                key.expires_at,
                key.last_used,
                "yes" if key.disabled else "",
                key.limits,
            ]
            for key in records
        ],
    )


@keys.command()
@click.argument("id")
@store_option
@json_option
def get(id: str, store: Records, as_json: bool) -> None:
    """Show one key."""
    key = found(lambda: store.keys.get(id), id)
    print_record(document(key), as_json=as_json)


@keys.command()
@click.argument("id")
@_field_options
@_disable_option
@store_option
@json_option
def update(id: str, store: Records, as_json: bool, **fields: Any) -> None:
    """Change the fields that are given; it counts on every worker with the next request.

    `--expires never` takes an expiry back; `--limit ''`, `--model ''` and `--network ''` clear
    the list.
    """
    changes = _given(fields)
    if not changes:
        raise click.UsageError("name at least one field to change")
    key = found(lambda: store.keys.update(id, **changes), id)
    print_record(document(key), as_json=as_json)


@keys.command()
@click.argument("id")
@click.option(
    "--grace", type=_Span(), default=3600, show_default=True,
    help="For how long the old token still works.",
)  # fmt: skip
@store_option
@json_option
def rotate(id: str, grace: int, store: Records, as_json: bool) -> None:
    """Give a key a new token and print it; the id stays."""
    key, token = found(lambda: store.keys.rotate(id, grace=grace), id)
    _print_token(key, token, "was rotated", as_json)


@keys.command()
@click.argument("id")
@store_option
def delete(id: str, store: Records) -> None:
    """Delete a key for good: from now on no worker accepts it."""
    deleted(store.keys.delete(id), id)


def document(key: ApiKey) -> dict[str, Any]:
    """Return a key's record as JSON shows it."""
    return without_address(key_document(key, ""))


def _print_token(key: ApiKey, token: str, done: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**document(key), "token": token}))
        return
    click.echo(f"{key.id} {done}. Its token is shown this once:", err=True)
    click.echo(token)
