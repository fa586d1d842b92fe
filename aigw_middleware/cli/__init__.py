"""The `aigw` command."""

from __future__ import annotations

import sys

_GEVENT = {"gevent", "--worker-class=gevent"}


def _patch() -> None:
    """Have gevent patch locks and sockets: before anything has imported them, even `click`."""
    try:
        from gevent import monkey
    except ModuleNotFoundError:
        return  # the command says how to get it
    monkey.patch_all()


def main() -> None:
    """Run the command; without its libraries, say how to get them."""
    if "serve" in sys.argv and _GEVENT.intersection(sys.argv):
        _patch()
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
