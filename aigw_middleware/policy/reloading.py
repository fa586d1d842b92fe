"""A document that is read anew when its file changes, while requests go on.

Each process looks at the file twice a second and exchanges the whole stack at once; a request
keeps the one that it began with, and so do streams. A document with a mistake leaves the old one in
force.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .._saying import OnceAMinute
from ..errors import StoreUnavailable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

INTERVAL = 0.4
"""Seconds between two looks at the file."""

_Sign = tuple[int, int, int]


class Reloading:
    """Serves what `build` makes, and makes it anew when a file changes.

    Args:
        path: the file.
        build: makes the application; a `ValueError` leaves the old one in force.
    """

    def __init__(self, path: str, build: Callable[[], WSGIApplication]) -> None:
        self._path = path
        self._build = build
        self._sign = _sign_of(path)
        self._asked = mmap.mmap(-1, 8)  # shared with all forked processes
        self._seen = self._times_asked()
        self._application = build()
        self._pid = 0
        self._said = OnceAMinute(logger)
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._pid != os.getpid():
            self.watch()
        return self._application(environ, start_response)

    def ask(self) -> None:
        """Have every process read the file anew, though it has not changed: secrets may have."""
        self._asked[:] = struct.pack("=Q", self._times_asked() + 1)

    def _times_asked(self) -> int:
        count: int = struct.unpack("=Q", self._asked[:])[0]
        return count

    def watch(self) -> None:
        """Watch the file in this process, from now on."""
        with self._lock:
            if self._pid == os.getpid():
                return
            self._pid = os.getpid()
            threading.Thread(target=self._run, name="aigw-policy", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()  # never set: a wait that gevent can patch
        while True:
            pause.wait(INTERVAL)
            try:
                self.look()
            except Exception:  # a thread that ends here would never reload again
                logger.exception("%s could not be looked at", self._path)

    def look(self) -> bool:
        """Read the file anew if it has changed; return whether another stack is in force."""
        sign, asked = _sign_of(self._path), self._times_asked()
        if (sign == self._sign and asked == self._seen) or sign is None:
            return False
        try:
            self._application = self._build()
        except ValueError as error:
            self._sign, self._seen = sign, asked
            logger.error("the policy that was in force stays: %s", error)
            return False
        except StoreUnavailable as error:  # which passes: the next look tries again
            self._said.error("the policy that was in force stays for now: %s", error)
            return False
        self._sign, self._seen = sign, asked
        logger.warning("%s: the new policy is in force", self._path)
        return True


def _sign_of(path: str) -> _Sign | None:
    """Return what tells a file from another version of it; None while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
