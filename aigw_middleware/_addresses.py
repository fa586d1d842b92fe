"""Addresses and networks: parsed once, looked up by bisection.

The arithmetic of `ipaddress` is used where networks are read; per request an address goes
through `inet_pton` (0.2 µs against 1.8), which takes no octal, short or integer form
(CVE-2021-29921), and is found among sorted, merged ranges, whose number hardly matters.
"""

from __future__ import annotations

import re
import socket
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from ._headers import environ_key, is_token
from ._options import several
from .environ import CLIENT_IP

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_MAPPED = b"\0" * 10 + b"\xff\xff"
_LONGEST = 45  # of an IPv6 address with an IPv4 tail


class Address(NamedTuple):
    """An address: its version (4 or 6), its value, and its one normalised text."""

    version: int
    value: int
    text: str


@lru_cache(maxsize=8192)
def _parse(text: str) -> Address | None:
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return None
    if len(packed) == 16 and packed.startswith(_MAPPED):
        packed = packed[12:]
    if len(packed) == 4:
        return Address(4, int.from_bytes(packed), socket.inet_ntop(socket.AF_INET, packed))
    return Address(6, int.from_bytes(packed), socket.inet_ntop(socket.AF_INET6, packed))


def parse_address(text: str) -> Address | None:
    """Return the address that `text` names, None where it names none.

    IPv4 inside IPv6 (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2) is the IPv4 address.
    """
    # The bound keeps hostile headers out of the cache.
    return _parse(text) if len(text) <= _LONGEST else None


def address_of(environ: WSGIEnvironment) -> Address | None:
    """Return the client's address: the one that a layer has found, else REMOTE_ADDR."""
    text = environ.get(CLIENT_IP)
    if text is None:
        text = environ.get("REMOTE_ADDR") or ""
    return parse_address(text.partition("%")[0])  # fe80::1%eth0: the zone is the host's own


class NetworkSet:
    """A set of networks of both families.

    Args:
        option: the option that they come from, for the error.
        networks: CIDR (`10.0.0.0/8`, `2001:db8::/32`) or single addresses.

    Raises:
        ValueError: one is not a network; host bits that are set count as a mistake.
    """

    def __init__(self, option: str, networks: Iterable[object]) -> None:
        v4: list[IPv4Network] = []
        v6: list[IPv6Network] = []
        for entry in several(option, networks):
            network = _network(option, entry)
            (v4 if isinstance(network, IPv4Network) else v6).append(network)  # type: ignore[arg-type]
        self._ranges = {4: _ranges(v4), 6: _ranges(v6)}

    def __bool__(self) -> bool:
        return any(starts for starts, _ in self._ranges.values())

    def __contains__(self, address: Address) -> bool:
        starts, ends = self._ranges[address.version]
        position = bisect_right(starts, address.value) - 1
        return position >= 0 and address.value <= ends[position]


def is_loopback(text: str) -> bool:
    """Whether a text is an address of the machine itself; a name is none."""
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return False


def _network(option: str, entry: object) -> IPv4Network | IPv6Network:
    if "%" in str(entry):
        raise ValueError(f"{option}: {str(entry)!r}: the zone is this host's own, leave it out")
    try:
        network = ip_network(str(entry))
    except ValueError as error:
        raise ValueError(f"{option}: {str(entry)!r} is no network or address ({error})") from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _ranges(networks: Sequence[IPv4Network] | Sequence[IPv6Network]) -> tuple[list[int], list[int]]:
    merged: list[IPv4Network] | list[IPv6Network]
    merged = list(collapse_addresses(networks))  # type: ignore[type-var, assignment]
    starts = [int(network.network_address) for network in merged]
    return starts, [int(network.broadcast_address) for network in merged]


def header_name(option: str, name: str) -> str:
    """Return the environ key of header `name`; ValueError where it is no header's name."""
    if not isinstance(name, str) or not is_token(name):
        raise ValueError(f"{option}: {name!r} is no header's name")
    return environ_key(name)


ReadAddresses = Callable[[str], Iterable[str | None]]


def forwarded_addresses(key: str) -> ReadAddresses:
    """Return the reader of the header with environ key `key`: its addresses, the last first."""
    return _forwarded if key == "HTTP_FORWARDED" else _x_forwarded_for


def client_address(
    peer: str,
    header: str | None,
    read: ReadAddresses,
    trusted: NetworkSet,
    *,
    trust_unix: bool = False,
) -> str:
    """Return the normalised address of the client, `""` where it cannot be told.

    Args:
        peer: REMOTE_ADDR.
        header: the value of the header that names addresses, None where there is none.
        read: its reader, from `forwarded_addresses`.
        trusted: the proxies that are believed.
        trust_unix: whether an empty `peer` (a Unix socket) is believed.
    """
    address = parse_address(peer.partition("%")[0])  # fe80::1%eth0: the zone is the host's own
    if address is None and not (trust_unix and not peer):
        return ""
    if header is None or (address is not None and address not in trusted):
        return address.text if address is not None else ""
    for text in read(header):
        address = None if text is None else parse_address(text)
        if address is None:
            return ""
        if address not in trusted:
            return address.text
    return address.text if address is not None else ""


_PORT = re.compile(r"\[([^\]]*)\](?::\d{1,5})?|([\d.]+):\d{1,5}").fullmatch


def _without_port(text: str) -> str:
    match = _PORT(text)
    if match is None:
        return text
    return match[1] if match[1] is not None else match[2]


def _x_forwarded_for(value: str) -> Iterable[str | None]:
    """Yield the addresses from right to left; some proxies (Azure) add the port."""
    for part in reversed(value.split(",")):
        yield _without_port(part.strip(" \t"))


def _forwarded(value: str) -> Iterable[str | None]:
    """Yield the `for` addresses from right to left (RFC 7239 §4).

    None stands for an element whose address cannot be read: no `for`, two of them, or a quoted
    string that does not end.
    """
    elements = _split(value, ",")
    if elements is None:
        yield None
        return
    for element in reversed(elements):
        yield _for_address(element)


def _for_address(element: str) -> str | None:
    pairs = (pair.partition("=") for pair in _split(element, ";") or ())
    nodes = [node.strip(" \t") for name, _, node in pairs if name.strip(" \t").lower() == "for"]
    if len(nodes) != 1:
        return None
    node = nodes[0]
    if node[:1] == '"':
        return _without_port(re.sub(r"\\(.)", r"\1", node[1:-1]))
    # An address of IPv6, or one with a port, must be quoted: a colon is no token character.
    return None if ":" in node else node


def _split(value: str, separator: str) -> list[str] | None:
    """Split at `separator` outside quoted strings; None where one of them does not end."""
    parts, start, quoted, position = [], 0, False, 0
    while position < len(value):
        char = value[position]
        if char == "\\" and quoted:
            position += 1
        elif char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            parts.append(value[start:position])
            start = position + 1
        position += 1
    parts.append(value[start:])
    return None if quoted else parts
