"""Serve a WSGI application on a loopback port of its own, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from werkzeug.serving import WSGIRequestHandler, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # so that a stream is sent in chunks

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing: whoever uses this looks at what was received instead."""


@contextmanager
def serving(app: WSGIApplication, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve `app`, one thread a connection; yield the URL, such as `http://127.0.0.1:40123`.

    Args:
        app: the application.
        host: the address that it listens on.
        port: the port; 0 takes a free one.
    """
    server = make_server(host, port, app, threaded=True, request_handler=_Handler)
    # A stream that nobody reads any more must not keep the process alive.
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
