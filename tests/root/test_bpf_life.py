"""Loading, adopting, upgrading and ending the programs on the running kernel, and what happens when that fails."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from ebpf import abi, cgroup, child, encode, entries, links, loader, maps, probe, syscall
from ebpf.errors import BpfError, MapFull, Missing, VerifierRefused
from ebpf.programs import SOURCE, CgroupPrograms
from ebpf.sources import program_text
from ebpf.spec import Event, Guard, Mode
from tests.support.bpf_lab import SIZES, Lab, entry, until

pytestmark = pytest.mark.root
PROG_ATTACH, PROG_DETACH = 8, 9
ALLOW_MULTI = 2
GO = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.programs.open(str(made.parent))
        yield made


def prog_ids(lab: Lab) -> list[int]:
    found = [links.pinned(str(lab.pin_dir / "links" / h.function)) for h in links.HOOKS]
    return [link.prog_id for link in found if link is not None]


def layouts(lab: Lab) -> list[str]:
    return sorted(p.name for p in lab.pin_dir.glob("layout-*"))


def request(lab: Lab, **fields: object) -> loader.Request:
    (layout,) = layouts(lab)
    whole = loader.Request(
        SOURCE,
        str(lab.pin_dir / layout),
        str(lab.pin_dir / "links"),
        str(lab.parent),
        cgroup.cgroup_id(lab.parent),
        cgroup.level(lab.parent) + 1,
        0,
        SIZES,
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


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


def test_bpf_a_program_that_the_verifier_refuses(lab: Lab, tmp_path: Path) -> None:
    text = program_text(abi.SOURCES, SOURCE)
    bad = tmp_path / "bad.c"
    wrong = "am_address6(ctx, AM_KIND_CONNECT) + *(volatile int *)(long)ctx->user_port"
    bad.write_text(text.replace("am_address6(ctx, AM_KIND_CONNECT)", wrong))
    before = prog_ids(lab)
    with pytest.raises(VerifierRefused) as error:
        child.run(request(lab, source=str(bad)))
    assert error.value.program == "am_connect6"
    assert "invalid mem access" in str(error.value)
    assert len(error.value.log.splitlines()) > 5
    assert error.value.hint
    assert prog_ids(lab) == before  # nothing was replaced


def test_bpf_a_program_that_does_not_compile(lab: Lab, tmp_path: Path) -> None:
    bad = tmp_path / "bad.c"
    bad.write_text("int am_connect4(struct bpf_sock_addr *ctx) { return nonsense; }\n")
    with pytest.raises(VerifierRefused, match=r"bad\.c") as error:
        child.run(request(lab, source=str(bad)))
    assert "undeclared identifier 'nonsense'" in error.value.log


def as_command(lab: Lab, tmp_path: Path, wanted: loader.Request) -> tuple[int, dict[str, object]]:
    """The loader as the child runs it, but with this environment: its exit status and answer."""
    answer = tmp_path / "answer"
    argv = ["sh", "-c", 'exec "$0" -W ignore -m ebpf.loader "$1" 3>"$2"', sys.executable, wanted.to_json(), str(answer)]
    code = subprocess.run(argv, cwd=Path(abi.__file__).parents[1], stderr=subprocess.DEVNULL, check=False).returncode
    found: dict[str, object] = json.loads(answer.read_text())
    return code, found


def test_bpf_the_loader_answers_as_a_command(lab: Lab, tmp_path: Path) -> None:
    before = prog_ids(lab)
    assert as_command(lab, tmp_path, request(lab)) == (0, {"ok": True, "left_out": lab.programs.left_out})
    assert not set(before) & set(prog_ids(lab))
    code, found = as_command(lab, tmp_path, request(lab, cgroup="/nowhere", cgroup_id=1))
    assert (code, found["error"], found["errno"]) == (1, "kernel", errno.ENOENT)
    assert lab.process(lab.parent).connect("198.51.100.7", 443) == errno.EPERM
    other = lab.parent / "moved"
    other.mkdir()
    moved = request(lab, cgroup=str(other), cgroup_id=cgroup.cgroup_id(other))
    assert as_command(lab, tmp_path, moved) == (0, {"ok": True, "left_out": lab.programs.left_out})
    assert lab.process(lab.parent).connect("198.51.100.7", 443) == 0  # the old place is let go
    assert lab.process(other).connect("198.51.100.7", 443) == errno.EPERM
    bad = tmp_path / "bad.c"
    bad.write_text("int am_connect4(struct bpf_sock_addr *ctx) { return nonsense; }\n")
    code, found = as_command(lab, tmp_path, request(lab, source=str(bad)))
    assert (code, found["error"], found["program"]) == (1, "refused", str(bad))
    bad.write_text("int am_connect4(struct bpf_sock_addr *ctx) { return 7; }\n")
    code, found = as_command(lab, tmp_path, request(lab, source=str(bad)))
    assert (code, found["error"], found["program"], found["errno"]) == (1, "refused", "am_connect4", errno.EINVAL)


def test_bpf_a_loader_that_hangs_is_killed(lab: Lab) -> None:
    with pytest.raises(BpfError, match="killed by signal 9"):
        child.run(request(lab), timeout_s=0)


def test_bpf_a_cgroup_that_is_none() -> None:
    with Lab() as lab:
        with pytest.raises(Missing, match="a cgroup v2 directory at /tmp"):
            lab.programs.open("/tmp")
        assert not lab.pin_dir.exists()


def test_bpf_bcc_missing_or_another_package(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(Missing, match="bcc") as error:
        loader.load(request(lab))
    assert "apt-get install python3-bpfcc" in error.value.hint
    lattice = types.ModuleType("bcc")
    monkeypatch.setitem(sys.modules, "bcc", lattice)
    with pytest.raises(Missing, match=r"bcc 0.25 or newer \(found a package without bcc.BPF\)"):
        loader.load(request(lab))
    lattice.BPF, lattice.__version__ = object, "0.18.0"  # type: ignore[attr-defined]
    with pytest.raises(Missing, match=r"found 0.18.0"):
        loader.load(request(lab))


def test_bpf_bpffs_is_mounted_where_it_is_not(lab: Lab) -> None:
    """In a mount namespace of its own, so that nobody else sees the file system go."""
    code = (
        "from pathlib import Path; from ebpf.pins import Pins, BPFFS, mounted\n"
        "assert not mounted(BPFFS)\n"
        "Pins(BPFFS / 'agentmon-test-mount', 'x').prepare()\n"
        "assert mounted(BPFFS) and (BPFFS / 'agentmon-test-mount/links').is_dir()\n"
        "Pins(BPFFS / 'agentmon-test-mount', 'x').remove()\n"
    )
    script = 'while umount /sys/fs/bpf 2>/dev/null; do :; done; exec "$0" -c "$1"'
    subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, code], check=True, cwd=Path(abi.__file__).parents[1]
    )


def test_bpf_mount_failures_say_what_to_do() -> None:
    with pytest.raises(Missing, match="no-such-fs at /nowhere") as error:
        syscall.mount("x", "/nowhere", "no-such-fs")
    assert error.value.hint


def test_bpf_probe_finds_what_this_kernel_takes() -> None:
    found = {f.feature: f for f in probe.probe()}
    assert {f.feature for f in found.values() if f.required and f.missing} == set()
    assert {f"hook {h.function}" for h in links.HOOKS if h.prog_type != links.LSM} <= set(found)
    with pytest.raises(BpfError) as error:
        syscall.prog_load(GO, 999, 0)
    assert error.value.errno == errno.EINVAL
    assert "older than 6.1" in error.value.hint


def test_bpf_repeats_are_counted(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply()
    job = bottle.process()
    assert job.connect("198.51.100.8", 443) == errno.EPERM
    (first,) = lab.events(job)
    assert first.count == 1
    for _ in range(50):
        job.connect("198.51.100.8", 443)
    counted: list[Event] = []
    until(lambda: counted.extend(lab.events(job)) or sum(e.count for e in counted) >= 50)
    assert sum(e.count for e in counted) == 50
    assert len(counted) <= 4
    assert {replace(e, ts_ns=0, count=0) for e in counted} == {replace(first, ts_ns=0, count=0)}
    job.connect("198.51.100.8", 443)
    job.connect("198.51.100.8", 443)
    lab.programs.delete_bottle(bottle.slot)  # what was counted is not lost with the bottle
    assert sum(e.count for e in lab.events(job)) == 2


def test_bpf_a_full_ring_loses_reports_not_verdicts(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()
    for port in range(1000, 2500):
        assert job.connect("198.51.100.8", port) == errno.EPERM
    lost = lab.programs.lost()
    found = lab.events(job)
    assert lost > 0
    assert len({e.port for e in found}) + lost >= 1500
    assert job.connect("198.51.100.7", 443) == 0
    assert job.connect("203.0.113.5", 443) == errno.EPERM
    assert [str(e.dst) for e in lab.events(job) if e.port == 443] == ["203.0.113.5"]


def test_bpf_an_event_of_a_process_that_is_gone_has_no_parent(lab: Lab) -> None:
    bottle = lab.bottle()
    bottle.apply()
    job = bottle.process()
    job.connect("198.51.100.8", 443)
    lab.end_processes()
    assert [e.ppid for e in lab.events(job)] == [0]


def test_bpf_maps_take_exactly_sized_bytes_and_skip_what_is_not_there(lab: Lab) -> None:
    table = lab.programs.table("am_exact")
    with pytest.raises(ValueError, match="am_exact: a key has 24 bytes, not 3"):
        table.lookup(b"abc")
    with pytest.raises(ValueError, match="am_exact: a value has 16 bytes, not 3"):
        table.update(bytes(24), b"abc")
    keys = [struct.pack("=I20x", i) for i in range(10)]
    table.update_batch(b"".join(keys), bytes(160))
    assert table.delete(keys[3])
    assert not table.delete(keys[3])
    table.delete_batch(b"".join(keys))
    assert list(table.items()) == []
    with pytest.raises(MapFull):
        table.update_batch(b"".join(struct.pack("=I20x", i) for i in range(3000)), bytes(3000 * 16))
    assert len(list(table.drain())) == 2048
    with pytest.raises(BpfError, match="opening the pin /sys/fs/bpf/none"):
        maps.Map("/sys/fs/bpf/none")
    table.close()
    table.close()
    with pytest.raises(BpfError, match="reading BPF map am_exact"):
        table.lookup(bytes(24))
    with pytest.raises(BpfError, match="deleting from BPF map am_exact"):
        table.delete(bytes(24))
    with pytest.raises(BpfError, match="deleting from BPF map am_exact"):
        table.delete_batch(bytes(24))
    with pytest.raises(BpfError, match="reading BPF map am_exact"):
        list(table.items())
    with pytest.raises(BpfError, match="writing BPF map am_exact"):
        table.update(bytes(24), bytes(16))


def test_bpf_crowded_buckets_are_read_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_BATCH", 1)
    table = lab.programs.table("am_exact")
    keys = {struct.pack("=I20x", i) for i in range(500)}
    table.update_batch(b"".join(keys), bytes(500 * 16))
    assert {k for k, _ in table.items()} == keys


def test_bpf_expired_elements_are_swept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "SWEEP_NS", 0)
    bottle = lab.bottle()
    bottle.apply()
    short = [entry("198.51.100.7/32", 443, (1000, 2000), timeout_s=1), entry("198.51.100.8/32", 443, timeout_s=99)]
    lab.programs.learn(bottle.slot, short)

    def left() -> tuple[int, int]:
        lab.programs.learn(bottle.slot, [])
        return len(list(lab.programs.table("am_exact").items())), len(list(lab.programs.table("am_host").items()))

    assert left() == (2, 1)
    until(lambda: left() == (1, 0))
    lab.programs.delete_bottle(bottle.slot)
    assert list(lab.programs.table("am_exact").items()) == []


def test_bpf_pins_that_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BpfError, match="removing the pins in") as error:
        CgroupPrograms(tmp_path / "file").close()
    assert error.value.errno == errno.ENOTDIR


def test_bpf_system_calls_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BpfError, match="timerfd_settime"):
        syscall.arm(-1, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(BpfError, match="timerfd_create"):
            syscall.timerfd()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(Missing, match="on vax") as error:
        syscall.obj_get("/x")
    assert "x86_64" in error.value.hint


def test_bpf_probe_says_what_is_missing() -> None:
    """Without site packages there is no bcc; in a mount namespace without bpffs it is found mountable."""
    code = "from ebpf.probe import probe; print(*(f.feature for f in probe() if f.missing), sep=',')"
    script = 'while umount /sys/fs/bpf 2>/dev/null; do :; done; exec "$0" -S -c "$1"'
    argv = ["unshare", "-m", "sh", "-c", script, sys.executable, code]
    found = subprocess.run(argv, check=True, cwd=Path(abi.__file__).parents[1], capture_output=True, text=True)
    assert "bcc" in found.stdout.strip().split(",")
    assert "bpffs" not in found.stdout
    refused = probe.attempt("a hook nobody has", False, partial(probe.load, links.Hook("x", 999, 0)))
    assert "Invalid argument" in refused.missing
    assert refused.hint
    absent = probe.attempt("bcc", True, partial(probe.package, "no_such_package"))
    assert "python3-bpfcc" in absent.hint
    with pytest.raises(BpfError, match="file system type bpf"):
        probe.mountable("nodev\tproc\n")


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
