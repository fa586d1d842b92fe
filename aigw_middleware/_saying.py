"""Say the same thing once a minute, however often it happens."""

from __future__ import annotations

import logging
import time

SECONDS = 60.0


class OnceAMinute:
    """Logs an error that every request could repeat.

    Args:
        logger: where to.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last = float("-inf")
        self._unsaid = 0

    def error(self, message: str, *arguments: object) -> None:
        """Log `message`, or count it for the next time."""
        now = time.monotonic()
        if now - self._last < SECONDS:
            self._unsaid += 1
            return
        unsaid, self._unsaid, self._last = self._unsaid, 0, now
        if unsaid:
            message = f"{message} (and {unsaid} times since it was last said)"
        self._logger.error(message, *arguments)
