"""BottlePolicy → map bytes: which map, merging, nesting, limits."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf import abi, encode
from ebpf.errors import Unencodable
from ebpf.spec import BottlePolicy, Endpoint, Entry, Mode
from tests.support.bpf_lab import endpoint, entry

NOW_NS = 1_000_000_000


def encoded(*allow: Entry, deny: tuple[Entry, ...] = (), services: tuple[Endpoint, ...] = ()) -> encode.Encoded:
    return encode.encode(BottlePolicy(16, 4711, 9, 3, Mode.ENFORCE, services, allow, deny, 77), NOW_NS)


def elements(made: encode.Encoded, name: str) -> dict[bytes, bytes]:
    table = made.tables[name]
    if not table.count:
        return {}
    key, value = len(table.keys) // table.count, len(table.values) // table.count
    return {table.keys[i * key : (i + 1) * key]: table.values[i * value : (i + 1) * value] for i in range(table.count)}


def written(raw: bytes) -> str:
    """The same on every Python: 3.13 began to write mapped addresses with dots."""
    address = IPv6Address(raw)
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)


def prefixes(
    made: encode.Encoded, name: str = "am_prefix"
) -> dict[tuple[int, str], tuple[list[encode.PortRange], int]]:
    """(bits, address) → (ranges, shorter), read back."""
    found = {}
    for key, value in elements(made, name).items():
        bits, _policy, _proto, raw = encode.PREFIX_KEY.unpack(key)
        found[(bits - abi.PREFIX_BASE, written(raw))] = (
            encode.unpack_ranges(value),
            encode.RANGES_HEAD.unpack_from(value)[1],
        )
    return found


def test_bpf_encode_bottle_element_round_trips() -> None:
    key, value = encoded(entry("10.0.0.0/8", 80)).bottle
    assert int.from_bytes(key, "little") == 4711
    state = encode.BottleState.unpack(value)
    prefix, deny, no_host = (abi.C[f"AM_BOTTLE_{name}"] for name in ("PREFIX", "DENY", "NO_HOST"))
    assert state == encode.BottleState(4711, 77, 16, 9, 3, Mode.ENFORCE, prefix | no_host)
    assert encode.BottleState.unpack(encoded(deny=(entry("10.0.0.0/8", 80),)).bottle[1]).flags == deny | no_host
    assert encode.BottleState.unpack(encoded(entry("10.0.0.1/32", (1, 999))).bottle[1]).flags == 0


def test_bpf_encode_which_map() -> None:
    made = encoded(
        entry("198.51.100.7/32", 443, (8000, 8015), (9000, 9016)),
        entry("198.51.100.0/24", 80),
        deny=(entry("198.51.100.9/32", 22),),
        services=(endpoint("10.213.0.2", 53, "udp"),),
    )
    counts = {"am_exact": 18, "am_host": 1, "am_prefix": 1, "am_deny": 1, "am_listen": 0, "am_unix": 0}
    assert {n: t.count for n, t in made.tables.items()} == counts
    ((_, value),) = elements(made, "am_host").items()
    assert encode.unpack_ranges(value) == [(9000, 9016, 0, 0)]


def test_bpf_encode_services_stand_above_rules_for_the_same_port() -> None:
    made = encoded(entry("10.213.0.2/32", 53, proto="udp"), services=(endpoint("10.213.0.2", 53, "udp"),))
    ((_, value),) = elements(made, "am_exact").items()
    both = abi.C["AM_EXACT_SERVICE"] | abi.C["AM_EXACT_SURVIVES_CUT"]
    assert encode.EXACT_VALUE.unpack(value) == (0, 0, both)


def test_bpf_encode_timeouts_become_expiries_and_for_ever_wins() -> None:
    made = encoded(
        entry("198.51.100.7/32", 443, rule=4, timeout_s=60),
        entry("198.51.100.8/32", 443, rule=5, timeout_s=60),
        entry("198.51.100.8/32", 443, rule=6),
        entry("198.51.100.9/32", (1, 99), timeout_s=2),
    )
    values = sorted(encode.EXACT_VALUE.unpack(v) for v in elements(made, "am_exact").values())
    assert values == [(0, 5, 0), (NOW_NS + 60_000_000_000, 4, 0)]
    ((_, ranges),) = elements(made, "am_host").items()
    assert encode.unpack_ranges(ranges) == [(1, 99, 0, NOW_NS + 2_000_000_000)]


def test_bpf_encode_ranges_merge_longest_lived_first() -> None:
    made = encoded(
        entry("198.51.100.7/32", (100, 200), timeout_s=5),
        entry("198.51.100.7/32", (150, 300)),
        entry("198.51.100.7/32", (301, 400)),
        entry("198.51.100.7/32", (100, 200), timeout_s=9),
    )
    ((_, value),) = elements(made, "am_host").items()
    assert [r[:2] for r in encode.unpack_ranges(value)] == [(150, 400), (100, 200), (100, 200)]


def test_bpf_encode_prefixes_lead_outwards() -> None:
    made = encoded(
        entry("10.0.0.0/8", 80), entry("10.1.0.0/16", 443), entry("10.1.2.0/24", 22), entry("10.2.0.0/16", 1)
    )
    base = abi.PREFIX_BASE + 96
    shorter = {at: s for at, (_, s) in prefixes(made).items()}
    assert shorter == {
        (104, "::ffff:10.0.0.0"): 0,
        (112, "::ffff:10.1.0.0"): base + 8,
        (120, "::ffff:10.1.2.0"): base + 16,
        (112, "::ffff:10.2.0.0"): base + 8,
    }


def test_bpf_encode_same_prefix_merges_and_protocols_stay_apart() -> None:
    made = encoded(entry("10.0.0.0/8", 80), entry("10.0.0.0/8", 443, rule=1), entry("10.0.0.0/8", 53, proto="udp"))
    assert made.tables["am_prefix"].count == 2


def test_bpf_encode_wide_ipv6_stops_before_ipv4() -> None:
    made = encoded(entry("::/0", 443), entry("10.0.0.0/8", 80))
    found = prefixes(made)
    assert found[(0, "::")] == ([(443, 443, 0, 0)], 0)
    assert found[(96, "::ffff:0.0.0.0")] == ([], 0)
    assert found[(104, "::ffff:10.0.0.0")] == ([(80, 80, 0, 0)], abi.PREFIX_BASE + 96)
    all_of_both = prefixes(encoded(entry("::/0", 443), entry("0.0.0.0/0", 80)))
    assert all_of_both[(96, "::ffff:0.0.0.0")] == ([(80, 80, 0, 0)], 0)
    assert (96, "::ffff:0.0.0.0") not in prefixes(encoded(entry("2001:db8::/32", 443)))


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        ([entry("10.0.0.0/8", *range(1, 19, 2))], r"10\.0\.0\.0/8 tcp: 9 port ranges, 8 fit"),
        (
            [entry("198.51.100.7/32", *((i * 100, i * 100 + 50) for i in range(1, 10)))],
            r"198\.51\.100\.7/32 tcp: 9 port ranges, 8 fit",
        ),
        (
            [entry(f"10.0.0.0/{n}", 80) for n in range(8, 17)],
            r"10\.0\.0\.0/16 tcp: 9 networks inside each other, at most 8",
        ),
        ([entry("2001:db8::/32", *range(1, 19, 2), proto="udp")], r"2001:0db8:.*/32 udp: 9 port ranges"),
        ([entry("10.0.0.0/8", (443, 80))], "10.0.0.0/8: ports 443-80"),
        ([entry("198.51.100.7/32", 0)], "198.51.100.7/32: ports 0-0"),
        ([entry("10.0.0.0/8", (1, 65536))], "ports 1-65536"),
        ([entry("10.0.0.0/8", 80, timeout_s=5)], "a network with a timeout"),
    ],
)
def test_bpf_encode_says_what_does_not_fit(allow: list[Entry], message: str) -> None:
    with pytest.raises(Unencodable, match=message) as error:
        encoded(*allow)
    assert error.value.hint


def test_bpf_encode_eight_of_each_fit() -> None:
    encoded(entry("10.0.0.0/8", *range(1, 17, 2)), *(entry(f"10.0.0.0/{n}", 80) for n in range(9, 16)))


networks = st.one_of(
    st.builds(lambda a, n: ip_network((a, n), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda a, n: ip_network((a << 96, n), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 64)),
)
entries = st.builds(
    Entry,
    networks,
    st.sampled_from(["tcp", "udp"]),
    st.lists(st.tuples(st.integers(1, 9), st.integers(10, 65535)), max_size=2).map(tuple),
    st.integers(0, 99),
)


@given(st.lists(entries, max_size=6), st.randoms())
def test_bpf_encode_order_of_rules_does_not_matter(allow: list[Entry], random: object) -> None:
    """Same policy, same bytes; `rule` of equal entries apart, which hypothesis makes distinct by its value."""
    shuffled = list(allow)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert encoded(*allow) == encoded(*shuffled)
