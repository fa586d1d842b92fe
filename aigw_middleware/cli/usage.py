"""`aigw usage`: what was used."""

from __future__ import annotations

import json

import click

from .common import Records, json_option, print_table, store_option


@click.command()
@click.option(
    "--by",
    type=click.Choice(["key", "model", "provider", "day"]),
    default="key",
    show_default=True,
    help="What is summed up together; days are in UTC.",
)
@store_option
@json_option
def usage(by: str, store: Records, as_json: bool) -> None:
    """Sum up the requests, tokens and costs that went through the gateway."""
    rows = store.usage.totals(by=by)
    if as_json:
        click.echo(json.dumps(rows))
        return
    columns = [by, "requests", "input_tokens", "output_tokens", "cached_input_tokens", "cost"]
    print_table(columns, [[row[column] for column in columns] for row in rows])
