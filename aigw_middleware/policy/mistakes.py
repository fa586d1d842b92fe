"""What is wrong in a document: every mistake at once, each with its place."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

MOST_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake.

    Attributes:
        message: what is wrong, and what would be right; never holds a value that could be secret.
        line: where, from 1.
        column: from 1.
        rule: the rule that it is in, `on_http_request rule 2 (limit)`; empty for none.
    """

    message: str
    line: int = 1
    column: int = 1
    rule: str = ""

    def shown(self, name: str) -> str:
        """Return it as a line, as compilers do."""
        where = f"{self.rule}: " if self.rule else ""
        return f"{name}:{self.line}:{self.column}: {where}{self.message}"


class PolicyError(ValueError):
    """A document that cannot be used.

    Attributes:
        mistakes: what is wrong in it, in its order.
    """

    def __init__(self, name: str, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column))
        lines = [mistake.shown(name) for mistake in self.mistakes[:MOST_SHOWN]]
        if len(self.mistakes) > MOST_SHOWN:
            lines.append(f"{name}: and {len(self.mistakes) - MOST_SHOWN} more")
        super().__init__("\n".join(lines))


def nearest(name: str, known: Collection[str]) -> str:
    """Return ` (did you mean "x"?)` for the known name that `name` is nearest to, or nothing."""
    by_lower = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower().replace("_", "-"), by_lower, 1, 0.6)
    found = found or difflib.get_close_matches(name.lower(), by_lower, 1, 0.6)
    return f' (did you mean "{by_lower[found[0]]}"?)' if found else ""
