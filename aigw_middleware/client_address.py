"""Find the address of the client behind proxies that are trusted to tell it.

Use it where several layers need the address (an allowlist, a limit by address, a log);
`IPAllowlist` with `trusted_proxies` does the same by itself, and werkzeug's `ProxyFix` will do
instead where the number of proxies is known. Do not use it without a proxy in front: then
anyone could send the header, and it is ignored here only because nobody is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._addresses import NetworkSet, client_address, forwarded_addresses, header_name
from ._options import application, several
from .environ import CLIENT_IP, enter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_UNIX_PEERS = ("", "localhost", "<local>")
"""REMOTE_ADDR of a peer on a Unix socket: waitress and Werkzeug have a word for it."""


class ProxyTrust:
    """Which peers may name the client's address, and in which header.

    Args:
        trusted_proxies: networks or addresses of the proxies; `"unix"` stands for a server that
            listens on a Unix socket, where there is no peer address.
        header: `X-Forwarded-For`, or a header of its form (`CF-Connecting-IP`, `X-Real-IP`), or
            `Forwarded` (RFC 7239). Only this one is read.
    """

    def __init__(self, trusted_proxies: Iterable[str], header: str, *, option: str) -> None:
        proxies = several("trusted_proxies", trusted_proxies)
        self._unix = "unix" in proxies
        self._networks = NetworkSet("trusted_proxies", [p for p in proxies if p != "unix"])
        self._header = header_name(option, header)
        self._read = forwarded_addresses(self._header)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def find(self, environ: WSGIEnvironment) -> str:
        """Return the client's address, normalised; `""` where it cannot be told."""
        peer = environ.get("REMOTE_ADDR") or ""
        return client_address(
            "" if peer in _UNIX_PEERS else peer,
            environ.get(self._header),
            self._read,
            self._networks,
            trust_unix=self._unix,
        )


class ClientAddress:
    """Set `environ["aigw.client_ip"]` for every layer within.

    The address is REMOTE_ADDR or, when that is a trusted proxy, the right-most address of the
    header that is not a trusted proxy, the left-most when all are. A header that cannot be read
    there leaves `""`, which no allowlist lets pass. Names of addresses are normalised: IPv6 in
    its short form, IPv4 inside IPv6 (`::ffff:10.0.0.1`) as IPv4.

    Args:
        app: the wrapped WSGI application.
        trusted_proxies: networks (`10.0.0.0/8`) or addresses of the proxies in front; `"unix"`
            for a server that listens on a Unix socket.
        header: the one header that is read, `X-Forwarded-For` or RFC 7239 `Forwarded`.

    Raises:
        ValueError: a network is wrong, there is none, or `header` is no header's name.
    """

    def __init__(
        self,
        app: WSGIApplication,
        trusted_proxies: Iterable[str],
        *,
        header: str = "X-Forwarded-For",
    ) -> None:
        self.app = application(app)
        self._trust = ProxyTrust(trusted_proxies, header, option="header")
        if not self._trust:
            raise ValueError("trusted_proxies: empty; name the proxies that may tell the address")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        environ[CLIENT_IP] = self._trust.find(environ)
        return self.app(environ, start_response)
