"""A journal for each process: a row is safe once its line is written, without a disk's wait.

What was written by `os.write` is the kernel's and survives `kill -9`; a merger moves it to the
database later, in transactions that also keep how far each file was read. So no request waits
for a commit, and no row is lost or counted twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

LARGEST = 4 * 1024 * 1024
"""Bytes after which a process begins another file, so that the old one can go."""
_SUFFIX = ".journal"


_encode = json.JSONEncoder(separators=(",", ":")).encode


class Journal:
    """Appends rows for this process.

    Args:
        directory: where the files of all processes are; made, for its owner alone.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._lock = Lock()
        self._fd = -1
        self._size = 0

    def append(self, row: list[Any]) -> None:
        """Write a row; when this returns it outlives the process.

        Raises:
            OSError: it cannot be written.
        """
        line = _encode(row).encode() + b"\n"
        with self._lock:
            if self._fd < 0 or self._size > LARGEST or not os.fstat(self._fd).st_nlink:
                self._open()
            written = os.write(self._fd, line)
            self._size += written
            if written < len(line):  # a full disk took a part of it: the merger skips that
                self._close()
                raise OSError("the journal took only a part of a row")

    def _open(self) -> None:
        self._close()
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
        path = os.path.join(self.directory, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        # Locked, for as long as this process may still write to it, before any merger sees it.
        self._fd = os.open(f"{path}.new", flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.rename(f"{path}.new", path)
        self._size = 0

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Let go of the file; it is merged and removed by whoever comes next."""
        with self._lock:
            self._close()

    def forget(self) -> None:
        """In a forked child: the file is the parent's."""
        self._lock = Lock()
        self._close()


def journals(directory: str) -> Iterator[Path]:
    """Yield the files of all processes."""
    yield from sorted(Path(directory).glob(f"*{_SUFFIX}"))


def read_rows(path: Path, offset: int, most: int) -> tuple[list[list[Any]], int]:
    """Return the whole rows behind `offset`, and the offset behind them.

    A line that is not finished is left for later, one that is no row (a full disk's half) is
    passed over.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(most)
    end = data.rfind(b"\n") + 1
    return _rows_of(data[:end].splitlines()), offset + end


def _rows_of(lines: list[bytes]) -> list[list[Any]]:
    try:
        # All at once, in a third of the time; a line that is none is seldom among them.
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        whole = len(rows) == len(lines)
    except ValueError:
        whole = False
    if not whole:
        rows = [row for line in lines if (row := _row_of(line)) is not None]
    return [row for row in rows if isinstance(row, list)]


def _row_of(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def is_abandoned(path: Path) -> bool:
    """Whether no process writes to the file any more."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
