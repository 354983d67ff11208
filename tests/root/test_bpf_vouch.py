"""Vouching on the running kernel: who is guarded, what counts as vouched for, and what becomes of the rest."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

import pytest

from ebpf.spec import Event, Guard, Mode
from tests.support.bpf_lab import Bottle, Lab, Process, endpoint, entry, until

pytestmark = pytest.mark.root

KNOWN, OTHER = "198.51.100.7", "198.51.100.8"
SIX = "2001:db8::7"
ALLOW = (
    entry(f"{KNOWN}/32", 443),
    entry(f"{OTHER}/32", 443),
    entry(f"{SIX}/128", 443),
    entry(f"{KNOWN}/32", 80, proto="udp"),
    entry(f"{OTHER}/32", 80, proto="udp"),
    entry(f"{SIX}/128", 80, proto="udp"),
)


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    assert bpf_lab.programs.features() >= {"vouch", "origin"}, bpf_lab.programs.left_out
    return bpf_lab


def guarded(bottle: Bottle, guard: Guard = Guard.OBSERVE, **more: Any) -> Process:
    """A process that registered itself in a bottle with vouching."""
    bottle.apply(**{"allow": ALLOW, **more}, guard=guard)
    job = bottle.process()
    assert job.do("register", value=7) == 0
    return job


def bypasses(lab: Lab, job: Process | None = None) -> list[tuple[str, str, str, int]]:
    """Events that wait: (verdict, reason, destination, port) of every bypass."""
    return [
        (e.verdict, e.reason, str(e.dst), e.port)
        for e in lab.programs.read()
        if e.kind == "bypass" and (job is None or e.tgid == job.pid)
    ]


@pytest.mark.parametrize("guard", [Guard.OBSERVE, Guard.STRICT])
@pytest.mark.parametrize("to", [KNOWN, SIX])
def test_vouch_an_unvouched_connect_is_a_bypass(lab: Lab, bottle: Bottle, guard: Guard, to: str) -> None:
    job = guarded(bottle, guard)
    assert job.connect(to, 443, vouched=[to, 443]) == 0
    assert bypasses(lab) == []
    assert lab.received() == [f"tcp {to} 443"]
    strict = guard is Guard.STRICT
    assert job.connect(to, 443) == (errno.EPERM if strict else 0)
    assert lab.received() == ([] if strict else [f"tcp {to} 443"])
    assert bypasses(lab, job) == [("refused" if strict else "observed", "unvouched", to, 443)]


@pytest.mark.parametrize("guard", [Guard.OBSERVE, Guard.STRICT])
def test_vouch_sendto_and_sendmsg_on_an_unconnected_socket(lab: Lab, bottle: Bottle, guard: Guard) -> None:
    job = guarded(bottle, guard)
    strict = guard is Guard.STRICT
    for op in ("sendto", "sendmsg"):
        for version, to in (("4", KNOWN), ("6", SIX)):
            shape = {"version": version, "to": [to, 80], "sort": "dgram"}
            assert job.do(op, vouched=[to, 80], **shape) == 0
            assert job.do(op, **shape) == (errno.EPERM if strict else 0)
    assert len(lab.received()) == (4 if strict else 8)
    # Two operations to each destination: one event at once, and the repeat with the next flush; each is told once.
    told: Counter[tuple[str, str, str, int]] = Counter()

    def all_told() -> bool:
        for e in lab.programs.read():
            assert e.kind == "bypass" and e.tgid == job.pid
            told[e.verdict, e.reason, str(e.dst), e.port] += e.count
        return sum(told.values()) >= 4

    until(all_told)
    verdict = "refused" if strict else "observed"
    assert told == {(verdict, "unvouched", KNOWN, 80): 2, (verdict, "unvouched", SIX, 80): 2}


def test_vouch_is_for_one_destination(lab: Lab, bottle: Bottle) -> None:
    """Re-use of a vouched descriptor for another address, port or protocol is a bypass; for its own it is not."""
    job = guarded(bottle, Guard.STRICT)
    assert job.sendto(KNOWN, 80, keep="u", vouched=[KNOWN, 80]) == 0
    assert job.sendto(OTHER, 80, use="u") == errno.EPERM
    assert job.sendto(KNOWN, 80, use="u") == 0
    assert job.connect(KNOWN, 443, keep="t", vouched=[KNOWN, 443]) == 0
    assert job.do("disconnect", use="t") == 0
    assert job.connect(OTHER, 443, use="t") == errno.EPERM
    assert job.connect(KNOWN, 443, use="t") == 0
    assert bypasses(lab, job) == [("refused", "unvouched", OTHER, 80), ("refused", "unvouched", OTHER, 443)]


def test_vouch_a_socket_keeps_its_last_four_destinations(lab: Lab, bottle: Bottle) -> None:
    allow = (*ALLOW, entry("203.0.113.0/24", 443, 80, proto="udp"))
    job = guarded(bottle, Guard.STRICT, allow=allow)
    hosts = [KNOWN, OTHER, "203.0.113.5", "203.0.113.77"]
    assert job.sendto(KNOWN, 80, keep="u", vouched=[KNOWN, 80]) == 0
    for host in hosts[1:]:
        assert job.sendto(host, 80, use="u", vouched=[host, 80]) == 0
    for host in hosts:
        assert job.sendto(host, 80, use="u") == 0
    assert job.sendto(KNOWN, 80, use="u", vouched=[OTHER, 80]) == 0  # known already: nothing gives way
    assert job.sendto("203.0.113.5", 443, use="u", vouched=["203.0.113.5", 443]) == 0
    assert job.sendto(KNOWN, 80, use="u") == errno.EPERM  # the oldest gave way
    assert job.sendto(OTHER, 80, use="u") == 0


def test_vouch_a_refused_destination_stays_refused_and_says_bypass(lab: Lab, bottle: Bottle) -> None:
    """Vouching opens nothing; a guarded process that tries behind its guard's back is named as that."""
    job = guarded(bottle)
    assert job.connect("203.0.113.5", 443, vouched=["203.0.113.5", 443]) == errno.EPERM
    assert [(e.kind, e.reason) for e in lab.events(job)] == [("connect", "default")]
    assert job.connect("203.0.113.77", 443) == errno.EPERM
    (event,) = lab.events(job)
    assert (event.kind, event.verdict, event.reason, event.guarded) == ("bypass", "refused", "default", True)
    assert lab.received() == []


def test_vouch_in_observe_mode_what_no_rule_allows_is_a_bypass_too(lab: Lab, bottle: Bottle) -> None:
    job = guarded(bottle, mode=Mode.OBSERVE)
    assert job.connect("203.0.113.77", 443) == 0
    assert bypasses(lab, job) == [("observed", "default", "203.0.113.77", 443)]
    strict = guarded(bottle, Guard.STRICT, mode=Mode.OBSERVE)
    assert strict.connect("203.0.113.77", 443) == errno.EPERM
    assert bypasses(lab, strict) == [("refused", "unvouched", "203.0.113.77", 443)]


def test_vouch_an_unguarded_process_is_judged_by_the_policy_alone(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    job = bottle.process()
    assert job.connect(KNOWN, 443) == 0
    assert job.connect("203.0.113.77", 443) == errno.EPERM
    assert [(e.kind, e.guarded) for e in lab.events(job)] == [("connect", False)]


def test_vouch_where_the_guard_is_off_nobody_registers(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=ALLOW)
    job = bottle.process()
    assert job.do("register", value=7) == errno.ENOPROTOOPT
    assert job.connect(KNOWN, 443, vouched=[KNOWN, 443]) == errno.ENOPROTOOPT
    assert job.connect(KNOWN, 443) == 0
    assert lab.events(job) == []
    assert lab.programs.guarded() == {}


def test_vouch_register_is_for_good(lab: Lab, bottle: Bottle) -> None:
    """Another token neither replaces nor ends a registration; a vouch needs one."""
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    job = bottle.process()
    assert job.connect(KNOWN, 443, vouched=[KNOWN, 443]) == errno.EPERM  # not registered: nothing to vouch for
    assert job.do("unregister", value=7) == errno.EPERM
    assert job.do("register", value=7) == 0
    assert lab.programs.guarded() == {job.pid: bottle.slot}
    assert job.do("register", value=7) == 0
    assert job.do("register", value=8) == errno.EPERM
    assert job.do("unregister", value=8) == errno.EPERM
    assert job.connect(KNOWN, 443) == errno.EPERM
    assert job.do("unregister", value=7) == 0
    assert job.connect(KNOWN, 443) == 0
    assert lab.programs.guarded() == {}


@pytest.mark.parametrize("value", ["", "00", "00" * 7])
@pytest.mark.parametrize("option", [1, 2, 3])
def test_vouch_a_short_value_is_refused(lab: Lab, bottle: Bottle, option: int, value: str) -> None:
    job = guarded(bottle)
    assert job.do("option", option=[24941, option, value]) == errno.EPERM


def test_vouch_unknown_options_of_our_level_are_refused_and_other_levels_untouched(lab: Lab, bottle: Bottle) -> None:
    job = guarded(bottle)
    assert job.do("option", option=[24941, 9, "00" * 24]) == errno.EPERM
    assert job.do("option", option=[1, 9, "01000000"]) == 0  # SOL_SOCKET, SO_KEEPALIVE
    assert job.do("option", option=[24942, 1, "00" * 8]) == errno.ENOPROTOOPT


def test_vouch_goes_over_fork_and_ends_at_exec(lab: Lab, bottle: Bottle) -> None:
    job = guarded(bottle, Guard.STRICT)
    assert job.connect(KNOWN, 443, by="child") == errno.EPERM
    assert job.connect(KNOWN, 443, by="child", vouched=[KNOWN, 443]) == 0
    assert job.connect(KNOWN, 443, by="program") == 0  # another program: unguarded
    (event,) = [e for e in lab.programs.read() if e.kind == "bypass"]
    assert event.tgid != job.pid
    assert until(lambda: lab.programs.guarded() == {job.pid: bottle.slot})


def test_vouch_threads_are_the_process(lab: Lab, bottle: Bottle) -> None:
    job = guarded(bottle, Guard.STRICT)
    assert job.connect(KNOWN, 443, by="thread") == errno.EPERM
    assert job.connect(KNOWN, 443, by="thread", vouched=[KNOWN, 443]) == 0
    (event,) = lab.events(job)
    assert event.pid != event.tgid == job.pid
    assert lab.programs.guarded() == {job.pid: bottle.slot}


def test_vouch_a_socket_passes_it_on(lab: Lab, bottle: Bottle) -> None:
    """A vouch belongs to the socket: a child that inherited it may use it for what it was approved for."""
    job = guarded(bottle, Guard.STRICT)
    assert job.sendto(KNOWN, 80, keep="u", vouched=[KNOWN, 80]) == 0
    assert job.sendto(KNOWN, 80, use="u", by="child") == 0
    assert job.sendto(OTHER, 80, use="u", by="child") == errno.EPERM


def test_vouch_sockets_made_before_registering_count_too(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    job = bottle.process()
    assert job.sendto(KNOWN, 80, keep="u") == 0
    assert job.do("register", value=1) == 0
    assert job.sendto(KNOWN, 80, use="u") == errno.EPERM
    assert job.sendto(KNOWN, 80, use="u", vouched=[KNOWN, 80]) == 0


def test_vouch_connect_ex_is_a_connect(lab: Lab, bottle: Bottle) -> None:
    job = guarded(bottle, Guard.STRICT)
    assert job.do("connect_ex", to=[KNOWN, 443]) == errno.EPERM
    assert job.do("connect_ex", to=[KNOWN, 443], vouched=[KNOWN, 443]) == 0


def test_vouch_a_mapped_destination_is_the_ipv4_one(lab: Lab, bottle: Bottle) -> None:
    job = guarded(bottle, Guard.STRICT)
    shape = {"version": "6", "to": [f"::ffff:{KNOWN}", 443]}
    assert job.do("connect", vouched=[KNOWN, 443], **shape) == 0
    assert job.do("connect", vouched=[f"::ffff:{KNOWN}", 443], **shape) == 0
    assert job.do("connect", **shape) == errno.EPERM


@pytest.mark.parametrize("how", ["mptcp", "fastopen"])
def test_vouch_other_ways_to_connect_by_tcp(lab: Lab, bottle: Bottle, how: str) -> None:
    job = guarded(bottle, Guard.STRICT)
    shape = {"proto": 262} if how == "mptcp" else {}
    op = "connect" if how == "mptcp" else "fastopen"
    assert job.do(op, to=[KNOWN, 443], vouched=[KNOWN, 443], **shape) in (0, errno.EINPROGRESS)
    assert job.do(op, to=[KNOWN, 443], **shape) == errno.EPERM
    assert until(lab.received) == [f"tcp {KNOWN} 443"]


def test_vouch_the_resolver_needs_none(lab: Lab, bottle: Bottle) -> None:
    """libc sends its queries by itself; other services of agentmon are destinations like any other."""
    services = (endpoint("203.0.113.5", 53, "udp"), endpoint("203.0.113.5", 443))
    free = tuple(type(s)(s.address, s.proto, s.port, s.survives_cut, s.port == 53) for s in services)
    job = guarded(bottle, Guard.STRICT, services=free)
    assert job.sendto("203.0.113.5", 53) == 0
    assert job.connect("203.0.113.5", 53, sort="dgram") == 0
    assert job.connect("203.0.113.5", 443) == errno.EPERM
    assert bypasses(lab, job) == [("refused", "unvouched", "203.0.113.5", 443)]


def test_vouch_accepted_sockets_are_silent(lab: Lab, bottle: Bottle) -> None:
    """An accepted connection passes no connect hook, and needs no vouch."""
    job = guarded(bottle, Guard.STRICT)
    assert job.do("bind", to=["127.0.0.1", 8099], keep="l") == 0
    assert job.do("listen", use="l") == 0
    assert job.connect("127.0.0.1", 8099, vouched=["127.0.0.1", 8099]) == 0
    assert job.connect("127.0.0.1", 8099) == errno.EPERM  # the bottle's own loopback is a destination too
    assert bypasses(lab, job) == [("refused", "unvouched", "127.0.0.1", 8099)]


def test_vouch_registrations_end_with_the_process(lab: Lab, bottle: Bottle) -> None:
    job = guarded(bottle)
    assert job.pid in lab.programs.guarded()
    job.end()
    assert until(lambda: job.pid not in lab.programs.guarded())


def test_vouch_a_full_table_refuses_to_register(lab: Lab, bottle: Bottle) -> None:
    """The guard is told, and what it did not register is judged by the policy like any process."""
    table = lab.programs.table("am_guarded")
    keys = [(1 << 30 | i).to_bytes(4, "little") for i in range(table.limit)]
    bottle.apply(allow=ALLOW, guard=Guard.STRICT)
    job = bottle.process()
    try:
        for key in keys:
            table.update(key, bytes(table.value_bytes))
        assert job.do("register", value=3) == errno.EPERM
        assert job.connect(KNOWN, 443) == 0
    finally:
        table.delete_batch(b"".join(keys))
    assert job.do("register", value=3) == 0


def test_vouch_survives_an_upgrade_of_the_programs(lab: Lab, bottle: Bottle) -> None:
    from ebpf import encode

    job = guarded(bottle, Guard.STRICT)
    assert job.sendto(KNOWN, 80, keep="u", vouched=[KNOWN, 80]) == 0
    config = lab.programs.table("am_config")
    _, level, flags, features = encode.CONFIG.unpack(config.lookup(bytes(4)) or b"")
    config.update(bytes(4), encode.CONFIG.pack(0, level, flags, features))  # as a loader that was killed half-way
    lab.programs.open(str(lab.parent))
    assert lab.programs.guarded() == {job.pid: bottle.slot}
    assert job.sendto(KNOWN, 80, use="u") == 0
    assert job.sendto(OTHER, 80, use="u") == errno.EPERM
    assert job.connect(KNOWN, 443, by="child") == errno.EPERM


def attributed(lab: Lab, job: Process) -> Event:
    (event,) = lab.events(job)
    return event


def test_vouch_an_event_says_which_system_call(lab: Lab, bottle: Bottle) -> None:
    job = guarded(bottle)
    assert job.connect(KNOWN, 443) == 0
    assert attributed(lab, job).syscall == "connect"
    assert job.sendto(KNOWN, 80) == 0
    assert attributed(lab, job).syscall == "sendto"


def test_vouch_a_udp_connect_is_not_hidden_behind_a_lookup(lab: Lab, bottle: Bottle) -> None:
    """libc connects UDP sockets to sort its answers: nobody's doing, whereas the same connect by others is a bypass."""
    loopback = (entry("127.0.0.1/32", 8099, proto="udp"), entry("::1/128", 8099, proto="udp"))
    job = guarded(bottle, allow=(*ALLOW, *loopback))
    for _ in range(2):
        assert job.do("look-up", name="localhost", port=8099) >= 1
        lab.programs.read()
        assert job.connect("127.0.0.1", 8099, sort="dgram") == 0
        assert bypasses(lab, job) == [("observed", "unvouched", "127.0.0.1", 8099)]
        for _ in range(3):
            assert job.connect("127.0.0.1", 8099, sort="dgram") == 0
        counts: list[int] = []

        def all_told(counts: list[int] = counts) -> bool:
            counts += [e.count for e in lab.programs.read() if e.kind == "bypass" and e.port == 8099]
            return sum(counts) >= 3

        until(all_told)
        assert sum(counts) == 3
