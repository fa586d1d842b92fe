"""Names for the callables by which requests are counted: the same in every process."""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from types import CellType, CodeType
from typing import Any


def name_of(function: Any) -> str:
    """Return a name for a callable, the same in every process and after every restart.

    Of a lambda, a closure or a partial that is more than the name that it has, which others have
    too: what it does and what it was made with are added, as far as that can be told.
    """
    if isinstance(function, partial):
        made_with = (function.args, sorted(function.keywords.items()))
        return f"{name_of(function.func)}({_digest(made_with)})"
    name = _qualified(function)
    code = getattr(function, "__code__", None)
    if "<" not in name or code is None:
        return name
    cells = [_content(cell) for cell in function.__closure__ or ()]
    defaults = (function.__defaults__, sorted((function.__kwdefaults__ or {}).items()))
    return f"{name}:{_digest((_code(code), cells, defaults))}"


def _qualified(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _code(code: CodeType) -> tuple[object, ...]:
    """Return what a function does, without where it stands."""
    constants = [_code(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return (code.co_code, constants, code.co_names, code.co_freevars)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None


def _digest(value: object) -> str:
    return blake2b(_told(value).encode(), digest_size=6).hexdigest()


def _told(value: object) -> str:
    """Return a text for a value, without addresses and without an order of chance."""
    if isinstance(value, tuple | list):
        return "(" + ",".join(map(_told, value)) + ")"
    if isinstance(value, frozenset):
        return "{" + ",".join(sorted(map(_told, value))) + "}"
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return repr(value)
    return _qualified(value)
