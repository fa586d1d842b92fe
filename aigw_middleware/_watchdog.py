"""End streams whose key was revoked, also while the provider is silent.

One thread a process looks at all of them, every `INTERVAL` seconds and only while there are any.
`close()` from another thread would leave a reader blocked, and its descriptor's number is used
again at once; so the watchdog says why, wakes the reader by shutting the socket down, and leaves
closing to the stream's owner.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Protocol

logger = logging.getLogger(__name__)

INTERVAL = 0.2


class Stream(Protocol):
    """What is watched."""

    def check(self) -> None:
        """End the stream if it should not go on; must not block."""


class Watchdog:
    """Checks the streams of this process."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._streams: set[Stream] = set()
        self._wake = threading.Event()
        self._asleep = False
        self._running = False

    def add(self, stream: Stream) -> None:
        """Watch `stream` until it is removed."""
        with self._lock:
            self._streams.add(stream)
            if not self._running:
                self._running = True
                thread = threading.Thread(target=self._run, name="aigw-watchdog", daemon=True)
                thread.start()
            if self._asleep:
                self._asleep = False
                self._wake.set()

    def remove(self, stream: Stream) -> None:
        """Watch it no longer; harmless for one that is not watched."""
        with self._lock:
            self._streams.discard(stream)

    def _run(self) -> None:
        pause = threading.Event()  # never set: a wait that gevent can patch
        while True:
            # Before it looks, also after it was woken: most answers have ended by then, and a
            # thread that wakes for each of them would take turns with those that serve.
            pause.wait(INTERVAL)
            with self._lock:
                streams = list(self._streams)
                if not streams:
                    self._asleep = True
                    self._wake.clear()
            if not streams:
                self._wake.wait()
                continue
            for stream in streams:
                try:
                    stream.check()
                except Exception:
                    # `check` may ask an object of the user's own; the other streams go on.
                    logger.exception("a stream could not be checked")


watchdog = Watchdog()
os.register_at_fork(after_in_child=watchdog._reset)
