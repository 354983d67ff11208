"""What an event says, read from its bytes; what breaks a device of ours, and what is its own business."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from socket import AF_INET, AF_INET6

import pytest

from netfilter import facts, heal_links
from netfilter.batch import attribute
from netfilter.bottle import bottle_pipe
from netfilter.changes import Kind, Place, told
from netfilter.heal_fake import FakeHealing
from netfilter.watch import _Told
from tests.support.nf_lab import WEB4, direct, host_spec, net, rules

INDEX = 7
ENDS = heal_links.Ends(bottle_pipe(net(16)), INDEX, INDEX)
OUTSIDE, INSIDE = ENDS.wanted(Place.HOST), ENDS.wanted(Place.BOTTLE)


def route(to: str, length: int, *more: bytes, table: int = 254, proto: int = 3, flags: int = 0) -> bytes:
    address = ip_address(to)
    family = AF_INET if address.version == 4 else AF_INET6
    head = struct.pack("=BBBBBBBBI", family, length, 0, 0, table, proto, 0, 1, flags)
    found = [attribute(1, address.packed)] if length else []
    return head + b"".join([*found, attribute(4, struct.pack("=I", INDEX)), *more])


def test_our_own_routes_are_recognised_in_both_families() -> None:
    six = attribute(6, struct.pack("=I", 1024))
    for body in (
        route("10.213.0.1", 32),
        route("0.0.0.0", 0, *(attribute(k, ip_address(a).packed) for k, a in ((5, "10.213.0.1"), (7, "10.213.0.16")))),
        route("fd61:6d6f:6e::1", 128, six),
    ):  # fmt: skip
        fact = facts.read(facts.NEWROUTE, body)
        assert fact in INSIDE
        assert facts.breaks(facts.NEWROUTE, fact, INSIDE) == ""
        assert "deleted" in facts.breaks(facts.DELROUTE, fact, INSIDE)


@pytest.mark.parametrize(
    "body",
    [
        route("10.213.0.1", 32, table=255),
        route("10.213.0.1", 32, proto=2),
        route("fd61:6d6f:6e::1", 128, flags=0x200),
    ],
)
def test_the_kernels_own_routes_are_no_facts(body: bytes) -> None:
    assert facts.read(facts.NEWROUTE, body) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (route("192.0.2.0", 24), "route 192.0.2.0/24 put there"),
        (route("0.0.0.0", 0, attribute(5, ip_address("10.213.0.9").packed)), "via 10.213.0.9"),
        (route("10.213.0.1", 32, attribute(6, struct.pack("=I", 5))), "a metric of its own"),
        (route("10.213.0.1", 32, attribute(8, b"")), "a metric of its own"),
    ],
)
def test_a_foreign_route_on_our_device_is_told(body: bytes, words: str) -> None:
    fact = facts.read(facts.NEWROUTE, body)
    assert fact is not None and words in facts.breaks(facts.NEWROUTE, fact, INSIDE)
    assert facts.breaks(facts.DELROUTE, fact, INSIDE) == ""  # gone again: nothing to do


def link(name: str, *, family: int = 0, flags: int = 1, mac: str = "02:61:6d:00:00:10", master: int = 0) -> bytes:
    head = struct.pack("=BxHiII", family, 1, INDEX, flags, 0)
    more = attribute(10, struct.pack("=I", master)) if master else b""
    return head + attribute(3, name.encode() + b"\0") + attribute(1, bytes.fromhex(mac.replace(":", ""))) + more


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        (link("am16"), False),
        (link("am16", flags=0x11043), False),
        (link("am16", flags=0), True),
        (link("other"), True),
        (link("am16", mac="02:00:00:00:00:01"), True),
        (link("am16", master=4), True),
    ],
)
def test_a_device_is_to_be_up_under_its_name_and_address_and_in_no_bridge(body: bytes, broken: bool) -> None:
    fact = facts.read(facts.NEWLINK, body)
    assert fact is not None
    assert bool(facts.breaks(facts.NEWLINK, fact, OUTSIDE)) is broken
    assert "deleted" in facts.breaks(facts.DELLINK, fact, OUTSIDE)


def test_a_bridge_speaking_of_its_port_is_not_the_device() -> None:
    assert facts.read(facts.NEWLINK, link("am16", family=7)) is None


def neighbour(address: str, state: int, mac: str = "02:61:6d:00:00:10") -> bytes:
    head = struct.pack("=BxxxiHBB", AF_INET, INDEX, state, 0, 0)
    return head + attribute(1, ip_address(address).packed) + attribute(2, bytes.fromhex(mac.replace(":", "")))


def test_neighbours_that_come_and_go_are_nobodys_doing() -> None:
    for body, words in (
        (neighbour("10.213.0.1", 0x80), ""),
        (neighbour("10.213.0.99", 0x01), ""),
        (neighbour("10.213.0.99", 0x80), "put there"),
        (neighbour("10.213.0.1", 0x04), "put there"),
        (neighbour("10.213.0.1", 0x80, "02:00:00:00:00:01"), "put there"),
    ):
        fact = facts.read(facts.NEWNEIGH, body)
        assert fact is not None
        assert (
            words in facts.breaks(facts.NEWNEIGH, fact, INSIDE)
            if words
            else not facts.breaks(facts.NEWNEIGH, fact, INSIDE)
        )
    assert facts.read(facts.NEWNEIGH, neighbour("224.0.0.22", 0x40)) is None
    assert facts.read(facts.NEWNETCONF, b"") is None


def test_what_is_there_beside_what_is_wanted() -> None:
    renamed = facts.link(INDEX, "other", "02:61:6d:00:00:10")
    lost = facts.address(INDEX, ip_address("10.213.0.1"))
    there = (OUTSIDE - {lost, facts.link(INDEX, "am16", "02:61:6d:00:00:10")}) | {renamed}
    found = facts.compare(OUTSIDE, there)
    assert found.describe() == [
        "address 10.213.0.1/32 missing",
        "device other 02:61:6d:00:00:10 up found",
    ]


def test_the_backstops_rules_are_known_from_the_requests_that_make_them() -> None:
    wanted = heal_links._wanted(host_spec())
    assert [r.priority for r in wanted if r.family == AF_INET] == [1000, 1001, 1002, 1, 0, 0]
    assert {r.source for r in wanted} == {"10.213.0.0/16", "fd61:6d6f:6e::/64"}


def test_a_transaction_is_told_in_words() -> None:
    some = _Told()
    for number, found in ((9, {2: b"__set3\0"}), (6, {2: b"b16\0"}), (6, {2: b"b16\0"}), (14, {2: b"cut\0"})):
        some.add(number, found)
    assert some.describe() == "rule added to chain b16, element removed from set cut"
    some.add(2, {})
    assert some.describe() == "table agentmon deleted"
    some.add(3, {3: b"b17\0"})
    assert some.describe() == "table agentmon deleted"
    some.add(0, {})
    assert not some.table_gone
    assert told("abcde", at_most=2) == "a, b and 3 more"


def test_of_a_transaction_of_many_parts_only_the_first_are_named_and_the_end_of_the_table_is_not_missed() -> None:
    many = _Told()
    for number in range(1000):
        many.add(12, {2: b"l4_%d\0" % number})
    assert many.much() and len(many.done) < 100
    assert many.describe().endswith(" more")
    many.add(2, {})
    assert many.describe() == "table agentmon deleted" and not many.much()  # what comes then may make it anew


def test_the_fake_holds_closed_what_was_changed_until_it_is_put_back() -> None:
    nf = FakeHealing()
    nf.open_host(host_spec())
    watcher = nf.watch()
    nf.create_bottle(net(16))
    nf.apply(rules(16, 1, direct(f"{WEB4}/32")))
    nf.connect(16, ip_address(WEB4), 443)
    nf.tamper(None, Kind.RULES, "table agentmon deleted")
    nf.tamper(16, Kind.DEVICE, "device am16 deleted", lost=True)
    with pytest.raises(ConnectionRefusedError):
        nf.connect(16, ip_address(WEB4), 443)
    assert [d.slot for d in nf.check(None)] == [None]
    found = nf.restore(watcher.changes())
    assert {d.what for d in found} == {"table agentmon deleted", "device am16 deleted"}
    assert nf.check(None) == [] and [d.lost for d in nf.check(16)] == [True]
    nf.close_host()
