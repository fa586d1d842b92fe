"""The `aigw` command."""

from __future__ import annotations

import sys

_GEVENT = {"gevent", "--worker-class=gevent"}


def patch_for_gevent() -> bool:
    """Have gevent patch locks and sockets, once; False where it is not installed."""
    try:
        from gevent import monkey
    except ModuleNotFoundError:
        return False
    if not monkey.is_module_patched("socket"):
        monkey.patch_all()
    return True


def main() -> None:
    """Run the command; without its libraries, say how to get them."""
    if "serve" in sys.argv and _GEVENT.intersection(sys.argv):
        patch_for_gevent()  # before anything is imported that has locks or sockets, even `click`
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
