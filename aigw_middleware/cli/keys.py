"""`aigw keys`: create, list, show and delete gateway keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Column, Table

from ..keys import ApiKey
from ..store import Store, open_store
from ..wsgi import DEFAULT_STORE

F = TypeVar("F", bound=Callable[..., Any])

_SPAN = re.compile(r"([0-9]+)([smhd])").fullmatch
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

store_option = click.option(
    "--store",
    "store_url",
    envvar="AIGW_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    help="Where the keys are. [env: AIGW_STORE]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class _Expiry(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from 8.2 on
    """A span from now (`30d`) or a moment (RFC 3339)."""

    name = "30d|RFC3339"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        span = _SPAN(value)
        try:
            if span:
                seconds = int(span[1]) * _SECONDS[span[2]]
                return datetime.now(UTC) + timedelta(seconds=seconds)
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a span like 30d nor an RFC 3339 time", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} names no time zone; add Z for UTC", param, ctx)
        return moment.astimezone(UTC)


@click.group()
def keys() -> None:
    """Create, list, show and delete gateway keys."""


@keys.command()
@click.option("--name", default="", help="A short name.")
@click.option("--description", default="", help="What the key is for, up to 255 characters.")
@click.option("--metadata", default="", help="Free text, often JSON, up to 4,096 characters.")
@click.option("--endpoint-id", default=None, help="The endpoint that it is for; default: all.")
@click.option("--expires", type=_Expiry(), default=None, help="From when on it is refused.")
@click.option("--limit", "limits", multiple=True, help='A limit, such as "100/min"; repeatable.')
@click.option(
    "--model", "models", multiple=True, help="A pattern of the models it may use; repeatable."
)
@click.option(
    "--network", "networks", multiple=True, help="A network it may be used from; repeatable."
)
@store_option
@json_option
def create(
    name: str,
    description: str,
    metadata: str,
    endpoint_id: str | None,
    expires: datetime | None,
    limits: Sequence[str],
    models: Sequence[str],
    networks: Sequence[str],
    store_url: str,
    as_json: bool,
) -> None:
    """Create a key and print its token, which is shown this once."""
    key, token = open_store(store_url).keys.create(
        name=name,
        description=description,
        metadata=metadata,
        endpoint_id=endpoint_id,
        expires_at=expires,
        limits=limits,
        models=models or None,
        networks=networks,
    )
    if as_json:
        click.echo(json.dumps({**document(key), "token": token}))
        return
    click.echo(f"{key.id} was created. Its token is shown this once:", err=True)
    click.echo(token)


@keys.command(name="list")
@click.option("--page-size", type=click.IntRange(1, 100), default=100, help="Keys at most.")
@click.option("--before-id", default=None, help="Only keys made before that one.")
@store_option
@json_option
def list_keys(page_size: int, before_id: str | None, store_url: str, as_json: bool) -> None:
    """List keys, the newest first."""
    found = _found(
        lambda store: store.keys.list(limit=page_size, before_id=before_id), store_url, before_id
    )
    if as_json:
        click.echo(json.dumps([document(key) for key in found]))
        return
    table = Table(
        Column("id", no_wrap=True), "name", "description", "created", "expires", "limits", box=None
    )
    for key in found:
        table.add_row(
            key.id,
            _plain(key.name),
            _plain(key.description),
            _time(key.created_at),
            _time(key.expires_at),
            ", ".join(key.limits),
        )
    _print(table)


@keys.command()
@click.argument("id")
@store_option
@json_option
def get(id: str, store_url: str, as_json: bool) -> None:
    """Show one key."""
    key = _found(lambda store: store.keys.get(id), store_url, id)
    if as_json:
        click.echo(json.dumps(document(key)))
        return
    table = Table(show_header=False, box=None)
    for field, value in document(key).items():
        table.add_row(field, _plain(_shown(value)))
    _print(table)


@keys.command()
@click.argument("id")
@store_option
def delete(id: str, store_url: str) -> None:
    """Delete a key for good: from now on no worker accepts it."""
    if not open_store(store_url).keys.delete(id):
        raise click.ClickException(f"there is no key {id}")
    click.echo(f"{id} was deleted.", err=True)


T = TypeVar("T")


def _found(look_up: Callable[[Store], T], store_url: str, id_: str | None) -> T:
    """Return what `look_up` finds; exit code 1 where there is no such key."""
    try:
        return look_up(open_store(store_url))
    except KeyError:
        raise click.ClickException(f"there is no key {id_}") from None


def document(key: ApiKey) -> dict[str, Any]:
    """Return a key's record as JSON shows it."""
    return {
        "id": key.id,
        "name": key.name,
        "description": key.description,
        "metadata": key.metadata,
        "endpoint_id": key.endpoint_id,
        "created_at": _time(key.created_at) or None,
        "updated_at": _time(key.updated_at) or None,
        "expires_at": _time(key.expires_at) or None,
        "last_used": _time(key.last_used) or None,
        "disabled": key.disabled,
        "redacted": key.redacted,
        "limits": list(key.limits),
        "models": None if key.models is None else list(key.models),
        "networks": list(key.networks),
    }


def _print(table: Table) -> None:
    """Print a table; in a pipe, where nothing tells a width, without cutting anything off."""
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else str(value)


def _plain(text: str) -> str:
    """Escape what a terminal or rich would take for an instruction."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "�" for c in text))
