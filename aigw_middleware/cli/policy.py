"""`aigw policy` and `aigw explain`: documents checked, shown and explained."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import click

from .._addresses import parse_address
from ..counters import Engine, open_counters
from ..explaining import Described, Finding, KnownKey
from ..explaining import explain as explain_request
from ..key_auth import KeyAuth
from ..providers.configured import configured_providers
from ..store import Store, open_store
from ..upstream_forwarder import UpstreamForwarder
from ..wsgi import HEALTH, counters_of, own_paths
from .common import json_option, print_table, store_url_option


@click.group()
def policy() -> None:
    """Check and show Traffic Policy documents."""


@policy.command()
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
def check(file: str, as_json: bool) -> None:
    """Check a document: every mistake, with its place. Secrets are not asked for."""
    from ..policy import PolicyError

    try:
        _checked(file)
    except PolicyError as error:
        if as_json:
            click.echo(json.dumps([_mistake(mistake) for mistake in error.mistakes]))
        else:
            click.echo(str(error), err=True)
        raise SystemExit(1) from None
    click.echo("[]" if as_json else f"{file}: good")


def _mistake(mistake: Any) -> dict[str, Any]:
    return {name: getattr(mistake, name) for name in ("line", "column", "rule", "message")}


@policy.command()
@click.argument("file", type=click.Path(dir_okay=False))
def show(file: str) -> None:
    """Show the stack that a document builds, layer by layer; secrets are not shown."""
    from ..policy import PolicyError
    from ..policy.showing import layers

    try:
        checked = _checked(file)
    except PolicyError as error:
        click.echo(str(error), err=True)
        raise SystemExit(1) from None
    for line in layers(checked):
        click.echo(line)


@policy.command()
def schema() -> None:
    """Print the JSON Schema of documents, for editors."""
    from ..policy.schema import document_schema

    click.echo(json.dumps(document_schema(), indent=2))


def _checked(file: str) -> Any:
    """Return a document that was read without asking for its secrets."""
    from ..policy import TrafficPolicy
    from ..policy.document import read
    from ..policy.policy import unwrapped
    from ..policy.secrets import Vaults

    return TrafficPolicy(
        unwrapped(read(_text(file), file), file),
        file,
        store=None,
        counters=open_counters("memory:"),
        vaults=Vaults(None),
        checking=True,
    )


@click.command()
@click.argument("policy", required=False, envvar="AIGW_POLICY", type=click.Path(dir_okay=False))
@click.option("--ip", default="127.0.0.1", show_default=True, help="The client's address.")
@click.option("--key-id", default=None, help="The gateway key that it shows; none by default.")
@click.option("--model", default=None, help="The model that it names.")
@click.option("--path", default="/v1/chat/completions", show_default=True)
@click.option("--method", default="POST", show_default=True)
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header of it.")
@click.option(
    "--log-line",
    default=None,
    help="A line of the access log instead, in JSON; - reads standard input.",
)
@store_url_option
@click.option("--counters", envvar="AIGW_COUNTERS", default=None, hidden=True)
@json_option
def explain(
    policy: str | None,
    ip: str,
    key_id: str | None,
    model: str | None,
    path: str,
    method: str,
    headers: tuple[str, ...],
    log_line: str | None,
    store_url: str,
    counters: str | None,
    as_json: bool,
) -> None:
    """Say what each gate would decide of a request and why, spending nothing.

    POLICY is the document of the gateway; without one it is what `aigw serve` runs by default.
    Exit codes: 0 it would pass, 1 it would be refused.
    """
    if log_line is not None:
        ip, key_id, model, path, method = _from_log(log_line)
    elif parse_address(ip) is None:
        raise click.BadParameter(f"{ip!r} is no address", param_hint="--ip")
    store = _existing(store_url)
    try:
        key = None if key_id is None or store is None else store.keys.get(key_id)
    except KeyError:
        raise click.ClickException("there is no key of that id") from None
    if key_id is not None and store is None:
        raise click.UsageError(f"there is no store {store_url}")
    named = dict(_header(text) for text in headers)
    request = Described(ip, key, model, path, method.upper(), named)
    engine = open_counters(counters or counters_of({"AIGW_STORE": store_url}))
    found = [_served(finding, path) for finding in _findings(policy, request, store, engine)]
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in found]))
    else:
        rows: list[list[Any]] = [
            [f.part, f.verdict + ("" if f.enforced else " (not enforced)"), f.reason] for f in found
        ]
        print_table(["part", "verdict", "reason"], rows)
    if any(finding.ends and finding.status >= 400 for finding in found):
        raise SystemExit(1)


def _served(finding: Finding, path: str) -> Finding:
    """Return a finding as it is under `aigw serve`, behind whose layers there is no application."""
    if finding.part != "the end" or path.partition("?")[0] == HEALTH:
        return finding
    return Finding("the end", "refuses", "not_found: the gateway serves no such path", 404)


def _findings(
    policy: str | None, request: Described, store: Store | None, engine: Engine
) -> Iterator[Finding]:
    keys = KnownKey(request.key)
    if policy is None:
        forwarder = UpstreamForwarder(upstream=configured_providers(os.environ), store=store)
        app = KeyAuth(forwarder, keys, exempt=[HEALTH], counters=engine)
        return explain_request(app, request)
    from ..policy import TrafficPolicy
    from ..policy.document import read
    from ..policy.policy import unwrapped
    from ..policy.secrets import Vaults

    node = unwrapped(read(_text(policy), policy), policy)
    document = TrafficPolicy(
        node, policy, store=store, keys=keys, counters=engine, vaults=Vaults(store)
    )
    return explain_request(document(own_paths), request, document.labels)


def _text(file: str) -> bytes:
    from ..policy.document import text_of

    try:
        return text_of(file)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _existing(url: str) -> Store | None:
    """Return the store; None where there is none yet, and none is made."""
    path = url.removeprefix("sqlite:///")
    if path != url and not os.path.exists(unquote(path)):
        return None
    return open_store(url)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise click.UsageError(f"--header: {name!r} must be NAME:VALUE")
    return name.strip(), value.strip()


def _from_log(line: str) -> tuple[str, str | None, str | None, str, str]:
    """Return what a line of the access log tells of its request."""
    text = sys.stdin.readline() if line == "-" else line
    try:
        fields = json.loads(text)
        model = fields["model"]
        if model is not None and fields.get("provider"):
            model = f"{fields['provider']}/{model}"
        return fields["client_ip"], fields["key_id"], model, fields["path"], fields["method"]
    except (ValueError, KeyError, TypeError):
        raise click.UsageError("--log-line: no line of the access log in JSON") from None
