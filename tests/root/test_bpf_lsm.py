"""The verdict at security hooks. Few hosts run BPF there (lsm=…,bpf on the kernel's command line, and trampolines);
`make test-kernels` boots one that does."""

from __future__ import annotations

import errno
import socket

import pytest

from ebpf.spec import Mode
from tests.support.bpf_lab import Bottle, Lab, endpoint, entry

KNOWN, OTHER = "198.51.100.7", "198.51.100.8"
ALLOW = (
    entry(f"{KNOWN}/32", 443),
    entry("2001:db8::7/128", 443),
    entry(f"{KNOWN}/32", 53, proto="udp"),
)


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    return bpf_lab


def needs_lsm(lab: Lab) -> None:
    if "lsm" not in lab.programs.features():
        pytest.skip(f"needs a kernel that runs BPF at security hooks: {lab.programs.left_out['lsm']}")


@pytest.mark.root
def test_lsm_is_there_or_the_reason_is_said(lab: Lab) -> None:
    """Either way everything else is in force."""
    assert lab.programs.features() >= {"vouch", "origin"}
    assert ("lsm" in lab.programs.features()) != bool(lab.programs.left_out.get("lsm"))


@pytest.mark.root
def test_lsm_a_socket_from_elsewhere_is_held(lab: Lab, bottle: Bottle) -> None:
    """cgroup hooks ask the cgroup in which a socket was made; a security hook asks who uses it."""
    bottle.apply(allow=ALLOW)
    job = bottle.process()
    held = "lsm" in lab.programs.features()
    refused = errno.EPERM if held else 0
    assert job.connect(OTHER, 443, use="early") == refused
    assert job.sendto(OTHER, 53, use="early-udp") == refused
    assert job.connect("2001:db8::8", 443, use="early-6") == refused
    assert len(lab.received()) == (0 if held else 3)  # 0: refused here; 3: left to the packet layers
    found = [(e.kind, e.verdict, e.reason, str(e.dst), e.port) for e in lab.events(job)]
    expected = [("connect", OTHER, 443), ("send", OTHER, 53), ("connect", "2001:db8::8", 443)]
    assert found == ([(k, "refused", "default", d, p) for k, d, p in expected] if held else [])


@pytest.mark.kernel
def test_lsm_agrees_with_the_cgroup_hooks(lab: Lab, bottle: Bottle) -> None:
    needs_lsm(lab)
    bottle.apply(allow=ALLOW, services=(endpoint("203.0.113.5", 443),))
    job = bottle.process()
    assert [job.connect(KNOWN, 443), job.connect("2001:db8::7", 443), job.sendto(KNOWN, 53)] == [0, 0, 0]
    assert job.connect("203.0.113.5", 443) == 0
    assert job.connect(KNOWN, 443, use="early") == 0
    lab.received()
    assert job.do("connect", version="6", to=[f"::ffff:{OTHER}", 443]) == errno.EPERM
    assert job.connect("169.254.169.254", 80) == errno.EPERM
    assert job.do("connect", to=[OTHER, 443], proto=262) == errno.EPERM
    assert job.do("fastopen", to=[OTHER, 443]) == errno.EPERM
    assert lab.received() == []
    assert {e.reason for e in lab.events(job)} == {"default", "protected"}
    bottle.apply(allow=ALLOW, mode=Mode.OBSERVE)
    assert job.connect(OTHER, 443) == 0
    assert [(e.verdict, e.reason) for e in lab.events(job)] == [("observed", "default")]


@pytest.mark.kernel
def test_lsm_a_foreign_namespace_is_an_escape(lab: Lab, bottle: Bottle) -> None:
    needs_lsm(lab)
    elsewhere, _ = lab.namespace()
    bottle.apply(allow=ALLOW)
    job = lab.process(bottle.directory, netns=elsewhere)
    assert job.connect(KNOWN, 443, use="early") == errno.EPERM
    assert [(e.kind, e.reason) for e in lab.events(job)] == [("escape", "netns")]


@pytest.mark.kernel
@pytest.mark.parametrize("family", [socket.AF_PACKET, socket.AF_VSOCK, socket.AF_ALG, socket.AF_CAN])
def test_lsm_other_families_are_refused_when_made(lab: Lab, bottle: Bottle, family: int) -> None:
    """socket() itself; nothing is ever sent or connected."""
    needs_lsm(lab)
    bottle.apply(allow=ALLOW)
    job = bottle.process()
    assert job.do("socket", family=int(family), type=int(socket.SOCK_DGRAM)) == errno.EPERM
    (event,) = lab.events(job)
    assert (event.kind, event.verdict, event.reason, event.dst) == ("socket", "refused", "family", None)
    assert event.syscall == "socket"


@pytest.mark.kernel
def test_lsm_everyone_else_passes(lab: Lab, bottle: Bottle) -> None:
    needs_lsm(lab)
    bottle.apply(allow=())
    outside = lab.process(lab.parent.parent)
    assert outside.connect(OTHER, 443) == 0
    assert outside.do("socket", family=int(socket.AF_PACKET), type=int(socket.SOCK_DGRAM)) == 0
    unix = bottle.process()
    assert unix.do("socket", family=int(socket.AF_UNIX), type=int(socket.SOCK_DGRAM)) == 0
    assert unix.do("socket", family=int(socket.AF_NETLINK), type=int(socket.SOCK_RAW)) == 0
