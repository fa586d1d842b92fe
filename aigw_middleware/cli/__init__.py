"""The `aigw` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; without its libraries, say how to get them."""
    try:
        from .root import aigw
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print(
            "aigw needs more than the library: pip install 'aigw-middleware[gateway]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    aigw(prog_name="aigw")
