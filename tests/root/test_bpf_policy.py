"""A bottle's policy in the maps of the running kernel: what it opens, and how it is learned, switched and ends."""

from __future__ import annotations

import errno

import pytest

from ebpf.errors import MapFull, UnknownSlot
from ebpf.spec import Guard, Mode
from tests.support.bpf_lab import Bottle, Lab, endpoint, entry, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    return bpf_lab


def test_bpf_prefixes_ranges_and_nesting(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(
        allow=(
            entry("198.51.100.0/24", 80, (8000, 8100), rule=1),
            entry("198.51.0.0/16", 5432, rule=2),
            entry("198.51.100.7/32", (1000, 9000), rule=3),  # an address with a wide range, inside both
            entry("2001:db8::/64", (1, 65535), rule=4),
        )
    )
    job = bottle.process()
    for port in (80, 8050, 5432):
        assert job.connect("198.51.100.8", port) == 0, port
        assert job.connect("198.51.100.7", port) == 0, port
    assert job.connect("2001:db8::8", 443) == 0
    assert job.connect("198.51.100.8", 443) == errno.EPERM
    assert job.connect("203.0.113.5", 80) == errno.EPERM
    assert job.connect("2001:db8:1::9", 443) == errno.EPERM
    assert job.sendto("198.51.100.8", 80) == errno.EPERM


def test_bpf_deny_wins_over_every_allow_but_not_over_services(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(
        services=(endpoint("203.0.113.5", 443),),
        allow=(entry("198.51.100.7/32", 443), entry("198.51.100.0/24", 80), entry("203.0.113.77/32", 80)),
        deny=(entry("198.51.100.7/32", (1, 65535), rule=7), entry("203.0.113.0/24", 443, 80, rule=8)),
    )
    job = bottle.process()
    assert job.connect("198.51.100.8", 80) == 0
    assert job.connect("203.0.113.5", 443) == 0
    assert job.connect("198.51.100.7", 443) == errno.EPERM
    assert job.connect("198.51.100.7", 80) == errno.EPERM
    assert job.connect("203.0.113.77", 80) == errno.EPERM
    assert [(e.reason, e.rule) for e in lab.events(job)] == [("deny", 7), ("deny", 7), ("deny", 8)]
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    assert job.connect("198.51.100.7", 443) == 0


def test_bpf_learned_addresses_end(lab: Lab, bottle: Bottle) -> None:
    bottle.apply()
    job = bottle.process()
    lab.programs.learn(
        bottle.slot,
        [
            entry("198.51.100.7/32", 443, rule=5, timeout_s=1),
            entry("198.51.100.8/32", (1, 65535), rule=6, timeout_s=1),
            entry("2001:db8::7/128", 443, timeout_s=300),
        ],
    )
    assert [job.connect(a, 443) for a in ("198.51.100.7", "198.51.100.8", "2001:db8::7")] == [0, 0, 0]
    until(lambda: job.connect("198.51.100.7", 443) == errno.EPERM)
    until(lambda: job.connect("198.51.100.8", 443) == errno.EPERM)
    assert {(e.reason, str(e.dst)) for e in lab.events(job)} == {
        ("expired", "198.51.100.7"),
        ("expired", "198.51.100.8"),
    }
    lab.programs.learn(bottle.slot, [entry("198.51.100.7/32", 443, timeout_s=300)])  # renewed
    assert job.connect("198.51.100.7", 443) == 0
    assert job.connect("2001:db8::7", 443) == 0
    bottle.apply()
    assert job.connect("2001:db8::7", 443) == errno.EPERM  # not carried over, so gone
    bottle.apply(allow=(entry("2001:db8::7/128", 443, timeout_s=300),))
    assert job.connect("2001:db8::7", 443) == 0


def test_bpf_learning_never_shortens(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 443, (1000, 9000)),))
    job = bottle.process()
    lab.programs.learn(bottle.slot, [entry("198.51.100.7/32", 443, (1000, 9000), timeout_s=1)])
    lab.programs.learn(bottle.slot, [entry("198.51.100.8/32", 443, timeout_s=300)])
    lab.programs.learn(bottle.slot, [entry("198.51.100.8/32", 443, timeout_s=1)])
    lab.programs.learn(bottle.slot, [entry("203.0.113.5/32", 443, timeout_s=1)])
    assert job.connect("203.0.113.5", 443) == 0
    until(lambda: job.connect("203.0.113.5", 443) == errno.EPERM)
    assert job.connect("198.51.100.7", 443) == 0
    assert job.connect("198.51.100.7", 5432) == 0
    assert job.connect("198.51.100.8", 443) == 0


def test_bpf_a_deleted_bottle_is_refused(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()
    assert job.connect("198.51.100.7", 443) == 0
    for _ in range(2):
        lab.programs.delete_bottle(bottle.slot)
        assert bottle.slot not in lab.programs.slots()
        assert job.connect("198.51.100.7", 443) == errno.EPERM
    with pytest.raises(UnknownSlot, match=f"slot {bottle.slot}: no such bottle"):
        lab.programs.set_mode(bottle.slot, Mode.CUT)
    with pytest.raises(UnknownSlot):
        lab.programs.learn(bottle.slot, [entry("198.51.100.7/32", 443)])


def test_bpf_a_full_map_raises_and_goes_on_refusing(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()
    many = tuple(entry(f"203.0.{i >> 8}.{i & 255}/32", 1) for i in range(2000))
    with pytest.raises(MapFull, match="am_exact holds 2048 entries"):
        bottle.apply(allow=(*many, *(entry(f"203.1.{i >> 8}.{i & 255}/32", 1) for i in range(100))))
    assert job.connect("198.51.100.7", 443) == 0  # the policy before is in force, whole
    assert job.connect("203.0.113.5", 443) == errno.EPERM
    bottle.apply(allow=many)  # the failed attempt left no elements behind
    with pytest.raises(MapFull):
        lab.programs.learn(bottle.slot, [entry(f"203.2.0.{i}/32", 1) for i in range(250)])
    assert job.connect("198.51.100.8", 443) == errno.EPERM


def test_bpf_a_policy_is_switched_whole_and_its_elements_go(lab: Lab, bottle: Bottle) -> None:
    job = bottle.process()
    for i in range(20):
        bottle.apply(
            allow=(
                entry("198.51.100.7/32", 443),
                entry(f"10.{i}.0.0/16", (1, 9)),
                entry("198.51.100.7/32", (500, 999)),
            ),
            deny=(entry("10.0.0.0/8", 22),),
        )
        assert job.connect("198.51.100.7", 443) == 0
    sizes = {
        name: sum(1 for _ in lab.programs.table(name).items())
        for name in ("am_exact", "am_host", "am_prefix", "am_deny")
    }
    assert sizes == {"am_exact": 1, "am_host": 1, "am_prefix": 1, "am_deny": 1}
    lab.programs.delete_bottle(bottle.slot)
    assert all(not list(lab.programs.table(name).items()) for name in sizes)


def test_bpf_the_same_policy_id_again_does_no_harm(lab: Lab, bottle: Bottle) -> None:
    job = bottle.process()
    first = bottle.apply(allow=(entry("198.51.100.7/32", 443), entry("198.51.100.8/32", 443)))
    bottle.apply(policy_id=first.policy_id, allow=(entry("198.51.100.7/32", 443), entry("203.0.113.5/32", 80)))
    assert [job.connect("198.51.100.7", 443), job.connect("203.0.113.5", 80)] == [0, 0]
    assert job.connect("198.51.100.8", 443) == errno.EPERM


def test_bpf_two_bottles_do_not_mix(lab: Lab, bottle: Bottle) -> None:
    other = lab.bottle()
    first = bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    other.apply(policy_id=first.policy_id, allow=(entry("198.51.100.8/32", 443),))  # a caller that counts anew
    jobs = bottle.process(), other.process()
    assert [j.connect("198.51.100.7", 443) for j in jobs] == [0, errno.EPERM]
    assert [j.connect("198.51.100.8", 443) for j in jobs] == [errno.EPERM, 0]
    with pytest.raises(ValueError, match=f"is the bottle in slot {bottle.slot} already"):
        lab.programs.apply(type(first)(other.slot, bottle.id, 99_999, 1, Mode.ENFORCE))
    lab.programs.delete_bottle(other.slot)


@pytest.mark.parametrize("guard", [Guard.OFF, Guard.STRICT])
@pytest.mark.parametrize("port", [9, 443])
def test_bpf_observe_lets_no_udp_connect_pass_unseen(lab: Lab, bottle: Bottle, port: int, guard: Guard) -> None:
    """What looks like sorting addresses can send where it is let through: it is told, and strict refuses it."""
    bottle.apply(mode=Mode.OBSERVE, allow=(entry("198.51.100.7/32", 443),), guard=guard)
    job = bottle.process()
    strict = guard is Guard.STRICT
    if strict:
        assert job.do("register", value=1) == 0
    assert job.connect("198.51.100.7", port, sort="dgram") == (errno.EPERM if strict else 0)
    found = [(e.kind, e.verdict, e.port) for e in lab.events(job)]
    assert found == [("bypass", "refused", port) if strict else ("connect", "observed", port)]
