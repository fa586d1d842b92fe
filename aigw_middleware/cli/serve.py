"""`aigw serve`: the whole gateway under gunicorn."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ..wsgi import (
    DEFAULT_STORE,
    MEMORY,
    SHARED_METRICS,
    build,
    build_management,
    counters_of,
    reloading_within,
)
from . import granian, patch_for_gevent
from .common import LOG_FORMAT, LOGGED_INFO
from .together import together

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_HIGHEST_PORT = 65_535


def _address(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse a port that there is not, of which a server would tell with a traceback."""
    if value is None or value.startswith(("unix:", "fd://")):
        return value
    _, colon, port = value.rpartition(":")
    if colon and not (port.isascii() and port.isdecimal() and int(port) <= _HIGHEST_PORT):
        raise click.BadParameter(f"{value!r}: {port!r} is no port")
    return value


@click.command()
@click.argument("policy", required=False, envvar="AIGW_POLICY", type=click.Path(dir_okay=False))
@click.option(
    "--bind",
    default="127.0.0.1:8080",
    show_default=True,
    callback=_address,
    help="Address and port.",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Threads a process (gthread): one for each request or stream at a time.",
)
@click.option(
    "--worker-class",
    type=click.Choice(["gthread", "gevent"]),
    default="gthread",
    show_default=True,
    help="gevent holds thousands of streams; it needs the extra of that name.",
)
@click.option(
    "--server",
    type=click.Choice(["gunicorn", "granian"]),
    default="gunicorn",
    show_default=True,
    help="granian takes less CPU and keeps fewer promises; it needs the extra of that name.",
)
@click.option(
    "--store",
    envvar="AIGW_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    help="Where the keys are. [env: AIGW_STORE]",
)
@click.option(
    "--counters",
    envvar="AIGW_COUNTERS",
    default=None,
    help="Where limits are counted; by default beside the store, for all workers. "
    "[env: AIGW_COUNTERS]",
)
@click.option(
    "--access-log",
    envvar="AIGW_ACCESS_LOG",
    default=None,
    help="A file that gets a line of JSON for each request; - is standard output. "
    "[env: AIGW_ACCESS_LOG]",
)
@click.option(
    "--max-body-bytes",
    envvar="AIGW_MAX_BODY_BYTES",
    type=click.IntRange(1),
    default=None,
    help="The largest body of a request; 32 MiB by default. A POLICY says it itself. "
    "[env: AIGW_MAX_BODY_BYTES]",
)
@click.option(
    "--admin-bind",
    callback=_address,
    default=None,
    help="Address of the management API, apart from the gateway's; it needs AIGW_ADMIN_TOKEN.",
)
def serve(
    policy: str | None,
    bind: str,
    workers: int,
    threads: int,
    worker_class: str,
    server: str,
    store: str,
    counters: str | None,
    access_log: str | None,
    max_body_bytes: int | None,
    admin_bind: str | None,
) -> None:
    """Run the gateway for every provider that has a key, or as POLICY describes it.

    POLICY is a Traffic Policy document [env: AIGW_POLICY]. It is read anew when it changes, and on
    SIGHUP, while requests and streams go on; one with a mistake leaves the old one in force.

    Provider keys come from the store (`aigw provider-keys add`) and from the variables that the
    SDKs know (OPENAI_API_KEY, ANTHROPIC_API_KEY, GOOGLE_API_KEY, ...), other addresses from
    OPENAI_BASE_URL and the like. A gateway key is asked for on every path but /healthz; `aigw
    keys create` makes one.
    """
    if policy and max_body_bytes:
        raise click.UsageError(
            "--max-body-bytes: a policy says it itself, max_body_bytes of its ai-gateway action"
        )
    if worker_class == "gevent":
        if server == "granian":
            raise click.UsageError("--worker-class gevent is gunicorn's")
        if not patch_for_gevent():
            raise click.UsageError(
                "--worker-class gevent needs pip install 'aigw-middleware[gevent]'"
            )
    counters = counters or counters_of({"AIGW_STORE": store})
    _log_to_standard_error()
    if workers > 1 and counters == MEMORY:
        click.echo(
            f"warning: {workers} workers with memory: counters; each counts limits alone, so "
            f"together they admit up to {workers} times a limit",
            err=True,
        )
    if admin_bind is not None and find_spec("prometheus_client") is not None:
        _share_metrics()
    settings = {**os.environ, "AIGW_STORE": store, "AIGW_COUNTERS": counters}
    if access_log:
        settings["AIGW_ACCESS_LOG"] = access_log
    if max_body_bytes:
        settings["AIGW_MAX_BODY_BYTES"] = str(max_body_bytes)
    if policy:
        settings["AIGW_POLICY"] = policy
    gateway: Callable[[], None]
    if server == "granian":
        build(settings)  # what is wrong is told here, not by each worker
        gateway = partial(granian.run, settings, bind, workers, threads)
    else:
        gateway = partial(_run, build(settings), _options(bind, workers, threads, worker_class))
    if admin_bind is None:
        gateway()
        return
    api = build_management(settings, admin_bind)
    together([gateway, partial(_run, api, _options(admin_bind, 1, 8, "gthread"))])


def _share_metrics() -> None:
    """Have all processes count in one directory; before prometheus-client is imported.

    Raises:
        ValueError: there is none at the path that the operator gives.
    """
    directory = os.environ.get(SHARED_METRICS)
    if not directory:
        directory = tempfile.mkdtemp(prefix="aigw-metrics-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        os.environ[SHARED_METRICS] = directory
    elif not os.access(directory, os.W_OK | os.X_OK):
        raise ValueError(f"{SHARED_METRICS}: {directory} is no directory that can be written to")


def _worker_ended(server: object, worker: Any) -> None:
    if "aigw_middleware.metrics" in sys.modules:
        from ..metrics import worker_ended

        worker_ended(worker.pid)


def _log_to_standard_error() -> None:
    """Show what goes wrong, and some of what does not."""
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT)
    for name in LOGGED_INFO:
        logging.getLogger(name).setLevel(logging.INFO)


_ENDINGS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
_WORKERS = {
    "gthread": "aigw_middleware.cli.worker.PatientWorker",
    "gevent": "aigw_middleware.cli.gevent_worker.PromptWorker",
}


def _options(bind: str, workers: int, threads: int, worker_class: str) -> dict[str, Any]:
    return {
        "bind": bind,
        "workers": workers,
        "threads": threads,
        "worker_class": _WORKERS[worker_class],
        # Longer than the 60 s of most load balancers, so that they close first.
        "keepalive": 75,
        "graceful_timeout": 30,
        "proc_name": "aigw",
        # By default gunicorn takes SCRIPT_NAME from a request header of a local proxy.
        "forwarder_headers": "",
        # Nobody is to steer the gateway by a socket in the home directory.
        "control_socket_disable": True,
        "child_exit": _worker_ended,
    }


def _run(application: WSGIApplication, options: dict[str, Any]) -> None:
    from gunicorn.app.base import BaseApplication
    from gunicorn.arbiter import Arbiter

    reloading = reloading_within(application)

    class Server(Arbiter):  # type: ignore[misc, unused-ignore]
        """gunicorn's master, with two differences.

        On SIGHUP no worker is exchanged: its streams would end. And a worker that is told to end
        before it listens learns of it as soon as it does: gunicorn's takes that for its master's
        business, and is then waited for until it is killed.
        """

        def spawn_worker(self) -> Any:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
            try:
                return super().spawn_worker()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)

        def handle_hup(self) -> None:
            if reloading is not None:
                reloading.ask()

    class Gateway(BaseApplication):  # type: ignore[misc, unused-ignore]
        """gunicorn with our options; it reads no command line or file of its own."""

        def load_config(self) -> None:
            for name, value in options.items():
                if name in self.cfg.settings:  # an older gunicorn has fewer
                    self.cfg.set(name, value)

        def load(self) -> WSGIApplication:
            return application

        def run(self) -> None:
            Server(self).run()

    def begin(worker: object) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
        if reloading is not None:
            reloading.watch()

    options = {**options, "post_worker_init": begin}
    Gateway().run()
