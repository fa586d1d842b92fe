"""`aigw serve --server granian`: the gateway under Granian, a server written in Rust."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import click

from .common import LOG_FORMAT, LOGGED_INFO

TARGET = "aigw_middleware.wsgi:application"
LOST = (
    "granian shows no client's socket and quotes paths anew: a provider's stream ends with the "
    "next event after its client has gone, not within a second; the last bytes of an answer that "
    "breaks may be lost; an upload that stalls is cut by the server in front (docs/servers.md)"
)


def run(settings: Mapping[str, str], bind: str, workers: int, threads: int) -> None:
    """Serve the gateway that environment variables describe.

    Args:
        settings: the variables; each worker is a process of its own that reads them.
        bind: address and port, or `unix:PATH`.
        workers: processes.
        threads: threads a process.
    """
    try:
        from granian import Granian
        from granian.constants import HTTPModes, Interfaces
        from granian.log import LOGGING_CONFIG, LogLevels
    except ModuleNotFoundError:
        raise click.UsageError(
            "--server granian needs pip install 'aigw-middleware[granian]'"
        ) from None
    click.echo(f"warning: {LOST}", err=True)
    os.environ.update(settings)
    Granian(
        TARGET,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        workers=workers,
        blocking_threads=threads,
        log_level=LogLevels.warning,
        log_dictconfig=_logging(LOGGING_CONFIG),
        respawn_failed_workers=True,
        **_address(bind),
    ).serve()


def _logging(granians: Mapping[str, Any]) -> dict[str, Any]:
    """Return how workers log: Granian as it does, everything else as under gunicorn."""
    loggers = {name: {"level": "INFO"} for name in LOGGED_INFO}
    handler = {"class": "logging.StreamHandler", "formatter": "aigw"}
    return {
        "formatters": {**granians["formatters"], "aigw": {"format": LOG_FORMAT}},
        "handlers": {**granians["handlers"], "aigw": handler},
        "loggers": {**deepcopy(granians["loggers"]), **loggers},
        "root": {"level": "WARNING", "handlers": ["aigw"]},
    }


def _address(bind: str) -> dict[str, Any]:
    if bind.startswith("unix:"):
        return {"uds": Path(bind.removeprefix("unix:"))}
    match = re.fullmatch(r"(?P<host>[^\[\]:/]+|\[[^\]]+\]):(?P<port>\d{1,5})", bind)
    if match is None:
        raise click.UsageError(f"--bind: {bind!r} is no address with a port, nor unix:PATH")
    return {"address": match["host"].strip("[]"), "port": int(match["port"])}
