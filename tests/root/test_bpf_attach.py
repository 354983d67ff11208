"""The programs on a cgroup that others made, and connections that are older than the attachment."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ebpf import cgroup, links, sockets
from ebpf.errors import BpfError, Misplaced, UnknownSlot
from ebpf.spec import BottlePolicy, Mode
from tests.support.bpf_lab import Lab, Process, entry, until

pytestmark = pytest.mark.root
KNOWN, OTHER = "198.51.100.7", "198.51.100.8"
ALLOW = (entry(f"{KNOWN}/32", 443), entry("2001:db8::7/128", 443))


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    return bpf_lab


class Foreign:
    """A cgroup as a container engine makes it: nested, beside the bottles' parent."""

    SLOT = 40

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.top = cgroup.find_v2() / f"agentmon-test-foreign-{os.getpid()}"
        self.path = self.top / "engine.slice" / "container-1.scope"
        self.inner = self.path / "payload"
        self.inner.mkdir(parents=True)

    def policy(self, **fields: object) -> BottlePolicy:
        made = BottlePolicy(
            **{  # type: ignore[arg-type]
                "slot": self.SLOT,
                "cgroup_id": cgroup.cgroup_id(self.path),
                "policy_id": next(self.lab.ids),
                "epoch": 1,
                "mode": Mode.ENFORCE,
                "allow": ALLOW,
                "netns_cookie": self.lab.cookie,
                **fields,
            }
        )
        self.lab.programs.apply(made)
        return made

    def attach(self) -> None:
        self.lab.programs.attach(self.SLOT, str(self.path))

    def process(self) -> Process:
        return self.lab.process(self.inner)

    def end(self) -> None:
        self.lab.end_processes()
        self.lab.programs.delete_bottle(self.SLOT)
        for directory in (self.inner, self.path, self.path.parent, self.top):
            until(lambda d=directory: _gone(d))


def _gone(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def foreign(lab: Lab) -> Iterator[Foreign]:
    made = Foreign(lab)
    yield made
    made.end()
    lab.received()
    lab.programs.read()


def test_attach_holds_a_cgroup_of_others(lab: Lab, foreign: Foreign) -> None:
    job = foreign.process()
    assert job.connect(OTHER, 443) == 0  # nobody's before
    foreign.policy()
    foreign.attach()
    assert lab.programs.attached() == {Foreign.SLOT}
    lab.received()
    assert [job.connect(KNOWN, 443), job.connect("2001:db8::7", 443)] == [0, 0]
    assert [job.connect(OTHER, 443), job.sendto(OTHER, 53)] == [errno.EPERM] * 2
    assert job.do("connect", to=[KNOWN, 443], sort="raw", proto=1) == errno.EPERM
    assert sorted(lab.received()) == ["tcp 198.51.100.7 443", "tcp 2001:db8::7 443"]
    found = lab.events(job)
    assert {(e.slot, e.verdict) for e in found} == {(Foreign.SLOT, "refused")}
    lab.programs.detach(Foreign.SLOT)
    assert lab.programs.attached() == frozenset()
    assert job.connect(OTHER, 443) == 0


def test_attach_in_observe_mode_reports(lab: Lab, foreign: Foreign) -> None:
    foreign.policy(mode=Mode.OBSERVE)
    foreign.attach()
    job = foreign.process()
    assert job.connect(OTHER, 443) == 0
    assert [(e.verdict, e.reason, str(e.dst)) for e in lab.events(job)] == [("observed", "default", OTHER)]
    assert job.connect("169.254.169.254", 80) == errno.EPERM  # protected in every mode


def test_attach_does_not_touch_its_neighbours_and_ours_go_on(lab: Lab, foreign: Foreign) -> None:
    foreign.policy()
    foreign.attach()
    neighbour = foreign.path.parent / "container-2.scope"
    neighbour.mkdir()
    bottle = lab.bottle()
    bottle.apply(allow=(entry(f"{OTHER}/32", 443),))
    try:
        assert lab.process(neighbour).connect(OTHER, 443) == 0
        ours = bottle.process()
        assert [ours.connect(OTHER, 443), ours.connect(KNOWN, 443)] == [0, errno.EPERM]
    finally:
        lab.end_processes()
        lab.programs.delete_bottle(bottle.slot)
        lab.remove_bottles()
        until(lambda: _gone(neighbour))


def test_attach_the_innermost_of_two_counts(lab: Lab, foreign: Foreign) -> None:
    """A container inside an attached slice, attached by itself: its own policy is asked, by both attachments."""
    outer = foreign.path.parent
    lab.programs.apply(BottlePolicy(41, cgroup.cgroup_id(outer), 900, 1, Mode.ENFORCE, netns_cookie=lab.cookie))
    lab.programs.attach(41, str(outer))
    try:
        foreign.policy()
        foreign.attach()
        job = foreign.process()
        assert [job.connect(KNOWN, 443), job.connect(OTHER, 443)] == [0, errno.EPERM]
        assert {e.slot for e in lab.events(job)} == {Foreign.SLOT}
    finally:
        lab.programs.delete_bottle(41)


def test_attach_survives_the_daemon_and_an_upgrade(lab: Lab, foreign: Foreign) -> None:
    from ebpf import encode

    foreign.policy()
    foreign.attach()
    job = foreign.process()
    lab.programs.release()
    assert job.connect(OTHER, 443) == errno.EPERM
    lab.programs.open(str(lab.parent))
    assert lab.programs.attached() == {Foreign.SLOT}
    before = _programs(lab)
    config = lab.programs.table("am_config")
    _, level, flags, features = encode.CONFIG.unpack(config.lookup(bytes(4)) or b"")
    config.update(bytes(4), encode.CONFIG.pack(0, level, flags, features))
    lab.programs.open(str(lab.parent))
    assert not before & _programs(lab)  # other programs, on this cgroup too
    assert [job.connect(KNOWN, 443), job.connect(OTHER, 443)] == [0, errno.EPERM]


def _programs(lab: Lab) -> set[int]:
    directory = lab.pin_dir / "attached" / str(Foreign.SLOT)
    found = [links.pinned(str(path)) for path in directory.iterdir()]
    return {link.prog_id for link in found if link is not None}


def test_attach_deleting_the_bottle_ends_it(lab: Lab, foreign: Foreign) -> None:
    foreign.policy()
    foreign.attach()
    job = foreign.process()
    assert job.connect(OTHER, 443) == errno.EPERM
    lab.programs.delete_bottle(Foreign.SLOT)
    assert lab.programs.attached() == frozenset()
    assert job.connect(OTHER, 443) == 0


def test_attach_only_where_it_belongs(lab: Lab, foreign: Foreign) -> None:
    with pytest.raises(UnknownSlot):
        foreign.attach()
    foreign.policy()
    with pytest.raises(Misplaced, match="is not the cgroup of the policy"):
        lab.programs.attach(Foreign.SLOT, str(foreign.inner))
    root = cgroup.find_v2()
    lab.programs.apply(BottlePolicy(42, cgroup.cgroup_id(root), 901, 1, Mode.ENFORCE))
    inside = lab.parent / "b49"
    inside.mkdir()
    try:
        lab.programs.apply(BottlePolicy(49, cgroup.cgroup_id(inside), 902, 1, Mode.ENFORCE))
        for slot, path in ((42, root), (49, inside)):
            with pytest.raises(Misplaced, match=r"holds the bottles' cgroup .*, or is below it"):
                lab.programs.attach(slot, str(path))
    finally:
        for slot in (42, 49):
            lab.programs.delete_bottle(slot)
        lab.remove_bottles()
    deep = foreign.inner
    made = []
    for number in range(16):
        deep = deep / f"l{number}"
        deep.mkdir()
        made.append(deep)
    try:
        lab.programs.apply(BottlePolicy(43, cgroup.cgroup_id(deep), 903, 1, Mode.ENFORCE))
        with pytest.raises(Misplaced, match=r"20 levels deep; 1 to 16"):
            lab.programs.attach(43, str(deep))
    finally:
        lab.programs.delete_bottle(43)
        for directory in reversed(made):
            directory.rmdir()


@pytest.mark.parametrize("sort", ["stream", "dgram"])
@pytest.mark.parametrize("to", [OTHER, "2001:db8::8"])
def test_attach_older_connections_are_listed_and_ended(lab: Lab, foreign: Foreign, to: str, sort: str) -> None:
    job = foreign.process()
    assert job.connect(to, 443, sort=sort, keep="old") == 0
    beside = lab.process(lab.parent.parent)  # of another cgroup, the same namespace
    assert beside.connect(to, 443, sort=sort, keep="old") == 0
    foreign.policy()
    foreign.attach()
    assert job.do("send", use="old") == 0  # no hook sees what is connected already
    (mine,) = sockets.connected(foreign.path, lab.netns)
    assert mine.destination == (ip_address(to), 443)
    assert mine.proto == ("tcp" if sort == "stream" else "udp")
    assert mine.cgroup_id == cgroup.cgroup_id(foreign.inner)
    assert sockets.destroy([mine], lab.netns) == 1
    assert sockets.destroy([mine], lab.netns) == 0
    assert sockets.connected(foreign.path, lab.netns) == []
    assert job.do("send", use="old") != 0
    assert beside.do("send", use="old") == 0


def test_attach_a_namespace_that_is_none(foreign: Foreign) -> None:
    with pytest.raises(BpfError, match="looking into the namespace /proc/self/status") as error:
        sockets.connected(foreign.path, "/proc/self/status")
    assert error.value.errno == errno.EINVAL


def test_attach_listening_sockets_are_no_connections(lab: Lab, foreign: Foreign) -> None:
    job = foreign.process()
    assert job.do("bind", to=["127.0.0.1", 8123], keep="l") == 0
    assert job.do("listen", use="l") == 0
    assert sockets.connected(foreign.path, lab.netns) == []
