"""Write the reference pages of `docs/` from the docstrings, so that there is one source.

Run `python docs/build.py`; a test holds the pages equal to what it writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import aigw_middleware
from aigw_middleware.store.keys import KeyStore
from aigw_middleware.store.provider_keys import ProviderKeyStore
from aigw_middleware.store.usage import UsageStore

HERE = Path(__file__).parent
PAGES = {
    "stack": "stack",
    "AccessLog": "access-log",
    "ClientAddress": "client-address",
    "IPAllowlist": "ip-allowlist",
    "KeyAuth": "key-auth",
    "JWTAuth": "jwt-auth",
    "either": "either",
    "ModelAccess": "model-access",
    "RateLimiter": "rate-limiter",
    "HeaderRewriter": "header-rewriter",
    "UpstreamForwarder": "upstream-forwarder",
    "TrafficPolicy": "traffic-policy",
    "ManagementAPI": "management-api",
    "Provider": "provider",
    "StaticKeys": "static-keys",
    "open_store": "open-store",
    "open_counters": "open-counters",
    "ApiKey": "api-key",
    "Decision": "decision",
    "Usage": "usage",
}
TABLES = {
    "keys": (KeyStore, ("create", "get", "list", "update", "rotate", "delete", "verify")),
    "provider_keys": (
        ProviderKeyStore,
        ("create", "get", "list", "update", "rotate", "delete"),
    ),
    "usage": (UsageStore, ("totals", "book")),
}
MADE_BY = {"TrafficPolicy": ("load", "parse")}
"""Classes that are not called, with the methods that make them."""
HEADINGS = {"Args": "Options", "Raises": "Errors", "Returns": "Returns", "Attributes": "Attributes"}


def page(name: str) -> str:
    """Return the page of one public name."""
    item = getattr(aigw_middleware, name)
    parts = [f"# `{name}`"]
    module = inspect.getmodule(item)
    if module is not None and module.__name__.count(".") == 1 and name != "stack":
        # A middleware has a module of its own: what it is for, and when not to use it.
        parts.append(inspect.cleandoc(module.__doc__ or ""))
    if name not in MADE_BY:
        parts.append(f"```python\n{signature(name, item)}\n```")
    parts += sections(item)
    for method in MADE_BY.get(name, ()):
        parts += reference_of(f"{name}.{method}", getattr(item, method), level=2)
    if name == "open_store":
        for attribute, (cls, methods) in TABLES.items():
            parts += reference(attribute, cls, methods)
    return "\n\n".join(parts) + "\n"


def reference(attribute: str, cls: type, methods: tuple[str, ...]) -> Iterator[str]:
    """Yield the reference of a part of the store, such as `store.keys`."""
    yield f"## `store.{attribute}`"
    yield code_blocks(re.split(r"\nArgs:\n", inspect.cleandoc(cls.__doc__ or ""))[0]).strip()
    for name in methods:
        yield from reference_of(f"{attribute}.{name}", getattr(cls, name), level=3)


def reference_of(name: str, method: Any, *, level: int) -> Iterator[str]:
    """Yield the reference of one method."""
    yield f"{'#' * level} `{name}`"
    yield f"```python\n{signature(name, method)}\n```"
    yield from sections(method, level=level + 1)


def signature(name: str, item: Any) -> str:
    """Return how `item` is called, one parameter a line, without types."""
    parameters = []
    star = False
    for parameter in inspect.signature(item).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parameters.append("*")
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        parameters.append(str(parameter.replace(annotation=parameter.empty)))
    one_line = f"{name}({', '.join(parameters)})"
    if len(one_line) <= 88:
        return one_line
    return f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + ")"


def sections(item: Any, level: int = 2) -> Iterator[str]:
    """Yield the parts of a docstring in Google's form as Markdown."""
    for block in re.split(
        r"\n(?=(?:Args|Raises|Returns|Attributes):\n)", inspect.cleandoc(item.__doc__)
    ):
        head, _, rest = block.partition(":\n")
        if head in HEADINGS:
            yield f"{'#' * level} {HEADINGS[head]}"
            # Not `cleandoc`: it takes a lone entry's further lines for new ones.
            yield "\n".join(entries(dedent(rest).strip(), named=head != "Returns"))
        else:
            yield code_blocks(block)


def entries(text: str, *, named: bool) -> Iterator[str]:
    """Yield a list of `name: meaning` entries, continued lines joined."""
    if not named:
        yield text
        return
    for entry in re.split(r"\n(?=\S)", text):
        name, _, meaning = entry.partition(": ")
        joined = re.sub(r"\s+", " ", meaning)
        yield f"- **`{name}`**: {joined}" if meaning else f"- {entry}"


def code_blocks(text: str) -> str:
    """Turn `::` and an indented block into a fenced one."""

    def fenced(match: re.Match[str]) -> str:
        code = inspect.cleandoc(match[1])
        return f"```python\n{code}\n```\n"

    return re.sub(r"::\n\n((?:    .*\n?|\n(?=    ))+)", fenced, text).rstrip()


def main() -> None:
    """Write every page."""
    for name, slug in PAGES.items():
        (HERE / f"{slug}.md").write_text(page(name))


if __name__ == "__main__":
    main()
