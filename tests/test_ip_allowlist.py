"""`IPAllowlist` (IP-1 to IP-6)."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware import IPAllowlist
from aigw_middleware._addresses import NetworkSet, parse_address

from .support import Inner, call

CASES = [
    pytest.param({"allow": ["10.0.0.0/8"]}, "10.1.2.3", True, id="in the network"),
    pytest.param({"allow": ["10.0.0.0/8"]}, "11.0.0.1", False, id="outside"),
    pytest.param({"allow": ["192.0.2.7"]}, "192.0.2.7", True, id="a single address"),
    pytest.param({"allow": "192.0.2.7"}, "192.0.2.7", True, id="a text, not a list"),
    pytest.param({"allow": ["2001:db8::/32"]}, "2001:db8::1", True, id="IPv6"),
    pytest.param({"allow": ["2001:db8::/32"]}, "2001:db9::1", False, id="IPv6 outside"),
    pytest.param({"allow": ["::/0"]}, "10.0.0.1", False, id="::/0 holds no IPv4"),
    pytest.param({"allow": ["0.0.0.0/0"]}, "2001:db8::1", False, id="0.0.0.0/0 holds no IPv6"),
    pytest.param({"allow": ["203.0.113.0/24"]}, "::ffff:203.0.113.9", True, id="IP-4: allow"),
    pytest.param(
        {"allow": ["0.0.0.0/0"], "deny": ["203.0.113.0/24"]}, "::ffff:203.0.113.9", False,
        id="IP-4: deny",
    ),
    pytest.param({"allow": ["::ffff:10.0.0.0/104"]}, "10.1.1.1", True, id="a mapped network"),
    pytest.param(
        {"allow": ["10.0.0.0/8"], "deny": ["10.1.0.0/16"]}, "10.1.2.3", False, id="IP-5"
    ),
    pytest.param(
        {"allow": ["10.1.2.3/32"], "deny": ["10.0.0.0/8"]}, "10.1.2.3", False,
        id="IP-5: deny beats a longer prefix",
    ),
    pytest.param({"deny": ["10.0.0.0/8"]}, "11.0.0.1", True, id="deny alone allows the rest"),
    pytest.param({"deny": ["10.0.0.0/8"]}, "10.0.0.1", False, id="deny alone"),
    pytest.param({"deny": ["10.0.0.0/8"]}, "nonsense", False, id="unparsable is refused"),
    pytest.param({"deny": ["10.0.0.0/8"]}, "", False, id="no address is refused"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "address", "passes"), CASES)
def test_who_passes(options: dict[str, Any], address: str, passes: bool) -> None:
    """The address decides: allowed and not denied passes, anything else is 403."""
    inner = Inner()
    answer = call(IPAllowlist(inner, **options), REMOTE_ADDR=address)
    assert (answer.status, inner.calls) == ((200, 1) if passes else (403, 0))
    assert answer.code == (None if passes else "ip_not_allowed")


def test_the_right_most_untrusted_address_is_judged() -> None:
    """IP-1: a client cannot prepend an allowed address."""
    app = IPAllowlist(Inner(), allow=["203.0.113.9"], trusted_proxies=["10.0.0.1"])
    forwarded = "203.0.113.9, 198.51.100.7"
    assert call(app, REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=forwarded).status == 403


def test_a_header_from_a_stranger_is_ignored() -> None:
    """IP-2: without a trusted proxy REMOTE_ADDR is judged, whatever the header says."""
    app = IPAllowlist(Inner(), allow=["127.0.0.0/8"], trusted_proxies=["10.0.0.1"])
    assert call(app, REMOTE_ADDR="198.51.100.7", HTTP_X_FORWARDED_FOR="127.0.0.1").status == 403


@pytest.mark.parametrize("value", ["", ",", "unknown", "a,b", "010.8.8.8", "127.1", "2130706433"])
def test_a_forwarded_address_that_is_none_is_refused(value: str) -> None:
    """IP-3, IP-6: what does not parse is refused even where nearly everything is allowed."""
    app = IPAllowlist(Inner(), allow=["0.0.0.0/0", "::/0"], trusted_proxies=["10.0.0.1"])
    answer = call(app, REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=value)
    assert (answer.status, answer.code) == (403, "ip_not_allowed")


def test_the_address_that_was_found_is_left_for_others() -> None:
    """With trusted proxies the layer is a ClientAddress too; without, it sets nothing."""
    inner = Inner()
    app = IPAllowlist(inner, allow=["0.0.0.0/0"], trusted_proxies=["10.0.0.1"])
    call(app, REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR="::ffff:198.51.100.7")
    call(IPAllowlist(inner, allow=["0.0.0.0/0"]), REMOTE_ADDR="10.0.0.1")
    assert inner.environs[0]["aigw.client_ip"] == "198.51.100.7"
    assert "aigw.client_ip" not in inner.environs[1]


def test_an_address_found_by_an_outer_layer_is_judged() -> None:
    """Where `aigw.client_ip` is set it counts, also when it says that nobody knows."""
    app = IPAllowlist(Inner(), allow=["0.0.0.0/0"])
    assert call(app, **{"aigw.client_ip": "198.51.100.7"}).status == 200
    assert call(app, **{"aigw.client_ip": ""}).status == 403


def test_forwarded_is_read_where_it_is_named() -> None:
    """`forwarded_header="Forwarded"` reads RFC 7239."""
    app = IPAllowlist(
        Inner(), allow=["203.0.113.9"], trusted_proxies=["10.0.0.1"], forwarded_header="Forwarded"
    )
    assert call(app, REMOTE_ADDR="10.0.0.1", HTTP_FORWARDED='for="203.0.113.9:1"').status == 200


def test_report_only_lets_through_and_tells() -> None:
    """`enforce=False` refuses nothing and leaves what it would have done."""
    answer = call(IPAllowlist(Inner(), allow=["10.0.0.0/8"], enforce=False))
    (decision,) = answer.environ["aigw.decisions"]
    assert answer.status == 200
    assert decision[:3] == ("IPAllowlist", False, "ip_not_allowed")
    assert decision.enforced is False


def test_a_decision_is_left_when_it_passes() -> None:
    """Each gate leaves one decision, also when it has nothing against the request."""
    answer = call(IPAllowlist(Inner(), allow=["192.0.2.0/24"]))
    (decision,) = answer.environ["aigw.decisions"]
    assert (decision.gate, decision.allowed, decision.code) == ("IPAllowlist", True, None)


def test_judging_changes_nothing() -> None:
    """`judge` is pure: the environ is as it was."""
    environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "198.51.100.7"}
    gate = IPAllowlist(Inner(), allow=["203.0.113.9"], trusted_proxies=["10.0.0.1"])
    before = dict(environ)
    denial = gate.judge(environ)
    assert denial is not None
    assert denial.code == "ip_not_allowed"
    assert environ == before


WRONG = [
    pytest.param({}, "allow", id="neither"),
    pytest.param({"allow": []}, "allow", id="empty allow"),
    pytest.param({"allow": ["10.0.0.1/8"]}, "allow", id="host bits"),
    pytest.param({"allow": ["10.0.0.0/33"]}, "allow", id="a prefix too long"),
    pytest.param({"allow": ["010.0.0.0/8"]}, "allow", id="octal"),
    pytest.param({"allow": [""]}, "allow", id="an empty text"),
    pytest.param({"allow": ["10.0.0.0/8"], "deny": ["x"]}, "deny", id="deny"),
    pytest.param(
        {"allow": ["10.0.0.0/8"], "trusted_proxies": ["x"]}, "trusted_proxies", id="proxy"
    ),
    pytest.param(
        {"allow": ["10.0.0.0/8"], "forwarded_header": "a b"}, "forwarded_header", id="name"
    ),
]


@pytest.mark.parametrize(("options", "named"), WRONG)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    """A wrong option is a ValueError when the layer is built, and says which."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        IPAllowlist(Inner(), **options)


def test_an_app_that_is_none_is_told() -> None:
    """Options in the place of the app are found when the layer is built."""
    with pytest.raises(ValueError, match=r"^app: "):
        IPAllowlist(["10.0.0.0/8"])  # type: ignore[arg-type]


@given(
    st.lists(
        st.one_of(
            st.ip_addresses(v=4).flatmap(
                lambda a: st.integers(0, 32).map(lambda n: ip_network((a, n), strict=False))
            ),
            st.ip_addresses(v=6).flatmap(
                lambda a: st.integers(0, 128).map(lambda n: ip_network((a, n), strict=False))
            ),
        ),
        min_size=1,
        max_size=20,
    ),
    st.lists(st.ip_addresses(), min_size=1, max_size=20),
)
def test_bisection_agrees_with_looking_at_each_network(networks: Any, addresses: Any) -> None:
    """The merged ranges hold just the addresses that one of the networks holds."""
    plain = [_unmapped(network) for network in networks]
    found = NetworkSet("x", networks)
    probes = [
        *addresses,
        *(n.network_address for n in networks),
        *(n.broadcast_address for n in networks),
    ]
    for probe in probes:
        address = parse_address(str(probe))
        assert address is not None
        judged = ip_address(address.text)
        assert (address in found) == any(
            judged.version == network.version and judged in network for network in plain
        )


def _unmapped(network: Any) -> Any:
    if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


@pytest.mark.parametrize("version", [4, 6])
def test_many_networks_are_looked_up_in_few_steps(version: int) -> None:
    """100,000 networks cost a bisection, not a loop: 17 comparisons a look-up at most."""
    base = 10 << 24 if version == 4 else 0x20010DB8 << 96
    shift = 1 if version == 4 else 65
    bits = 31 if version == 4 else 63
    networks = [ip_network((base + (n << shift + 1), bits)) for n in range(100_000)]
    found = NetworkSet("allow", networks)
    compared: list[int] = []

    class Counting(int):
        def __lt__(self, other: Any) -> bool:
            compared.append(1)
            return int(self) < int(other)

    address = parse_address(str(networks[77_777][0]))
    assert address is not None
    assert address._replace(value=Counting(address.value)) in found
    assert 0 < len(compared) <= 17


def test_refusals_speak_json() -> None:
    """A refusal of a path that no dialect knows is plain JSON."""
    answer = call(IPAllowlist(Inner(), allow=["10.0.0.0/8"]), "/page")
    assert json.loads(answer.body)["error"]["code"] == "ip_not_allowed"
