"""An app's iterable in the hands of a layer."""

from __future__ import annotations

from collections.abc import Iterable

WHOLE = (list, tuple)
"""Iterables that are complete when the app returns them; some servers never close a list."""


def close_iterable(iterable: Iterable[bytes]) -> None:
    """Close an iterable that nobody will go on with, where it can be (PEP 3333)."""
    close = getattr(iterable, "close", None)
    if close is not None:
        close()


class Block(list[bytes]):
    """An answer that has come whole; it may be closed like one that streams."""

    def close(self) -> None:
        """Let go of nothing: nothing is held."""


class Wrapped:
    """Hands an app's iterable on, and closes it once, whatever happens (PEP 3333).

    A subclass sets what its `close` needs before it calls this constructor, which closes an
    iterable that cannot begin.

    Args:
        iterable: the app's.
    """

    def __init__(self, iterable: Iterable[bytes]) -> None:
        self._iterable = iterable
        try:
            self._next = iter(iterable).__next__
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Wrapped:
        return self

    def __next__(self) -> bytes:
        return self._next()

    def close_inner(self) -> None:
        """Close the app's iterable; harmless a second time."""
        iterable, self._iterable = self._iterable, ()
        close_iterable(iterable)

    def close(self) -> None:
        """Close it; the server calls this whatever happened."""
        self.close_inner()


class Begun:
    """An application's iterable whose first bytes were asked for."""

    def __init__(self, iterable: Iterable[bytes]) -> None:
        self._iterable = iterable
        self._iterator = iter(iterable)
        self._first: list[bytes] = []
        try:
            self._first.append(next(self._iterator))
        except StopIteration:
            self._first = []
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Begun:
        return self

    def __next__(self) -> bytes:
        return self._first.pop() if self._first else next(self._iterator)

    def close(self) -> None:
        close_iterable(self._iterable)
