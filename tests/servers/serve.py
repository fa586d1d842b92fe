"""Run `apps.application` on a listening socket: `python -m tests.servers.serve NAME FD`.

For servers whose own command cannot take a socket over.
"""

from __future__ import annotations

import os
import socket
import sys

from .apps import application


def waitress(fd: int) -> None:
    from waitress import serve

    serve(application, sockets=[socket.socket(fileno=fd)], threads=8)


def cheroot(fd: int) -> None:
    from cheroot.wsgi import Server

    # As systemd hands sockets over.
    os.dup2(fd, 3)
    os.environ["LISTEN_PID"] = str(os.getpid())
    Server(("127.0.0.1", 0), application, numthreads=8).safe_start()


def werkzeug(fd: int) -> None:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

    server = make_server("127.0.0.1", 0, application, threaded=True, fd=fd, request_handler=Handler)
    server.serve_forever()


if __name__ == "__main__":
    {"waitress": waitress, "cheroot": cheroot, "werkzeug": werkzeug}[sys.argv[1]](int(sys.argv[2]))
