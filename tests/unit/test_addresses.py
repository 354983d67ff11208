"""addresses.py: everything follows from pool and slot, and back."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.addresses import FIRST_SLOT, MAX_PROXIES, Pool, mac, netns, veth

POOL = Pool()


@given(st.integers(FIRST_SLOT, POOL.last_slot))
def test_slot_and_address_are_each_others_inverse(slot: int) -> None:
    for address in POOL.at(slot).all():
        assert POOL.slot_of(address) == slot


def test_fixed_places() -> None:
    assert [str(p.v4) for p in (POOL.gateway, POOL.resolver, POOL.relay, POOL.proxy(0))] == [
        "10.213.0.1",
        "10.213.0.2",
        "10.213.0.3",
        "10.213.0.4",
    ]
    assert str(POOL.proxy(MAX_PROXIES - 1).v6) == "fd61:6d6f:6e::f"
    with pytest.raises(ValueError, match="12"):
        POOL.proxy(MAX_PROXIES)


@pytest.mark.parametrize(
    "text", ["10.213.0.1", "10.213.0.15", "10.213.255.255", "10.214.0.16", "::1", "fd61:6d6f:6e::f"]
)
def test_addresses_of_nobody(text: str) -> None:
    assert POOL.slot_of(ip_address(text)) is None


def test_the_last_slot_leaves_out_the_broadcast_address() -> None:
    assert Pool(IPv4Network("10.9.0.0/24"), None).last_slot == 254
    assert Pool(IPv4Network("10.0.0.0/8"), None).last_slot == 65_000


def test_without_ipv6() -> None:
    pool = Pool(IPv4Network("10.9.0.0/24"), None)
    assert pool.at(20).all() == (pool.at(20).v4,)
    assert pool.slot_of(ip_address("fd61::10")) is None


@pytest.mark.parametrize(("v4", "v6"), [("10.9.0.0/28", "fd61::/64"), ("10.9.0.0/24", "fd61::/124")])
def test_a_pool_that_is_too_small(v4: str, v6: str) -> None:
    with pytest.raises(ValueError, match="too small"):
        Pool(IPv4Network(v4), IPv6Network(v6))


def test_names_fit_the_kernel() -> None:
    assert (veth(65_000), netns(65_000)) == ("am65000", "am-65000")
    assert len(veth(65_000)) <= 15
    assert mac(258, host=True) == "02:61:6d:01:01:02"
    assert mac(258, host=False) == "02:61:6d:00:01:02"
