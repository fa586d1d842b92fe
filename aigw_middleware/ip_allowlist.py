"""Refuse requests whose client's address is outside the allowed networks.

Do not use it as the only protection of something that must be secret: an address names a
network, not a person.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._addresses import Address, NetworkSet, address_of, parse_address
from .client_address import ProxyTrust
from .denial import Denial
from .environ import CLIENT_IP
from .gate import Gate

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

_REFUSED = Denial("ip_not_allowed", "Requests from this address are not allowed.")


class IPAllowlist(Gate):
    """Refuse requests from addresses that are not allowed, with 403 `ip_not_allowed`.

    ::

        app = IPAllowlist(app, allow=["10.0.0.0/8", "2001:db8::/32"], deny=["10.1.0.0/16"])

    The address is `environ["aigw.client_ip"]` where a layer outside has set it, else
    REMOTE_ADDR; with `trusted_proxies` this class finds it as `ClientAddress` does, and sets it.
    An address that cannot be read is refused. IPv4 inside IPv6 is judged as IPv4, and a network
    of IPv6 (`::/0`) holds no IPv4 address. The number of networks costs nothing per request.

    Args:
        app: the wrapped WSGI application.
        allow: networks in CIDR or single addresses; None with a `deny` allows the rest.
        deny: networks that are refused even where `allow` names them.
        trusted_proxies: networks of the proxies whose header is believed; `"unix"` for a server
            on a Unix socket.
        forwarded_header: the header that they name the client in, `X-Forwarded-For` or the
            `Forwarded` of RFC 7239.
        enforce: False reports in `aigw.decisions` and refuses nothing.

    Raises:
        ValueError: a network is wrong (host bits that are set included), `allow` is empty, or
            there is neither `allow` nor `deny`.
    """

    def __init__(
        self,
        app: WSGIApplication,
        allow: Iterable[str] | None = None,
        *,
        deny: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
        forwarded_header: str = "X-Forwarded-For",
        enforce: bool = True,
    ) -> None:
        super().__init__(app, enforce=enforce)
        self._deny = NetworkSet("deny", deny)
        self._allow = None if allow is None else NetworkSet("allow", allow)
        if self._allow is None and not self._deny:
            raise ValueError("allow: name the allowed networks, or denied ones in deny")
        if self._allow is not None and not self._allow:
            raise ValueError("allow: empty, which would refuse everyone; None allows all but deny")
        self._trust = ProxyTrust(trusted_proxies, forwarded_header, option="forwarded_header")

    def judge(self, environ: WSGIEnvironment) -> Denial | None:
        """Return the refusal for the request's address, None where it is allowed."""
        if self._trust:
            return self._verdict(parse_address(self._trust.find(environ)))
        return self._verdict(address_of(environ))

    def apply(self, environ: WSGIEnvironment) -> Denial | None:
        """Judge the request, and leave the address that a proxy named to the layers within."""
        if self._trust:
            environ[CLIENT_IP] = self._trust.find(environ)
        return self._verdict(address_of(environ))

    def _verdict(self, address: Address | None) -> Denial | None:
        if address is None or address in self._deny:
            return _REFUSED
        return None if self._allow is None or address in self._allow else _REFUSED
