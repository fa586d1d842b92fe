"""Run several servers as processes of one command: all of them, or none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def together(servers: Sequence[Callable[[], None]]) -> None:
    """Run each of `servers` in a process of its own until one of them ends, and end the others.

    Signals are passed on. The exit code is that of the first to end.
    """
    pids: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in [*pids]:
            _kill(pid, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    pids.extend(_start(server) for server in servers)
    # Always `wait`: gevent, where it has patched, has no part in it, and would in `waitpid`.
    first, status = os.wait()
    pids.remove(first)
    pass_on(signal.SIGTERM, None)
    while pids:
        pids.remove(os.wait()[0])
    raise SystemExit(os.waitstatus_to_exitcode(status))


def _start(server: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    code = 1
    try:
        server()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        # Not the parent's way out: its buffers and handlers are not ours.
        os._exit(code)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
