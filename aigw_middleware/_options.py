"""Checks that the options of several classes share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def several(option: str, values: object) -> list[Any]:
    """Return a list of values; a text alone is a list of one.

    Raises:
        ValueError: it is no list, tuple or other iterable of values.
    """
    if isinstance(values, str):
        return [values]
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"{option}: must be a list, not {type(values).__name__}")
    return [*values]


def flag(option: str, value: object) -> bool:
    """Return a value that is True or False; `"no"` would else be taken for yes.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{option}: {value!r} is neither True nor False")
    return value


def application(app: T) -> T:
    """Return a wrapped WSGI application.

    Raises:
        ValueError: it cannot be called.
    """
    if not callable(app):
        raise ValueError(f"app: {type(app).__name__} is not a WSGI application")
    return app
