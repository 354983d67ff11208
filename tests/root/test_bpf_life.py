"""Adopting, upgrading and ending the programs on the running kernel, and neighbours that are in the way."""

from __future__ import annotations

import errno
import os
import struct
import threading
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ebpf import cgroup, encode, links, syscall
from ebpf.errors import BpfError
from ebpf.programs import CgroupPrograms
from ebpf.spec import Guard, Mode
from tests.support.bpf_lab import SIZES, Lab, entry, until

pytestmark = pytest.mark.root
PROG_ATTACH, PROG_DETACH = 8, 9
ALLOW_MULTI = 2
GO = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)


@pytest.fixture
def lab(own_bpf_lab: Lab) -> Lab:
    return own_bpf_lab


def prog_ids(lab: Lab) -> list[int]:
    found = [links.pinned(str(lab.pin_dir / "links" / h.function)) for h in links.HOOKS]
    return [link.prog_id for link in found if link is not None]


def layouts(lab: Lab) -> list[str]:
    return sorted(p.name for p in lab.pin_dir.glob("layout-*"))


def test_bpf_a_second_instance_adopts_what_is_in_force(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply(mode=Mode.ENFORCE, allow=(entry("198.51.100.7/32", 443), entry("10.0.0.0/8", 80)))
    lab.programs.learn(bottle.slot, [entry("198.51.100.8/32", 443, timeout_s=300)])
    job = bottle.process()
    before = prog_ids(lab)
    lab.programs.release()
    assert job.connect("198.51.100.7", 443) == 0  # a dead daemon changes nothing
    assert job.connect("203.0.113.5", 443) == errno.EPERM

    lab.programs = lab.new_programs()
    lab.programs.open(str(lab.parent))
    assert prog_ids(lab) == before
    assert lab.programs.modes() == {bottle.slot: Mode.ENFORCE}
    assert job.connect("198.51.100.8", 443) == 0
    assert [str(e.dst) for e in lab.events(job)] == ["203.0.113.5"]  # waited in the ring
    bottle.apply(allow=(entry("203.0.113.5/32", 443),))  # the adopter knows which elements were the old policy's
    assert job.connect("203.0.113.5", 443) == 0
    assert {n: len(list(lab.programs.table(n).items())) for n in ("am_exact", "am_prefix")} == {
        "am_exact": 1,
        "am_prefix": 0,
    }


def test_bpf_elements_of_a_switch_never_made_are_removed(lab: Lab) -> None:
    key = encode.exact_key(4242, "tcp", 443, ip_address("198.51.100.7"))
    lab.programs.table("am_exact").update(key, encode.EXACT_VALUE.pack(0, 0, 0))
    lab.programs.open(str(lab.parent))
    assert lab.programs.table("am_exact").lookup(key) is None


def test_bpf_a_flag_is_changed_without_loading(lab: Lab) -> None:
    before = prog_ids(lab)
    lab.programs.release()
    lab.programs = lab.new_programs(log_allowed=True)
    lab.programs.open(str(lab.parent))
    assert prog_ids(lab) == before
    bottle = lab.bottle()
    bottle.apply(allow=(entry("198.51.100.7/32", 443, rule=3),))
    job = bottle.process()
    assert job.connect("198.51.100.7", 443) == 0
    assert job.connect("127.0.0.1", 80) == 0
    found = [(e.verdict, e.reason, e.rule) for e in lab.events(job)]
    assert found == [("allowed", "rule", 3), ("allowed", "loopback", 0)]


def test_bpf_an_upgrade_keeps_state_and_has_no_gap(lab: Lab) -> None:
    """The same maps under new programs, while a process connects all the time: not one wrong verdict."""
    bottle = lab.bottle()
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()
    wrong: list[tuple[int, int]] = []
    rounds = 0
    stop = threading.Event()

    def attack() -> None:
        nonlocal rounds
        while not stop.is_set():
            verdicts = job.connect("198.51.100.7", 443), job.sendto("198.51.100.8", 53)
            rounds += 1
            lab.received()
            if verdicts != (0, errno.EPERM):
                wrong.append(verdicts)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for _ in range(3):
            before = prog_ids(lab)
            at = rounds
            lab.programs.table("am_config").update(
                b"\0\0\0\0", encode.CONFIG.pack(0, cgroup.level(lab.parent) + 1, 0, 0)
            )
            lab.programs.open(str(lab.parent))  # hash 0: what a loader killed half-way leaves
            assert not set(before) & set(prog_ids(lab))
            until(lambda at=at: rounds > at + 10)
    finally:
        stop.set()
        attacker.join()
    assert wrong == []
    assert lab.programs.slots() == {bottle.slot}


def test_bpf_another_layout_replaces_and_refuses_until_told(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()
    before, old = prog_ids(lab), layouts(lab)
    lab.programs.release()
    lab.programs = lab.new_programs(sizes=replace(SIZES, exact=4096))
    lab.programs.open(str(lab.parent))
    assert len(layouts(lab)) == 1 and layouts(lab) != old
    assert len(prog_ids(lab)) == len(before) and not set(prog_ids(lab)) & set(before)
    assert lab.programs.slots() == frozenset()
    assert job.connect("198.51.100.7", 443) == errno.EPERM
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    assert job.connect("198.51.100.7", 443) == 0


def test_bpf_a_hook_of_an_older_version_is_detached(lab: Lab) -> None:
    fd = syscall.prog_load(GO, links.SOCK_ADDR, 10)
    path = lab.pin_dir / "links" / "am_gone"
    links.attach(
        str(path), links.Hook("am_gone", links.SOCK_ADDR, 10), fd, str(lab.parent), cgroup.cgroup_id(lab.parent)
    )
    os.close(fd)
    lab.programs.open(str(lab.parent))
    assert not path.exists()


def test_bpf_a_parent_made_anew_gets_programs_anew(lab: Lab) -> None:
    lab.programs.release()
    lab.parent.rmdir()
    lab.parent.mkdir()
    bottle = lab.bottle()
    job = bottle.process()
    assert job.connect("198.51.100.7", 443) == 0  # nothing guards the new directory yet
    lab.programs.open(str(lab.parent))
    assert job.connect("198.51.100.7", 443) == errno.EPERM


def test_bpf_closing_leaves_nothing(lab: Lab) -> None:
    job = lab.process(lab.parent)
    assert job.connect("198.51.100.7", 443) == errno.EPERM
    for _ in range(2):
        lab.programs.close()
        assert not lab.pin_dir.exists()
        assert job.connect("198.51.100.7", 443) == 0
    CgroupPrograms(lab.pin_dir).close()  # never opened: removes what another left, here nothing


def test_bpf_closing_works_from_another_process_that_never_opened(lab: Lab) -> None:
    lab.programs.release()
    CgroupPrograms(lab.pin_dir).close()
    assert not lab.pin_dir.exists()
    assert lab.process(lab.parent).connect("198.51.100.7", 443) == 0


def test_bpf_a_foreign_program_beside_ours_cannot_open(lab: Lab) -> None:
    """Both run and both must agree: the kernel takes the AND (kernel/bpf/cgroup.c)."""
    bottle = lab.bottle()
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    fd = syscall.prog_load(GO, links.SOCK_ADDR, 10)
    directory = os.open(lab.parent, os.O_RDONLY)
    attr = struct.pack("=IIII", directory, fd, 10, ALLOW_MULTI)
    syscall.call(PROG_ATTACH, attr, "attaching a foreign program")
    try:
        job = bottle.process()
        assert job.connect("198.51.100.7", 443) == 0
        assert job.connect("198.51.100.8", 443) == errno.EPERM
        lab.programs.close()
        assert job.connect("198.51.100.8", 443) == 0
    finally:
        syscall.call(PROG_DETACH, struct.pack("=IIII", directory, fd, 10, 0), "detaching it")
        os.close(directory)
        os.close(fd)


def test_bpf_an_exclusive_foreign_program_is_an_error_that_says_so() -> None:
    with Lab() as lab:
        fd = syscall.prog_load(GO, links.SOCK_ADDR, 10)
        directory = os.open(lab.parent, os.O_RDONLY)
        attr = struct.pack("=IIII", directory, fd, 10, 0)
        syscall.call(PROG_ATTACH, attr, "attaching a foreign program")
        try:
            with pytest.raises(BpfError, match=r"attaching am_connect4 to .*agentmon-test") as error:
                lab.programs.open(str(lab.parent))
            assert error.value.errno == errno.EPERM
            assert "bpftool cgroup tree" in error.value.hint
        finally:
            syscall.call(PROG_DETACH, attr, "detaching it")
            os.close(directory)
            os.close(fd)


def test_bpf_another_layout_keeps_who_is_guarded(lab: Lab) -> None:
    """Strict stays strict over an upgrade: registrations are carried; sockets must be vouched for anew."""
    with Lab() as old:
        old.programs.open(str(old.parent))
        bottle = old.bottle()
        policy = bottle.apply(allow=(entry("198.51.100.7/32", 443),), guard=Guard.STRICT)
        job = bottle.process()
        assert job.do("register", value=1) == 0
        old.programs.release()
        old.programs = old.new_programs(sizes=replace(SIZES, seen=2048))
        old.programs.open(str(old.parent))
        assert old.programs.guarded() == {job.pid: bottle.slot}
        assert job.connect("198.51.100.7", 443) == errno.EPERM  # nobody has described the bottle yet
        old.programs.apply(policy)
        assert job.connect("198.51.100.7", 443) == errno.EPERM
        assert job.connect("198.51.100.7", 443, vouched=["198.51.100.7", 443]) == 0
        assert [e.reason for e in old.programs.read() if e.kind == "bypass"] == ["unvouched"]
