"""`aigw import`: documents made from the configurations of other gateways."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("import")
def import_group() -> None:
    """Make a Traffic Policy document from another gateway's configuration.

    The document goes to standard output, what could not be carried over to standard error.
    """


@import_group.command()
@click.argument("file", type=click.Path(dir_okay=False))
def litellm(file: str) -> None:
    """Carry over the config.yaml of a LiteLLM proxy."""
    from ..policy.moving import from_litellm

    _print(from_litellm(_text(file), file))


@import_group.command()
@click.argument("file", type=click.Path(dir_okay=False))
def ngrok(file: str) -> None:
    """Carry over a Traffic Policy document of ngrok's, and say what to add."""
    from ..policy.moving import from_ngrok

    _print(from_ngrok(_text(file), file))


def _text(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{file}: cannot be read: {error.strerror}") from None


def _print(moved: object) -> None:
    click.echo(moved.text(), nl=False)  # type: ignore[attr-defined]
    for line in moved.left:  # type: ignore[attr-defined]
        click.echo(line, err=True)
