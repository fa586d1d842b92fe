"""`aigw audit`: who changed what."""

from __future__ import annotations

import json

import click

from ..store import Store
from .common import (
    Records,
    existing_store_option,
    json_option,
    page_size_option,
    print_table,
    store_option,
)


@click.group()
def audit() -> None:
    """List the audit, or find out whether somebody has changed it."""


@audit.command(name="list")
@page_size_option
@click.option(
    "--before-id", type=click.IntRange(1, 10**18 - 1), default=None, help="Only older rows."
)
@store_option
@json_option
def list_rows(page_size: int, before_id: int | None, store: Records, as_json: bool) -> None:
    """List who changed what, the newest first."""
    rows = store.audit.list(limit=page_size, before=before_id)
    if as_json:
        shown = [{**row._asdict(), "at": row.at.isoformat() if row.at else None} for row in rows]
        click.echo(json.dumps(shown))
        return
    print_table(
        ["number", "at", "actor", "origin", "action", "record", "changes"],
        [
            [row.number, row.at, row.actor, row.origin, row.action, row.record, sorted(row.changes)]
            for row in rows
        ],
    )


@audit.command()
@click.option("--head", default=None, help="A head that was kept elsewhere, NUMBER:MARK.")
@existing_store_option
def verify(head: str | None, store: Store) -> None:
    """Follow the chain and say which row was changed, removed, moved or cut off."""
    log = store.audit
    problems = log.verify(head)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.ClickException("the audit is not as it was written")
    click.echo(f"The audit is as it was written; its head is {log.head()}", err=True)
