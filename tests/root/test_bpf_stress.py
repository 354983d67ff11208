"""Verdicts under load on the running kernel: bursts, policies of 100,000 entries, programs swapped, full maps."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ebpf import abi, cgroup, encode, links, syscall
from ebpf.errors import MapFull
from ebpf.maps import Map
from ebpf.sources import Sizes
from ebpf.spec import Entry, Guard, Listen, Mode
from tests.support.bpf_lab import SIZES, Lab, entry, until
from tests.support.bpf_storm import Step, Storm

pytestmark = pytest.mark.root
PERMITTED, OTHER, SIXTH, CLOSED = "198.51.100.7", "198.51.100.8", "2001:db8::8", 7
"""Nobody listens on port CLOSED: a permitted connect is refused by the other side, with another errno than ours."""
NET, NET_TOO = "203.0.113.5", "203.0.113.77"


@contextlib.contextmanager
def opened(sizes: Sizes = SIZES) -> Iterator[Lab]:
    with Lab() as lab:
        lab.programs = lab.new_programs(sizes=sizes)
        lab.programs.open(str(lab.parent))
        yield lab


@contextlib.contextmanager
def storms(*made: Storm) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Runs them; gives the function that ends them and takes their counts."""
    try:
        for storm in made:
            storm.begin()
        yield lambda: [storm.end() for storm in made]
    finally:
        for storm in made:
            storm.kill()


def test_stress_a_burst_changes_no_verdict_and_every_operation_is_accounted_for() -> None:
    """Four processes, 200,000 refused connects to 1,000 destinations, nobody reading: the ring overflows."""
    processes, rounds = 4, 50
    steps: list[Step] = [
        ("connect", (host, 1000 + n), errno.EPERM) for n in range(250) for host in (OTHER, NET, SIXTH, "2001:db8:1::9")
    ]
    steps[500:500] = [("connect", (PERMITTED, CLOSED), errno.ECONNREFUSED), ("sendto", (PERMITTED, 53), 0)]
    with opened(replace(SIZES, seen=65_536)) as lab:
        bottle = lab.bottle()
        bottle.apply(allow=(entry(f"{PERMITTED}/32", CLOSED), entry(f"{PERMITTED}/32", 53, proto="udp")))
        made = [Storm(bottle.directory, lab.netns, steps, rounds) for _ in range(processes)]
        with storms(*made) as end:
            counts = end()
        assert [(c["rounds"], c["wrong"]) for c in counts] == [(rounds, [])] * processes
        lost, total = lab.programs.lost(), processes * rounds * 1000
        assert lost > 0
        ours, told = {storm.pid for storm in made}, 0

        def accounted() -> bool:
            nonlocal told
            found = lab.programs.read()
            assert {e.verdict for e in found} <= {"refused"}
            told += sum(e.count for e in found if e.tgid in ours)
            return told + lost >= total

        until(accounted, 60)
        assert told + lost == total
        assert lab.programs.lost() == lost


def test_stress_repeats_that_the_lru_forgets_change_no_verdict() -> None:
    """Twenty times as many destinations as am_seen has room for, while the reader empties it."""
    steps: list[Step] = [("connect", (OTHER, 1000 + n), errno.EPERM) for n in range(5000)]
    steps += [("connect", (PERMITTED, CLOSED), errno.ECONNREFUSED)]
    with opened(replace(SIZES, seen=256)) as lab:
        bottle = lab.bottle()
        bottle.apply(allow=(entry(f"{PERMITTED}/32", CLOSED),))
        storm = Storm(bottle.directory, lab.netns, steps, 4)
        with storms(storm) as end:
            told = sum(e.count for _ in range(5) for e in lab.programs.read())
            (count,) = end()
        assert (count["rounds"], count["wrong"]) == (4, [])
        told += sum(e.count for _ in range(50) for e in lab.programs.read())
        assert 256 <= told + lab.programs.lost() <= 4 * 5000


def many(*others: Entry) -> tuple[Entry, ...]:
    """100,000 entries: half of them single addresses, half networks, and `others` among them."""
    single = [entry(f"11.{n >> 8}.{n & 255}.9/32", 443) for n in range(50_000)]
    networks = [entry(f"12.{n >> 8}.{n & 255}.0/24", 443) for n in range(50_000)]
    return (*single, *others, *networks)


def test_stress_a_policy_of_100000_entries_is_replaced_as_one() -> None:
    """Two policies that open different destinations, by address and by network. A round asks a, b, a: with one switch
    at most in a round, the answers yes-yes-yes and no-no-no would be a mixture of the two."""
    yes, no = f"{errno.ECONNREFUSED} ", f"{errno.EPERM} "
    sizes = replace(SIZES, exact=200_000, prefix=200_000)
    always = (entry("2001:db8::7/128", CLOSED),)
    with opened(sizes) as lab:
        bottle = lab.bottle()
        policies = [
            many(*always, entry(f"{PERMITTED}/32", CLOSED), entry("203.0.113.0/29", CLOSED)),
            many(*always, entry(f"{OTHER}/32", CLOSED), entry("203.0.113.72/29", CLOSED)),
        ]
        bottle.apply(allow=policies[0])
        held: list[Step] = [
            ("connect", ("2001:db8::7", CLOSED), errno.ECONNREFUSED), ("connect", (SIXTH, CLOSED), errno.EPERM),
        ]  # fmt: skip
        by_address: list[Step] = [("connect", (host, CLOSED), None) for host in (PERMITTED, OTHER, PERMITTED)]
        by_network: list[Step] = [("connect", (host, CLOSED), None) for host in (NET, NET_TOO, NET)]
        made = [Storm(bottle.directory, lab.netns, held + steps) for steps in (by_address, by_network)]
        with storms(*made) as end:
            for number in (1, 2, 3):
                bottle.apply(allow=policies[number % 2])
            counts = end()
        assert len(list(lab.programs.table("am_exact").items())) == 50_002  # nothing of the other policy is left
        assert len(list(lab.programs.table("am_prefix").items())) == 50_001
    for count in counts:
        assert count["wrong"] == []
        assert yes * 3 not in count["got"] and no * 3 not in count["got"], count["got"]
        assert min(count["got"].get(yes + no + yes, 0), count["got"].get(no + yes + no, 0)) > 10, count["got"]
        assert 3 <= count["switches"] <= 6  # each switch changes the answer once, twice if it falls into a round


def programs_of(lab: Lab) -> dict[links.Hook, int]:
    """Descriptors of the programs in force, by the hook of a cgroup."""
    found = {}
    for hook in links.HOOKS:
        if hook.prog_type in (links.SOCK, links.SOCK_ADDR, links.SOCKOPT):
            link = links.pinned(str(lab.pin_dir / "links" / hook.function))
            if link is not None:
                attr = struct.pack("=III", link.prog_id, 0, 0)
                found[hook] = syscall.call(syscall.PROG_GET_FD_BY_ID, attr, hook.function)
    return found


def reload(lab: Lab) -> None:
    """A full upgrade by the loader, as after a loader that was killed half-way."""
    config = encode.CONFIG.pack(0, cgroup.level(lab.parent) + 1, 0, 0)
    lab.programs.table("am_config").update(b"\0\0\0\0", config)
    lab.programs.open(str(lab.parent))


def test_stress_100_upgrades_in_place_without_a_wrong_verdict() -> None:
    plain: list[Step] = [
        ("connect", (PERMITTED, CLOSED), errno.ECONNREFUSED), ("connect", (OTHER, CLOSED), errno.EPERM),
        ("connect", ("2001:db8::7", CLOSED), errno.ECONNREFUSED), ("connect", (SIXTH, CLOSED), errno.EPERM),
    ]  # fmt: skip
    sending: list[Step] = [
        ("sendto", (PERMITTED, 53), 0), ("sendto", (OTHER, 53), errno.EPERM),
        ("sendto", ("2001:db8::7", 53), 0), ("sendto", (SIXTH, 53), errno.EPERM),
    ]  # fmt: skip
    guarded: list[Step] = [
        ("vouched", (PERMITTED, CLOSED), errno.ECONNREFUSED), ("connect", (PERMITTED, CLOSED), errno.EPERM),
        ("vouched", (OTHER, CLOSED), errno.EPERM),
    ]  # fmt: skip
    with opened() as lab, contextlib.ExitStack() as held:
        bottle, strict = lab.bottle(), lab.bottle()
        allow = tuple(entry(n, CLOSED) for n in (f"{PERMITTED}/32", "2001:db8::7/128"))
        bottle.apply(
            allow=(*allow, *(entry(n, 53, proto="udp") for n in (f"{PERMITTED}/32", "2001:db8::7/128"))),
        )
        strict.apply(allow=allow, guard=Guard.STRICT)
        before = programs_of(lab)
        reload(lab)
        after = programs_of(lab)
        assert set(before) == set(after) and len(before) > 9
        for fd in (*before.values(), *after.values()):
            held.callback(os.close, fd)
        made = [
            Storm(bottle.directory, lab.netns, plain), Storm(bottle.directory, lab.netns, sending),
            Storm(strict.directory, lab.netns, guarded, guarded="guarded"),
        ]  # fmt: skip
        with storms(*made) as end:
            for number in range(100):  # each one meets every process in a round of its own
                for hook, fd in (before, after)[number % 2].items():
                    links.update(str(lab.pin_dir / "links" / hook.function), hook, fd)
                at = [storm.done() for storm in made]
                until(lambda at=at: all(storm.done() > a + 1 for storm, a in zip(made, at, strict=True)), 30)
            for _ in range(2):
                reload(lab)
            counts = end()
    assert [c["wrong"] for c in counts] == [[], [], []]
    assert min(c["rounds"] for c in counts) > 500


def fill(table: Map) -> list[bytes]:
    """Elements of nobody's until there is no room; their keys."""
    is_trie = table.name in ("am_prefix", "am_deny", "am_unix")
    keys: list[bytes] = []
    with pytest.raises(MapFull):
        for number in range(table.limit + 1):
            head = struct.pack("=II", (table.key_bytes - 4) * 8, 1 << 31 | number)
            keys.append((head if is_trie else struct.pack("=I", 1 << 31 | number)).ljust(table.key_bytes, b"\0"))
            table.update(keys[-1], bytes(table.value_bytes))
    return keys[:-1]


PORT = (entry(f"{OTHER}/32", CLOSED),)
FULL: dict[str, dict[str, Any]] = {
    "am_exact": {"allow": PORT},
    "am_host": {"allow": (entry(f"{OTHER}/32", (1, 2000)),)},
    "am_prefix": {"allow": (entry("198.51.100.8/31", CLOSED),)},
    "am_deny": {"allow": PORT, "deny": (entry(f"{PERMITTED}/32", CLOSED),)},
    "am_listen": {"allow": PORT, "listen": (Listen("tcp", 8050, 8050),)},
    "am_unix": {"allow": PORT, "unix": ("/run/app/",)},
}


@pytest.fixture(scope="module")
def filled() -> Iterator[Lab]:
    with opened() as made:
        yield made


@pytest.fixture
def lab(filled: Lab) -> Iterator[Lab]:
    yield filled
    filled.end_processes()
    for slot in filled.programs.slots():
        filled.programs.delete_bottle(slot)
    filled.remove_bottles()
    filled.programs.read()


@pytest.mark.parametrize("name", FULL)
def test_stress_a_full_map_keeps_the_policy_in_force(lab: Lab, name: str) -> None:
    bottle = lab.bottle()
    bottle.apply(
        allow=(entry("198.51.100.6/31", CLOSED),) if name == "am_exact" else (entry(f"{PERMITTED}/32", CLOSED),)
    )
    job = bottle.process()
    own = {table: len(list(lab.programs.table(table).items())) for table in FULL}
    junk = fill(lab.programs.table(name))
    try:
        with pytest.raises(MapFull, match=f"BPF map {name} holds {getattr(SIZES, _size_of(name))} entries") as error:
            bottle.apply(**FULL[name])
        assert error.value.hint
        assert job.connect(PERMITTED, CLOSED) == errno.ECONNREFUSED
        assert job.connect(OTHER, CLOSED) == errno.EPERM
    finally:
        lab.programs.table(name).delete_batch(b"".join(junk))
    assert {table: len(list(lab.programs.table(table).items())) for table in FULL} == own  # nothing half written
    bottle.apply(**FULL[name])
    assert job.connect(OTHER, CLOSED) == errno.ECONNREFUSED
    assert job.connect(PERMITTED, CLOSED) == errno.EPERM
    lab.programs.delete_bottle(bottle.slot)


def test_stress_a_full_table_of_bottles_takes_no_other(lab: Lab) -> None:
    bottle, late = lab.bottle(), lab.bottle()
    bottle.apply(allow=PORT)
    junk = fill(lab.programs.table("am_bottle"))
    try:
        with pytest.raises(MapFull, match="am_bottle"):
            late.apply(allow=PORT)
        assert late.process().connect(OTHER, CLOSED) == errno.EPERM
        lab.programs.set_mode(bottle.slot, Mode.CUT)  # what is there can still be changed
        assert bottle.process().connect(OTHER, CLOSED) == errno.EPERM
        assert late.slot not in lab.programs.slots()
    finally:
        lab.programs.table("am_bottle").delete_batch(b"".join(junk))
    late.apply(allow=PORT)
    assert late.process().connect(OTHER, CLOSED) == errno.ECONNREFUSED


def test_stress_a_full_table_of_guarded_processes_refuses_to_register(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply(allow=PORT, guard=Guard.STRICT)
    job = bottle.process()
    junk = fill(lab.programs.table("am_guarded"))
    try:
        assert job.do("register", value=7) == errno.EPERM
        assert job.connect(OTHER, CLOSED) == errno.ECONNREFUSED  # unguarded: judged by the policy alone
    finally:
        lab.programs.table("am_guarded").delete_batch(b"".join(junk))
    assert job.do("register", value=7) == 0
    assert job.connect(OTHER, CLOSED) == errno.EPERM


def _size_of(name: str) -> str:
    return {"am_deny": "prefix"}.get(name, name.removeprefix("am_"))


def test_stress_every_map_that_can_be_full_is_filled_above() -> None:
    deciding = {n for n in abi.MAPS if n not in ("am_config", "am_vouched", "am_pending", "am_lost")}
    assert deciding == {*FULL, "am_bottle", "am_guarded", "am_seen", "am_events", "am_origins"}
