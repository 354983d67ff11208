"""What a change takes back, in set x: covers every flow that is refused now, and spares every one that is allowed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from netfilter.bottle import Bottle
from netfilter.elements import Element
from netfilter.plan import planned
from netfilter.revoke import MOST, Region, beyond
from netfilter.spec import BottleRules, Direct, Learned, Mode
from netfilter.verdict import Judge
from tests.support.nf_lab import direct, learned, net, rules

PLACES = ["198.51.100.7", "198.51.100.200", "203.0.113.9", "2001:db8::7", "2001:db8:1::9"]
NETWORKS = ["198.51.100.0/24", "198.51.100.7/32", "198.51.100.128/25", "0.0.0.0/0", "2001:db8::/32", "2001:db8::7/128"]
PORTS = (443, 444, 5432)
spans = st.sampled_from([((443, 443),), ((443, 444),), ((1, 65535),), ((5432, 5432), (443, 443))])
directs = st.builds(Direct, st.sampled_from(NETWORKS).map(ip_network), st.just("tcp"), spans)
names = st.builds(Learned, st.sampled_from(PLACES).map(ip_address), st.just("tcp"), spans, st.sampled_from([0, 60]))
policies = st.tuples(*(st.lists(some, max_size=3).map(tuple) for some in (directs, directs, names)))
NS = 1_000_000_000


def fresh() -> Bottle:
    return Bottle.made(net(16), SimpleNamespace())  # type: ignore[arg-type]


def change(bottle: Bottle, wanted: BottleRules, now_ns: int) -> None:
    bottle.took(planned(bottle, wanted, now_ns))
    bottle.note(wanted.learned, now_ns)


def covered(region: Region, place: str, port: int) -> bool:
    return region.meets(Learned(ip_address(place), "tcp", ((port, port),), 0))


@given(st.lists(policies, min_size=1, max_size=6))
def test_no_flow_passes_by_its_epoch_that_the_rules_refuse(history: list[tuple[object, object, object]]) -> None:
    """Flows are opened after every change; what an epoch speaks for is what its mark says and x does not cover."""
    bottle, open_now, now = fresh(), set(), 0
    for epoch, (allow, deny, known) in enumerate(history, 1):
        wanted = rules(16, epoch, *allow, deny=deny, learned=known)  # type: ignore[misc]
        plan = planned(bottle, wanted, now)
        judge = Judge(wanted)
        if plan.renumbers:  # what lives and is allowed is re-marked, the rest ends
            open_now = {f for f in open_now if judge.verdict(ip_address(f[0]), 6, f[1]).passes}
        change(bottle, wanted, now)
        live = [e for e in known if e.timeout_s]  # type: ignore[attr-defined]
        for place, port in open_now:
            passes = judge.verdict(ip_address(place), 6, port).passes
            by_sets = judge.verdict(ip_address(place), 6, port, []).passes
            if covered(bottle.region, place, port):
                assert passes == by_sets, f"{place}:{port} is allowed by an address that may expire, and x covers it"
            else:
                assert passes, f"{place}:{port} goes on under epoch {bottle.rules.epoch}"  # type: ignore[union-attr]
        open_now |= {
            (p, n) for p in PLACES for n in PORTS if judge.verdict(ip_address(p), 6, n, live).passes
        }  # fmt: skip
        now += NS


def test_a_removal_keeps_the_chain_and_its_epoch() -> None:
    bottle = fresh()
    change(bottle, rules(16, 1, direct("198.51.100.7/32"), direct("203.0.113.0/24")), 0)
    plan = planned(bottle, rules(16, 2, direct("203.0.113.0/24")), 0)
    assert not plan.rewrites and not plan.renumbers and plan.owes
    assert [e.network for e in plan.region.elements] == [ip_network("198.51.100.7/32")]
    lines = plan.describe()
    assert "host: add element inet agentmon x4_16 { 198.51.100.7 . tcp . 1-65535 }" in lines
    assert lines[-1] == "end the flows that are refused now"
    bottle.took(plan)
    assert bottle.rules is not None and bottle.rules.epoch == 1 and bottle.asked == 2


def test_what_x_cannot_say_begins_a_new_epoch() -> None:
    base = (direct("198.51.100.0/24"),)
    for wanted, why in (
        (rules(16, 2, mode=Mode.OBSERVE), "mode"),
        (rules(16, 2, learned=(learned("198.51.100.7", timeout_s=0),)), "an address that has expired lies in it"),
        (replace(rules(16, 2, *base), services=()), "services"),
    ):
        bottle = fresh()
        change(bottle, rules(16, 1, *base), 0)
        plan = planned(bottle, wanted, 0)
        assert plan.renumbers and not plan.region.elements, why
        assert plan.describe()[0].startswith("re-mark")
    bottle = fresh()
    change(bottle, rules(16, 1, *base), 0)
    change(bottle, rules(16, 1), 0)  # a removal within an epoch ends nothing; the next epoch makes up for it
    assert planned(bottle, rules(16, 2), 0).renumbers


def test_too_much_is_a_new_epoch_and_the_same_again_is_not_more() -> None:
    many = [Element.of(ip_network(f"198.51.{n >> 7}.{2 * (n & 127)}/32"), "tcp", 443, 443) for n in range(MOST)]
    region = beyond(Region(), many, [])
    assert region is not None and len(region.elements) == MOST
    assert beyond(region, [Element.of(ip_network("203.0.113.7"), "tcp", 443, 443)], []) is None
    few = Region().with_more(many[:2])
    assert few.with_more(many[:2]).elements == few.elements


def test_many_elements_are_described_by_the_first() -> None:
    bottle = fresh()
    change(bottle, rules(16, 1), 0)
    plan = planned(bottle, rules(16, 1, *(direct(f"198.51.100.{n}/32", "tcp", 443) for n in range(40))), 0)
    (line,) = [line for line in plan.describe() if line.startswith("host")]
    assert line.endswith("198.51.100.2 . tcp . 443, … and 37 more }")
    assert plan.inner() and not plan.rewrites
