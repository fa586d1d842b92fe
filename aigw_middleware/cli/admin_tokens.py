"""`aigw admin-tokens`: the named tokens that open the management API."""

from __future__ import annotations

import json
from typing import Any

import click

from ..keys.records import AdminToken
from ..management.fields import time_text
from ..store import Store
from ..store.admin_tokens import ROLES
from .common import (
    before_id_option,
    deleted,
    found,
    json_option,
    local_store_option,
    page_size_option,
    print_table,
)


@click.group(name="admin-tokens")
def admin_tokens() -> None:
    """Create, list and delete the tokens that open the management API.

    The one of AIGW_ADMIN_TOKEN may do everything and stands in no list.
    """


@admin_tokens.command()
@click.option("--role", type=click.Choice(ROLES), required=True, help="read looks, write changes.")
@click.option("--name", default="", help="Who it is for; the audit names it.")
@local_store_option
@json_option
def create(role: str, name: str, store: Store, as_json: bool) -> None:
    """Create an admin token and print it; it is shown this once."""
    record, token = store.admin_tokens.create(role=role, name=name)
    if as_json:
        click.echo(json.dumps({**_document(record), "token": token}))
        return
    click.echo(f"{record.id} was created. It is shown this once:", err=True)
    click.echo(token)


@admin_tokens.command(name="list")
@page_size_option
@before_id_option
@local_store_option
@json_option
def list_tokens(page_size: int, before_id: str | None, store: Store, as_json: bool) -> None:
    """List admin tokens, the newest first."""
    records = found(
        lambda: store.admin_tokens.list(limit=page_size, before_id=before_id), before_id
    )
    if as_json:
        click.echo(json.dumps([_document(record) for record in records]))
        return
    rows = [[record.id, record.name, record.role, record.created_at] for record in records]
    print_table(["id", "name", "role", "created"], rows)


@admin_tokens.command()
@click.argument("id")
@local_store_option
def delete(id: str, store: Store) -> None:
    """Delete an admin token for good."""
    deleted(store.admin_tokens.delete(id), id)


def _document(record: AdminToken) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "role": record.role,
        "created_at": time_text(record.created_at),
    }
