"""Where a policy limits listening: bind and post_bind on the running kernel."""

from __future__ import annotations

import errno

import pytest

from ebpf.spec import Listen, Mode
from tests.support.bpf_lab import Bottle, Lab

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    return bpf_lab


LIMITED = (Listen("tcp", 9000, 9010), Listen("udp", 9005, 9005))


@pytest.mark.parametrize(("version", "here"), [("4", "0.0.0.0"), ("4", "127.0.0.1"), ("6", "::"), ("6", "::1")])
def test_listen_only_on_the_ports_of_the_policy(lab: Lab, bottle: Bottle, version: str, here: str) -> None:
    bottle.apply(listen=LIMITED)
    job = bottle.process()
    for port, expected in ((9000, 0), (9010, 0), (9011, errno.EPERM), (8999, errno.EPERM), (0, errno.EPERM)):
        assert job.do("bind", version=version, to=[here, port]) == expected, port
    for port, expected in ((9005, 0), (9000, errno.EPERM), (0, 0)):  # an ephemeral UDP port is a client's
        assert job.do("bind", version=version, to=[here, port], sort="dgram") == expected, port
    found = lab.events(job)
    assert {(e.kind, e.verdict, e.reason, str(e.dst)) for e in found} == {("socket", "refused", "listen", here)}
    assert [(e.proto, e.port) for e in found][:2] == [("tcp", 9011), ("tcp", 8999)]
    assert found[2].proto == "tcp" and found[2].port > 1023  # the port that it would have got
    assert [(e.proto, e.port) for e in found][3:] == [("udp", 9000)]
    assert found[0].syscall == "bind"


def test_listen_mptcp_is_tcp(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(listen=LIMITED)
    job = bottle.process()
    assert job.do("bind", to=["127.0.0.1", 9001], proto=262) == 0
    assert job.do("bind", to=["127.0.0.1", 9100], proto=262) == errno.EPERM


def test_listen_nothing(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(listen=())
    job = bottle.process()
    assert job.do("bind", to=["127.0.0.1", 9000]) == errno.EPERM
    assert job.do("bind", to=["127.0.0.1", 0], sort="dgram") == 0


def test_listen_is_free_where_the_policy_says_nothing(lab: Lab, bottle: Bottle) -> None:
    bottle.apply()
    job = bottle.process()
    assert job.do("bind", to=["127.0.0.1", 9500]) == 0
    assert job.do("bind", to=["127.0.0.1", 0]) == 0
    assert lab.events(job) == []


def test_listen_observed_in_observe_mode(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(listen=(), mode=Mode.OBSERVE)
    job = bottle.process()
    assert job.do("bind", to=["127.0.0.1", 9000]) == 0
    assert {(e.verdict, e.reason, e.port) for e in lab.events(job)} == {("observed", "listen", 9000)}


def test_listen_without_bind_passes_no_hook(lab: Lab, bottle: Bottle) -> None:
    """The kernel takes a port by itself and asks nobody; what comes in is refused by the packet layers."""
    bottle.apply(listen=())
    job = bottle.process()
    assert job.do("listen") == 0
    assert lab.events(job) == []
