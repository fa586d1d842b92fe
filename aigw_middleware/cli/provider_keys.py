"""`aigw provider-keys`: the keys of providers, sealed in the store."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from ..keys.records import ProviderKey
from ..management.fields import provider_key_document
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

from_env_option = click.option("--from-env", metavar="NAME", help="Take it from this variable.")
from_file_option = click.option(
    "--from-file", type=click.Path(path_type=Path), help="Take it from this file."
)


@click.group(name="provider-keys")
def provider_keys() -> None:
    """Add, list, rotate and delete keys of providers.

    A secret comes from standard input, a hidden prompt, a variable or a file, never as an
    argument. AIGW_SECRET seals it.
    """


@provider_keys.command()
@click.argument("provider")
@click.option("--description", default="", help="What it is for, up to 255 characters.")
@click.option("--metadata", default="", help="Free text, up to 4,096 characters.")
@from_env_option
@from_file_option
@store_option
@json_option
def add(
    provider: str,
    description: str,
    metadata: str,
    from_env: str | None,
    from_file: Path | None,
    store: Records,
    as_json: bool,
) -> None:
    """Keep a key of PROVIDER; it counts on every worker with the next request."""
    key = store.provider_keys.create(
        provider=provider,
        secret=read_secret(from_env, from_file),
        description=description,
        metadata=metadata,
    )
    print_record(document(key), as_json=as_json)


@provider_keys.command(name="list")
@page_size_option
@before_id_option
@store_option
@json_option
def list_keys(page_size: int, before_id: str | None, store: Records, as_json: bool) -> None:
    """List provider keys, the newest first: the order in which a provider's keys are tried."""
    records = found(
        lambda: store.provider_keys.list(limit=page_size, before_id=before_id), before_id
    )
    if as_json:
        click.echo(json.dumps([document(key) for key in records]))
        return
    print_table(
        ["id", "provider", "key", "description", "created", "disabled"],
        [
            [
                key.id,
                key.provider,
                key.redacted,
                key.description,
                key.created_at,
                "yes" if key.disabled else "",
            ]
            for key in records
        ],
    )


@provider_keys.command()
@click.argument("id")
@from_env_option
@from_file_option
@store_option
@json_option
def rotate(
    id: str, from_env: str | None, from_file: Path | None, store: Records, as_json: bool
) -> None:
    """Put another secret in the place of the old one; the id stays."""
    secret = read_secret(from_env, from_file)
    key = found(lambda: store.provider_keys.rotate(id, secret=secret), id)
    print_record(document(key), as_json=as_json)


@provider_keys.command()
@click.argument("id")
@store_option
def delete(id: str, store: Records) -> None:
    """Delete a provider key for good."""
    deleted(store.provider_keys.delete(id), id)


def read_secret(from_env: str | None, from_file: Path | None) -> str:
    """Return the secret from where it was said to be, else from a prompt or standard input."""
    if from_env is not None and from_file is not None:
        raise click.UsageError("--from-env and --from-file exclude each other")
    if from_env is not None:
        if not os.environ.get(from_env):
            raise click.UsageError(f"the variable {from_env} is not set")
        return os.environ[from_env].strip()
    if from_file is not None:
        try:
            return from_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"{from_file} cannot be read: {type(error).__name__}") from None
    if sys.stdin.isatty():
        secret: str = click.prompt("Secret", hide_input=True, err=True)
        return secret.strip()
    return sys.stdin.readline().strip()


def document(key: ProviderKey) -> dict[str, Any]:
    """Return the record as JSON shows it."""
    return without_address(provider_key_document(key, ""))
