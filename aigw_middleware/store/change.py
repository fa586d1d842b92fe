"""Knowing that a store has changed, without asking it.

Beside the store's file lies one of eight bytes, mapped into every process of the machine. Who
changes a record commits, then writes a new value here, then answers; who reads takes the value
before it reads, and may go on using what it read for as long as the value stays the same
(0.1 µs to look, against 1.3 for SQLite's `data_version` and 5 for a query).
"""

from __future__ import annotations

import mmap
import os

_SIZE = 8


class ChangeWord:
    """The mapped value.

    Args:
        path: the file that holds it; made, for its owner alone, where there is none.

    Raises:
        OSError: the file cannot be made or mapped.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _SIZE:
                os.ftruncate(fd, _SIZE)
            self._map = mmap.mmap(fd, _SIZE)
            status = os.fstat(fd)
            self._identity = status.st_dev, status.st_ino
        finally:
            os.close(fd)

    def read(self) -> bytes:
        """Return the present value."""
        return self._map[:_SIZE]

    def look(self) -> None:
        """Go on with the file that stands at the path now, if it was removed.

        Another process may already tell of changes in another one.

        Raises:
            OSError: it cannot be made again.
        """
        try:
            status = os.stat(self._path)
            same = (status.st_dev, status.st_ino) == self._identity
        except OSError:
            same = False
        if not same:
            self._open()
            self._map[:_SIZE] = os.urandom(_SIZE)

    def bump(self) -> None:
        """Write a value that was never there: a random one needs no lock over processes.

        A reader that catches it half written sees a third value, and only reads once more.
        """
        self.look()  # where it was removed, to the one that all others see
        self._map[:_SIZE] = os.urandom(_SIZE)
