"""A document that is read anew when its file changes, while requests go on.

Each process looks at the file twice a second and exchanges the whole stack at once; a request
keeps the one that it began with, and so do streams. A document with a mistake leaves the old one in
force. That holds for a process that is forked later too, in the place of one that has died: what is
in force is kept where all of them find it, since the file may hold the mistake by then.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

from .._saying import OnceAMinute
from ..denial import Denial, refuse
from ..errors import StoreUnavailable
from .document import text_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

INTERVAL = 0.4
"""Seconds between two looks at the file."""

_Sign = tuple[int, int, int]
_NONE = Denial("store_unavailable", "The gateway's policy cannot be read at the moment.")


class Reloading:
    """Serves what `build` makes of a file, and makes it anew when the file changes.

    Args:
        path: the file.
        build: makes the application of the file's text; a `ValueError` leaves the old one in force.
    """

    def __init__(self, path: str, build: Callable[[bytes], WSGIApplication]) -> None:
        self._path = path
        self._build = build
        self._sign = _sign_of(path)
        self._asked = _SharedNumber()
        self._seen = self._asked.value
        text = text_of(path)
        self._application = build(text)
        self._in_force = _InForce(text)
        self._made_from = self._in_force.number
        self._pid = 0
        self._said = OnceAMinute(logger)
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._pid != os.getpid():
            self.watch()
        return self._application(environ, start_response)

    def ask(self) -> None:
        """Have every process read the file anew, though it has not changed: secrets may have."""
        self._asked.increase()

    def watch(self) -> None:
        """Watch the file in this process, from now on."""
        with self._lock:
            if self._pid == os.getpid():
                return
            self._catch_up()
            self._pid = os.getpid()
            threading.Thread(target=self._run, name="aigw-policy", daemon=True).start()

    def _catch_up(self) -> None:
        """Serve what has come into force before this process was forked; nothing older."""
        number = self._in_force.number
        if number == self._made_from:
            return
        try:
            self._application = self._build(self._in_force.text())
        except (ValueError, StoreUnavailable) as error:
            self._application = _refuse_all
            self._said.error("the policy in force cannot be built, all is refused: %s", error)
        else:
            self._made_from = number

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
        if self._application is _refuse_all:
            self._catch_up()
        sign, asked = _sign_of(self._path), self._asked.value
        if (sign == self._sign and asked == self._seen) or sign is None:
            return False
        try:
            text = text_of(self._path)
            self._application = self._build(text)
        except ValueError as error:
            self._sign, self._seen = sign, asked
            logger.error("the policy that was in force stays: %s", error)
            return False
        except StoreUnavailable as error:  # which passes: the next look tries again
            self._said.error("the policy that was in force stays for now: %s", error)
            return False
        self._sign, self._seen = sign, asked
        try:
            self._made_from = self._in_force.put(text)
        except OSError as error:
            logger.error("a process that is started now begins with the policy before: %s", error)
        logger.warning("%s: the new policy is in force", self._path)
        return True


def _refuse_all(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return refuse(environ, start_response, _NONE)


class _SharedNumber:
    """A number that this process and all that are forked from it share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        count: int = struct.unpack("=Q", self._memory[:])[0]
        return count

    def increase(self) -> int:
        """Add 1; return what it is then."""
        value = self.value + 1
        self._memory[:] = struct.pack("=Q", value)
        return value


class _InForce:
    """The text that came into force last, in whichever process; in a file without a name.

    There are two places, and a text is written into the one that does not count: what cannot be
    written whole leaves the last one as it was.
    """

    def __init__(self, text: bytes) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as this is there)
        weakref.finalize(self, self._file.close)
        self._number = _SharedNumber()
        self.put(text)

    @property
    def number(self) -> int:
        """How many texts have come into force."""
        return self._number.value

    def put(self, text: bytes) -> int:
        """Keep a text; return its number.

        Raises:
            OSError: it cannot be written.
        """
        with self._locked() as fd:
            place = _place(self._number.value + 1)
            record = _HEAD.pack(len(text), sha256(text).digest()) + text
            written = 0
            while written < len(record):
                written += os.pwrite(fd, record[written:], place + written)
            return self._number.increase()

    def text(self) -> bytes:
        """Return the last one.

        Raises:
            ValueError: it is not whole.
        """
        with self._locked() as fd:
            place = _place(self._number.value)
            length, digest = _HEAD.unpack(os.pread(fd, _HEAD.size, place))
            text = os.pread(fd, length, place + _HEAD.size)
        if sha256(text).digest() != digest:
            raise ValueError("the policy in force was not kept whole")
        return text

    @contextmanager
    def _locked(self) -> Iterator[int]:
        fd = self._file.fileno()
        fcntl.lockf(fd, fcntl.LOCK_EX)  # of this process, though all share the open file
        try:
            yield fd
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN)


_HEAD = struct.Struct("=Q32s")
_ROOM = 64 * 1024 * 1024
"""Bytes between the two places: a document is read from at most a part of it."""


def _place(number: int) -> int:
    """Return where the text of a number stands: the file has holes."""
    return (number % 2) * _ROOM


def _sign_of(path: str) -> _Sign | None:
    """Return what tells a file from another version of it; None while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
