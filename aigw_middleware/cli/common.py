"""What the parts of the command share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, TypeVar
from urllib.parse import unquote

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ..management.fields import time_text
from ..store import Store, open_store
from ..wsgi import DEFAULT_STORE
from .remote import RemoteStore

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Records = Store | RemoteStore

LOG_FORMAT = "%(asctime)s %(name)s %(message)s"
LOGGED_INFO = ("aigw_middleware.audit", "aigw_middleware.policy")
"""What a server shows besides warnings: the audit's head after each change, to be kept elsewhere,
and what a policy's `log` says."""

store_url_option = click.option(
    "--store",
    "store_url",
    envvar="AIGW_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    help="Where the records are. [env: AIGW_STORE]",
)
_api_option = click.option(
    "--api",
    "api_url",
    envvar="AIGW_API",
    default=None,
    help="Ask the management API of a running gateway instead, with AIGW_ADMIN_TOKEN. "
    "[env: AIGW_API]",
)


def local_store_option(command: F) -> F:
    """Add --store, and give the command the store that it names as `store`."""

    @store_url_option
    @wraps(command)
    def run(*args: Any, store_url: str, **options: Any) -> Any:
        return command(*args, store=open_store(store_url), **options)

    return run  # type: ignore[return-value]


def existing_store_option(command: F) -> F:
    """As `local_store_option`, for what looks after a store: it makes none."""

    @store_url_option
    @wraps(command)
    def run(*args: Any, store_url: str, **options: Any) -> Any:
        if os.environ.get("AIGW_API"):
            raise click.UsageError("this works on a store itself; AIGW_API is set, unset it")
        path = store_url.removeprefix("sqlite:///")
        if path != store_url and not os.path.exists(unquote(path)):
            raise click.UsageError(f"there is no store {store_url}")
        return command(*args, store=open_store(store_url), **options)

    return run  # type: ignore[return-value]


def store_option(command: F) -> F:
    """Add --store and --api, and give the command what they name as `store`."""

    @store_url_option
    @_api_option
    @wraps(command)
    def run(*args: Any, store_url: str, api_url: str | None, **options: Any) -> Any:
        if api_url is None:
            return command(*args, store=open_store(store_url), **options)
        store = RemoteStore(api_url, os.environ.get("AIGW_ADMIN_TOKEN"))
        return command(*args, store=store, **options)

    return run  # type: ignore[return-value]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
page_size_option = click.option(
    "--page-size", type=click.IntRange(1, 100), default=100, help="Records at most."
)
before_id_option = click.option(
    "--before-id", default=None, help="Only records made before that one."
)


def found(look_up: Callable[[], T], id_: str | None) -> T:
    """Return what `look_up` finds; exit code 1 where there is no such record."""
    try:
        return look_up()
    except KeyError:
        raise _missing(id_) from None


def _missing(id_: str | None) -> click.ClickException:
    # Who mistakes a token for an id must not find it in a log.
    shown = "of that id" if id_ is None or id_.startswith("aigw") else id_
    return click.ClickException(f"there is no record {shown}")


def without_address(document: dict[str, Any]) -> dict[str, Any]:
    """Return a record as the management API shows it, without an address of that API."""
    return {name: value for name, value in document.items() if name != "uri"}


def deleted(done: bool, id_: str) -> None:
    """Say that a record was deleted; exit code 1 where there was none."""
    if not done:
        raise _missing(id_)
    click.echo(f"{id_} was deleted.", err=True)


def print_table(columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table; in a pipe, where nothing tells a width, without cutting anything off."""
    table = Table(*(Column(column, no_wrap=column == "id") for column in columns), box=None)
    for row in rows:
        table.add_row(*(plain(shown(value)) for value in row))
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def print_record(document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a record, as JSON or a line a field."""
    if as_json:
        click.echo(json.dumps(document))
        return
    table = Table(show_header=False, box=None)
    for field, value in document.items():
        table.add_row(field, plain(shown(value)))
    Console().print(table)


def shown(value: Any) -> str:
    """Return a value as people read it."""
    if isinstance(value, list | tuple):
        return ", ".join(value)
    if isinstance(value, datetime):
        return time_text(value) or ""
    return "" if value is None else str(value)


def plain(text: str) -> str:
    """Escape what a terminal or rich would take for an instruction."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
