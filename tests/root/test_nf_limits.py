"""Known limitations, stated (docs/design/netfilter.md, "Not stopped"): each test fails once its limit is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.nf_lab import HOST_OWN, POOL4, WEB6, Lab, net, until

pytestmark = pytest.mark.root
FORGED6 = "2001:db8:99::9"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A bottle that may reach nothing, and then somebody flushes every table of the host and of the bottle."""
    with Lab() as lab:
        lab.open()
        lab.bottle(16)
        yield lab


def flush(lab: Lab) -> None:
    lab.shell("nft", "flush", "ruleset")
    lab.shell("ip", "netns", "exec", "am-16", "nft", "flush", "ruleset")


def test_ipv6_frames_with_a_forged_source_leave_when_all_tables_are_flushed(lab: Lab) -> None:
    mine = net(16)
    macs = {"mac": mine.mac_bottle, "gateway_mac": mine.mac_host}
    with pytest.raises(OSError):
        lab.frame("am-16", source=FORGED6, to=WEB6, **macs)
    flush(lab)
    assert lab.world.to(WEB6) == 0
    lab.frame("am-16", source=FORGED6, to=WEB6, **macs)
    until(lambda: lab.world.sources[FORGED6])


def test_broadcasts_reach_wildcard_sockets_of_the_host_when_all_tables_are_flushed(lab: Lab) -> None:
    def listening() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 5432))
        sock.settimeout(0.2)
        return sock

    mine = net(16)
    macs = {"mac": mine.mac_bottle, "gateway_mac": mine.mac_host}
    with lab.inside("", listening) as sock:
        lab.frame("am-16", source=str(POOL4[16]), to="255.255.255.255", **macs)
        with pytest.raises(TimeoutError):
            sock.recv(9)
        flush(lab)
        for to in (HOST_OWN[0], str(POOL4[1])):
            lab.frame("am-16", source=str(POOL4[16]), to=to, **macs)
        with pytest.raises(TimeoutError):
            sock.recv(9)
        lab.frame("am-16", source=str(POOL4[16]), to="255.255.255.255", **macs)
        assert sock.recv(9) == b"leak"
