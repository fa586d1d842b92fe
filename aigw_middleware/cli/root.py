"""The root of the `aigw` command and what its parts share."""

from __future__ import annotations

import getpass
import os
from typing import Any

import click

from .. import __version__
from ..errors import StoreUnavailable
from ..store.audit import acting
from .admin_tokens import admin_tokens
from .audit import audit
from .demo import demo
from .keys import keys
from .limits import limits
from .moving import import_group
from .policy import explain, policy
from .provider_keys import provider_keys
from .serve import serve
from .store import store_group
from .usage import usage


class _Group(click.Group):
    """A group whose errors are one line and an exit code: 2 for wrong use or unreadable."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with acting(f"command:{_user()}"):
                return super().invoke(ctx)
        except (ValueError, StoreUnavailable) as error:
            raise click.UsageError(str(error)) from error


def _user() -> str:
    """Return who runs the command, as far as the system knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aigw")
def aigw() -> None:
    """Run an AI gateway and manage its keys.

    Exit codes: 0 done, 1 refused or not found, 2 wrong use or something unreadable.
    """


aigw.add_command(demo)
aigw.add_command(serve)
aigw.add_command(keys)
aigw.add_command(provider_keys)
aigw.add_command(store_group)
aigw.add_command(admin_tokens)
aigw.add_command(usage)
aigw.add_command(limits)
aigw.add_command(audit)
aigw.add_command(policy)
aigw.add_command(explain)
aigw.add_command(import_group)
