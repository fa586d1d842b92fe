"""`ClientAddress` and the reading of forwarded addresses (IP-1 to IP-4, IP-6)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware import ClientAddress
from aigw_middleware._addresses import (
    NetworkSet,
    client_address,
    forwarded_addresses,
    parse_address,
)

from .support import Inner, call

PROXY = "10.0.0.1"


def found(
    header: str | None, *, peer: str = PROXY, name: str = "X-Forwarded-For", **kw: Any
) -> str:
    """Return the address that ClientAddress leaves for a header's value."""
    inner = Inner()
    app = ClientAddress(inner, kw.pop("trusted", ["10.0.0.0/8"]), header=name)
    extra = {} if header is None else {"HTTP_" + name.upper().replace("-", "_"): header}
    call(app, REMOTE_ADDR=peer, **extra)
    return inner.environs[0]["aigw.client_ip"]


XFF = [
    pytest.param("203.0.113.9, 198.51.100.7", "198.51.100.7", id="IP-1: right-most untrusted"),
    pytest.param("203.0.113.9, 10.1.1.1, 10.2.2.2", "203.0.113.9", id="trusted ones are skipped"),
    pytest.param("10.3.3.3, 10.1.1.1", "10.3.3.3", id="all trusted: the left-most"),
    pytest.param(None, PROXY, id="no header: the peer"),
    pytest.param("", "", id="IP-6: empty"),
    pytest.param(",", "", id="IP-6: a comma"),
    pytest.param("unknown", "", id="IP-6: unknown"),
    pytest.param("a,b", "", id="IP-6: names"),
    pytest.param("203.0.113.9,", "", id="IP-6: nothing after the comma"),
    pytest.param("garbage, 198.51.100.7", "198.51.100.7", id="garbage left of it is not read"),
    pytest.param("198.51.100.7, garbage", "", id="garbage at the right is not skipped"),
    pytest.param("010.8.8.8", "", id="IP-3: octal"),
    pytest.param("0x7f.1", "", id="IP-3: hexadecimal"),
    pytest.param("127.1", "", id="IP-3: short"),
    pytest.param("2130706433", "", id="IP-3: an integer"),
    pytest.param("203.0.113.9:4711", "203.0.113.9", id="a port (Azure)"),
    pytest.param("[2001:db8::1]:4711", "2001:db8::1", id="IPv6 with a port"),
    pytest.param("[2001:db8::1]", "2001:db8::1", id="IPv6 in brackets"),
    pytest.param("2001:DB8:0::1", "2001:db8::1", id="IPv6 is normalised"),
    pytest.param("::ffff:203.0.113.9", "203.0.113.9", id="IP-4: IPv4 in IPv6"),
    pytest.param("fe80::1%eth0", "", id="a zone is no client's"),
    pytest.param("\t203.0.113.9 ", "203.0.113.9", id="white space"),
    pytest.param("203.0.113.9\u00a0", "", id="other white space"),
    pytest.param("１.1.1.1", "", id="digits of another script"),
    pytest.param("203.0.113.9\0", "", id="a NUL"),
    pytest.param("1" * 100_000, "", id="a long one"),
]


@pytest.mark.parametrize(("header", "address"), XFF)
def test_x_forwarded_for(header: str | None, address: str) -> None:
    """From a trusted proxy the right-most untrusted address counts; what is no address is none."""
    assert found(header) == address


FORWARDED = [
    pytest.param("for=203.0.113.9", "203.0.113.9", id="plain"),
    pytest.param('For="[2001:db8::1]:4711"', "2001:db8::1", id="quoted IPv6 with port, any case"),
    pytest.param("for=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9", id="other pairs"),
    pytest.param("proto=https; for=203.0.113.9", "203.0.113.9", id="white space before for"),
    pytest.param("for=203.0.113.9, for=198.51.100.7", "198.51.100.7", id="the right-most element"),
    pytest.param("for=203.0.113.9, for=10.9.9.9", "203.0.113.9", id="a trusted element is skipped"),
    pytest.param('for="203.0.113.9:80"', "203.0.113.9", id="quoted with port"),
    pytest.param("for=203.0.113.9:80", "", id="a port must be quoted"),
    pytest.param("for=unknown", "", id="unknown"),
    pytest.param("for=_hidden", "", id="obfuscated"),
    pytest.param("by=10.0.0.1", "", id="no for"),
    pytest.param("for=203.0.113.9;for=198.51.100.7", "", id="two of them in one element"),
    pytest.param('by="x;for=203.0.113.9;y"', "", id="for inside a quoted string"),
    pytest.param('for=198.51.100.7, by="x, for=203.0.113.9', "", id="a quoted string without end"),
    pytest.param('for="203.0.113.9\\', "", id="a backslash at the end"),
    pytest.param('for="203\\.0.113.9"', "203.0.113.9", id="an escaped letter"),
    pytest.param("", "", id="empty"),
    pytest.param(",", "", id="a comma"),
]


@pytest.mark.parametrize(("header", "address"), FORWARDED)
def test_forwarded(header: str, address: str) -> None:
    """RFC 7239's header is read by its grammar: quoted strings, any order of pairs."""
    assert found(header, name="Forwarded") == address


def test_only_the_named_header_is_read() -> None:
    """A client's `Forwarded` says nothing where `X-Forwarded-For` is the one that is read."""
    inner = Inner()
    app = ClientAddress(inner, ["10.0.0.0/8"])
    call(app, REMOTE_ADDR=PROXY, HTTP_FORWARDED="for=203.0.113.9")
    assert inner.environs[0]["aigw.client_ip"] == PROXY


def test_a_stranger_cannot_name_an_address() -> None:
    """IP-2: from a peer that is no trusted proxy the header is ignored."""
    assert found("127.0.0.1", peer="198.51.100.7") == "198.51.100.7"


@pytest.mark.parametrize(
    ("peer", "address"),
    [("::ffff:203.0.113.9", "203.0.113.9"), ("fe80::1%eth0", "fe80::1"), ("", ""), ("x", "")],
)
def test_the_peer_is_normalised(peer: str, address: str) -> None:
    """REMOTE_ADDR as a dual-stack or link-local socket gives it is one plain address."""
    assert found(None, peer=peer) == address


@pytest.mark.parametrize("peer", ["", "localhost", "<local>"])  # most servers, waitress, Werkzeug
def test_a_unix_socket_can_be_trusted(peer: str) -> None:
    """A server on a Unix socket gives no peer; `unix` trusts the proxy at its other end."""
    assert found("203.0.113.9", peer=peer, trusted=["unix"]) == "203.0.113.9"
    assert found("203.0.113.9", peer=peer, trusted=["10.0.0.0/8"]) == ""
    assert found("203.0.113.9", peer="") == ""


@pytest.mark.parametrize(
    ("proxies", "header", "named"),
    [
        ([], "X-Forwarded-For", "trusted_proxies"),
        (["10.0.0.1/8"], "X-Forwarded-For", "trusted_proxies"),
        (["proxy"], "X-Forwarded-For", "trusted_proxies"),
        (["10.0.0.1"], "X Forwarded", "header"),
        (["10.0.0.1"], "", "header"),
    ],
)
def test_wrong_options_are_named(proxies: list[str], header: str, named: str) -> None:
    """A wrong network or header is a ValueError that names its option."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        ClientAddress(Inner(), proxies, header=header)


@given(st.ip_addresses())
def test_every_address_is_read_as_ipaddress_reads_it(address: Any) -> None:
    """Our fast reader and the standard library's agree on every address."""
    parsed = parse_address(str(address))
    mapped = getattr(address, "ipv4_mapped", None)
    plain = mapped or address
    assert parsed is not None
    assert (parsed.version, parsed.value) == (plain.version, int(plain))
    assert parse_address(parsed.text) == parsed


@given(st.text(max_size=60))
def test_no_header_crashes_or_is_read_as_something_that_it_is_not(text: str) -> None:
    """Whatever a header says, the answer is an address that stands in it, or none."""
    for key in ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED"):
        read = forwarded_addresses(key)
        answer = client_address(PROXY, text, read, NetworkSet("x", ["10.0.0.0/8"]))
        assert answer == "" or parse_address(answer) is not None
