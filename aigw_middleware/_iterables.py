"""An app's iterable in the hands of a layer."""

from __future__ import annotations

from collections.abc import Iterable

WHOLE = (list, tuple)
"""Iterables that are complete when the app returns them; some servers never close a list."""


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
        close = getattr(iterable, "close", None)
        if close is not None:
            close()

    def close(self) -> None:
        """Close it; the server calls this whatever happened."""
        self.close_inner()
