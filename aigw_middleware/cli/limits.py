"""`aigw limits`: what is counted now."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..counters import Engine, open_counters
from ..limits.showing import document, is_of
from ..wsgi import counters_of
from .common import json_option, print_table

F = TypeVar("F", bound=Callable[..., Any])


def _engine_options(command: F) -> F:
    for option in (
        click.option("--store", envvar="AIGW_STORE", default=None, hidden=True),
        click.option(
            "--counters",
            envvar="AIGW_COUNTERS",
            default=None,
            help="Where limits are counted; by default where `aigw serve` does. "
            "[env: AIGW_COUNTERS]",
        ),
        click.option("--key", "key_id", default=None, help="Only the limits of this key."),
    ):
        command = option(command)
    return command


@click.group()
def limits() -> None:
    """Show what is counted of every limit, or forget it."""


@limits.command()
@_engine_options
@json_option
def show(store: str | None, counters: str | None, key_id: str | None, as_json: bool) -> None:
    """Show every bucket that is alive: what is used, reserved and left, when it has gone."""
    rows = [document(count) for count in _opened(store, counters).counts()]
    rows = [row for row in rows if key_id is None or is_of(row, key_id)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    columns = ["limit", "bucket", "used", "reserved", "left", "unit", "expires_in"]
    print_table(columns, [[row[column] for column in columns] for row in rows])


@limits.command()
@_engine_options
@click.confirmation_option(prompt="Forget what is counted?")
def reset(store: str | None, counters: str | None, key_id: str | None) -> None:
    """Forget what is counted, of all limits or those of one key."""
    engine = _opened(store, counters)
    if key_id is None:
        gone = engine.reset()
    else:
        names = [c.name for c in engine.counts() if is_of(document(c), key_id)]
        gone = engine.forget(names)
    click.echo(f"{gone} counts were forgotten.", err=True)


def _opened(store: str | None, counters: str | None) -> Engine:
    url = counters or counters_of({"AIGW_STORE": store or ""})
    engine = open_counters(url)
    if not engine.shared:
        raise click.UsageError(f"{url} is in the memory of another process and cannot be seen")
    return engine
