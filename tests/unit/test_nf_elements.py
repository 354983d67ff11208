"""Static rules and learned ranges taken apart: nothing overlaps, and the same destinations are meant."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from netfilter.elements import Element, Segments, disjoint, merged, minus, pieced
from netfilter.spec import Direct, Learned

NETWORKS = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8::1/128"]
ports = st.tuples(st.integers(1, 12), st.integers(0, 4)).map(lambda p: (p[0], p[0] + p[1]))
directs = st.builds(
    Direct,
    st.sampled_from(NETWORKS).map(ip_network),
    st.sampled_from(["tcp", "udp"]),
    st.lists(ports, min_size=1, max_size=3).map(tuple),
)
NS = 1_000_000_000


def covers(entries: list[Direct], address: str, proto: str, port: int) -> bool:
    a = ip_address(address)
    return any(
        e.network.version == a.version and a in e.network and e.proto == proto
        and any(lo <= port <= hi for lo, hi in e.ports)
        for e in entries
    )  # fmt: skip


@given(st.lists(directs, max_size=8))
def test_disjoint_means_the_same_and_overlaps_nowhere(entries: list[Direct]) -> None:
    found = disjoint(entries)
    as_rules = [Direct(e.network, e.proto, ((e.low, e.high),)) for e in found]
    for address in ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "11.0.0.1", "2001:db8::1", "2001:db8::2", "2001::"):
        for proto in ("tcp", "udp"):
            for port in range(18):
                assert covers(entries, address, proto, port) == covers(as_rules, address, proto, port)
    for a, b in combinations(found, 2):
        if a.proto == b.proto and a.network.version == b.network.version and a.network.overlaps(b.network):
            assert a.high < b.low or b.high < a.low, (a, b)


@given(st.lists(directs, max_size=6))
def test_order_does_not_matter(entries: list[Direct]) -> None:
    assert disjoint(entries) == disjoint(entries[::-1])


def test_exact_is_one_address_and_one_port() -> None:
    assert Element.of(ip_network("192.0.2.7"), "tcp", 443, 443).exact
    assert not Element.of(ip_network("192.0.2.7"), "tcp", 443, 444).exact
    assert not Element.of(ip_network("192.0.2.0/31"), "tcp", 443, 443).exact


def test_port_arithmetic() -> None:
    assert merged([(5, 9), (1, 3), (4, 4), (20, 30), (25, 26)]) == [(1, 9), (20, 30)]
    assert minus([(1, 10), (20, 30)], [(3, 4), (8, 22)]) == [(1, 2), (5, 7), (23, 30)]
    assert minus([(1, 10)], [(1, 10)]) == []


spans = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=6)


@given(spans.map(lambda rows: [(lo, lo + n, end) for lo, n, end in rows]))
def test_pieces_hold_as_long_as_the_longest_span_over_them(rows: list[tuple[int, int, int]]) -> None:
    pieces = pieced(rows)
    for port in range(32):
        over = [end for lo, hi, end in rows if lo <= port <= hi]
        inside = [end for lo, hi, end in pieces if lo <= port <= hi]
        assert inside == ([max(over)] if over else [])


def entry(*pairs: tuple[int, int], timeout_s: int = 60) -> Learned:
    return Learned(ip_address("198.51.100.7"), "tcp", pairs, timeout_s)


def test_exact_ports_need_no_memory_and_the_longest_time_wins() -> None:
    change = Segments().change([entry((443, 443)), entry((443, 443), timeout_s=90), entry((80, 80), timeout_s=0)], 0)
    assert [(t.element.low, t.timeout_s) for t in change.exact] == [(443, 90)]
    assert change.remove == change.add == []


def test_ranges_are_cut_and_renewed() -> None:
    segments = Segments()
    first = segments.change([entry((100, 200))], 0)
    assert [(t.element.low, t.element.high, t.timeout_s) for t in first.add] == [(100, 200, 60)]
    second = segments.change([entry((150, 300), timeout_s=600)], 10 * NS)
    assert [(e.low, e.high) for e in second.remove] == [(100, 200)]
    assert [(t.element.low, t.element.high, t.timeout_s) for t in second.add] == [(100, 149, 50), (150, 300, 600)]
    third = segments.change([entry((1, 99))], 1000 * NS)  # all is over: only the new one stays
    assert [(t.element.low, t.element.high) for t in third.add] == [(1, 99)]


def test_a_copy_can_be_thrown_away() -> None:
    segments = Segments()
    segments.copy().change([entry((1, 9))], 0)
    assert segments.change([entry((1, 9))], 0).remove == []
    segments.clear()
    assert segments.change([entry((1, 9))], 0).remove == []
