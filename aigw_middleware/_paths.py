r"""Patterns over request paths: an exact path (`/healthz`) or a prefix (`/v1/*`).

A path can be spelled in ways that one reader takes for another path: `/static/../v1/x`, `//v1/x`,
`/@@x` (a view in Pyramid's traversal), `v1/x` (some servers hand on a target without a slash, some
frameworks add one), `/v1/\xffx` (some frameworks drop bytes that are no UTF-8), `/v1/x\n` (`$` in
a route's pattern matches before it). A pattern that opens a door (`exempt`) must not match such a
spelling, a pattern that guards one (`paths`) must not miss it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ._options import several

_DOT_SEGMENT = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\;]|$)").search
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

LONGEST = 512
"""Letters of a path that is kept in mind at most: few are asked for, and long ones once."""


def has_dot_segment(path: str) -> bool:
    """Whether a reader that resolves `.` and `..` (RFC 3986 §5.2.4) would see another path."""
    if "\\" in path:
        return True
    return ("/." in path or path[:1] == ".") and _DOT_SEGMENT(path) is not None


def is_canonical(path: str) -> bool:
    """Whether every reader takes `path` (bytes as Latin-1) for the same one.

    It begins with a slash, has no dot or empty segments, and all of it is UTF-8 without controls.
    """
    return (
        path[:1] == "/"
        and "//" not in path
        and "/@@" not in path
        and not has_dot_segment(path)
        and _is_plain_text(path)
    )


def _is_plain_text(path: str) -> bool:
    if path.isascii():
        return path.isprintable()
    try:
        path.encode("latin-1").decode()
    except UnicodeError:
        return False
    return _CONTROL.search(path) is None


def resolved(path: str) -> str:
    """Return the path that a reader sees who resolves dot and empty segments.

    And who drops the bytes that are no UTF-8, and controls.
    """
    text = _CONTROL.sub("", path.encode("latin-1", "ignore").decode("utf-8", "ignore"))
    path = text.encode().decode("latin-1")
    segments: list[str] = []
    for segment in path.replace("\\", "/").split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return "/" + "/".join(segments)


class PathPatterns:
    """A set of path patterns.

    Args:
        option: the name of the option that the patterns come from, for the error.
        patterns: `/exact` or `/prefix/*`; `/*` is every path.

    Raises:
        ValueError: for a pattern that does not begin with `/` or has a `*` anywhere else.
    """

    def __init__(self, option: str, patterns: Iterable[str]) -> None:
        exact: set[str] = set()
        prefixes: set[str] = set()
        for pattern in several(option, patterns):
            if not isinstance(pattern, str) or not pattern.startswith("/"):
                raise ValueError(f"{option}: {pattern!r} is no path; it must begin with '/'")
            stem = pattern.removesuffix("*")
            if "*" in stem or (stem != pattern and not stem.endswith("/")):
                raise ValueError(f"{option}: {pattern!r}: '*' may stand only at the end, after '/'")
            # The environ holds the path's bytes as Latin-1 (PEP 3333).
            stem_bytes = stem.encode().decode("latin-1")
            if not is_canonical(stem_bytes):
                raise ValueError(f"{option}: {pattern!r} has dot or empty segments, or controls")
            (exact if stem == pattern else prefixes).add(stem_bytes)
        self._exact = frozenset(exact)
        self._prefixes = tuple(sorted(prefixes))
        self._guarded = frozenset(path.rstrip("/").lower() for path in exact | prefixes)
        self._guarded_prefixes = tuple(p.lower() for p in self._prefixes)

    def __bool__(self) -> bool:
        return bool(self._exact or self._prefixes)

    def opens(self, path: str) -> bool:
        """Whether `path` matches in the one spelling that nobody can read otherwise."""
        if path in self._exact or path.startswith(self._prefixes):
            return is_canonical(path)
        return False

    def guards(self, path: str) -> bool:
        """Whether `path` matches in any spelling: case, a slash at its end, an odd one."""
        lowered = path.lower()
        return (
            lowered.rstrip("/") in self._guarded
            or lowered.startswith(self._guarded_prefixes)
            or not is_canonical(path)
        )
