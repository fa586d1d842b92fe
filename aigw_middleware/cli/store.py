"""`aigw store`: look after the store itself."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..keys.sealing import WrongSecret
from ..store import Store
from .common import existing_store_option


@click.group(name="store")
def store_group() -> None:
    """Copy the store, check it, or change the secret that seals it."""


@store_group.command()
@click.argument("file", type=click.Path(path_type=Path))
@existing_store_option
def backup(file: Path, store: Store) -> None:
    """Write a whole copy of the store to FILE, also while it is in use."""
    if file.exists():
        raise click.ClickException(f"{file} is there already")
    store.backup(str(file))
    click.echo(f"The store was copied to {file}.", err=True)


@store_group.command()
@existing_store_option
def check(store: Store) -> None:
    """Check the database, and open every sealed secret once."""
    problems = store.check()
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.ClickException("the store is damaged")
    try:
        count = store.provider_keys.check()
    except WrongSecret as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"The store is whole; {count} secrets open.", err=True)


@store_group.command()
@existing_store_option
def rekey(store: Store) -> None:
    """Seal everything with AIGW_SECRET instead of AIGW_SECRET_OLD.

    It may be interrupted and run again; when everything is done, running it is harmless.
    """
    old = os.environ.get("AIGW_SECRET_OLD")
    if not old:
        raise click.UsageError("AIGW_SECRET_OLD is not set; it is the secret until now")
    if not os.environ.get("AIGW_SECRET"):
        raise click.UsageError("AIGW_SECRET is not set; it is the secret from now on")
    count = store.rekey(old)
    click.echo(f"{count} secrets were sealed anew.", err=True)
