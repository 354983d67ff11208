"""Live flows when rules change: which go on, which end, and how fast."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator

import pytest

from netfilter.errors import KernelRefused
from netfilter.spec import Direct, Mode
from tests.support.nf_lab import (
    OTHER4,
    OTHER6,
    POOL4,
    POOL6,
    PROXY,
    RELAY,
    WEB4,
    WEB6,
    Lab,
    direct,
    learned,
    net,
    rules,
    until,
)

pytestmark = pytest.mark.root
PAIRS = [(WEB4, OTHER4), (WEB6, OTHER6)]


def only(address: str) -> Direct:
    return direct(f"{address}/{'128' if ':' in address else '32'}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.open()
        yield lab


def goes_on(sock: socket.socket) -> bool:
    """A kilobyte there and back, whole."""
    sock.settimeout(2)
    try:
        sock.sendall(b"z" * 1024)
        got = b""
        while len(got) < 1024:
            data = sock.recv(2048)
            if not data:
                return False
            got += data
    except OSError:
        return False
    return got == b"z" * 1024


def entries(lab: Lab, slot: int) -> list[str]:
    """Conntrack entries of the bottle on the host."""
    found = []
    for family, pool in (("ipv4", POOL4), ("ipv6", POOL6)):
        text = lab.shell("conntrack", "-L", "-f", family, "-s", str(pool[slot]))
        found += [line for line in text.splitlines() if f"src={pool[slot]} " in line]
    return found


@pytest.mark.parametrize(("kept", "ended"), PAIRS)
def test_a_removal_ends_its_flow_at_both_ends_and_spares_the_other(lab: Lab, kept: str, ended: str) -> None:
    name = lab.bottle(16, only(kept), only(ended), epoch=1)
    good, bad = lab.connect(name, kept), lab.connect(name, ended)
    began = time.monotonic()
    lab.run(lab.nf.apply, rules(16, 2, only(kept)))
    bad.settimeout(2)
    with pytest.raises(OSError) as found:
        bad.recv(1)
    assert found.value.errno in {errno.ECONNABORTED, errno.ECONNRESET}
    until(lambda: (ended, 443, errno.ECONNRESET) in lab.world.resets, 1, "the far end was not told")
    assert time.monotonic() - began < 0.5
    assert goes_on(good)
    with pytest.raises(OSError):
        lab.connect(name, ended)
    assert not any(f"dst={ended} " in line for line in entries(lab, 16))


def test_additions_keep_every_flow(lab: Lab) -> None:
    name = lab.bottle(16, only(WEB4), epoch=1)
    sock = lab.connect(name, WEB4)
    lab.run(lab.nf.apply, rules(16, 1, only(WEB4), only(OTHER6)))
    assert goes_on(sock)
    lab.connect(name, OTHER6).close()


def test_udp_flows_obey_epochs_too(lab: Lab) -> None:
    name = lab.bottle(16, direct(f"{WEB4}/32", "udp"), direct(f"{OTHER4}/32", "udp"), epoch=1)

    def opened(address: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(0.5)
        sock.connect((address, 443))
        sock.send(b"x")
        assert sock.recv(1) == b"x"
        return sock

    good, bad = (lab.inside(name, lambda a=a: opened(a)) for a in (WEB4, OTHER4))
    lab.run(lab.nf.apply, rules(16, 2, direct(f"{WEB4}/32", "udp")))
    before = lab.world.to(OTHER4)
    good.send(b"y")
    assert good.recv(1) == b"y"
    with pytest.raises(OSError):
        bad.send(b"y")
        bad.recv(1)
    assert lab.world.to(OTHER4) == before


@pytest.mark.parametrize("address", [WEB4, WEB6])
def test_a_flow_outlives_its_learned_address_over_an_epoch(lab: Lab, address: str) -> None:
    name = lab.bottle(16, epoch=1)
    lab.run(lab.nf.learn, 16, [learned(address, timeout_s=1)])
    sock = lab.connect(name, address)

    def over() -> bool:
        try:
            lab.connect(name, address).close()
        except OSError:
            return True
        return False

    until(over, 4, "the learned address did not expire")
    assert goes_on(sock)
    lab.run(lab.nf.apply, rules(16, 2, learned=(learned(address, timeout_s=0),)))
    assert goes_on(sock)
    assert over()
    lab.run(lab.nf.apply, rules(16, 3))
    assert not goes_on(sock)


def test_an_adopted_bottle_goes_on_and_obeys(lab: Lab) -> None:
    """A second instance takes over: nothing changes in the kernel until it says so, and then flows are judged."""
    name = lab.bottle(16, only(WEB4), only(OTHER4), epoch=1)
    good, bad = lab.connect(name, WEB4), lab.connect(name, OTHER4)
    before = lab.shell("nft", "-s", "list", "ruleset")
    lab.nf = type(lab.nf)()
    lab.open()
    assert lab.run(lab.nf.slots) == {16}
    lab.run(lab.nf.adopt_bottle, net(16))
    assert lab.shell("nft", "-s", "list", "ruleset") == before
    assert goes_on(good) and goes_on(bad)
    lab.run(lab.nf.apply, rules(16, 2, only(WEB4)))
    assert goes_on(good) and not goes_on(bad)
    lab.run(lab.nf.learn, 16, [learned(WEB6)])
    lab.connect(name, WEB6).close()
    lab.run(lab.nf.cut, 16)
    assert not goes_on(good)


def test_a_cut_leaves_proxy_and_resolver_and_ends_the_rest(lab: Lab) -> None:
    name = lab.bottle(16, only(WEB4), only(WEB6), epoch=1)
    lab.receiver("am-svc", [str(POOL4[RELAY]), str(POOL6[PROXY])], ports=(443,))
    proxied, relayed = lab.connect(name, str(POOL6[PROXY])), lab.connect(name, str(POOL4[RELAY]))
    flows = [lab.connect(name, WEB4), lab.connect(name, WEB6), relayed]
    lab.run(lab.nf.cut, 16)
    seen = lab.world.total()
    with pytest.raises(OSError):
        lab.connect(name, WEB4)
    assert lab.run(lab.nf.end_refused, 16) >= len(flows)
    assert [goes_on(sock) for sock in flows] == [False] * 3
    assert lab.world.total() == seen
    assert goes_on(proxied)
    assert lab.run(lab.nf.end_refused, 16) == 0
    assert len(entries(lab, 16)) == 1
    lab.run(lab.nf.apply, rules(16, 2, only(WEB4)))  # resumed
    lab.connect(name, WEB4).close()
    assert goes_on(proxied)


def test_destroyed_flows_are_gone_at_once_services_included(lab: Lab) -> None:
    name = lab.bottle(16, only(WEB4), only(WEB6), epoch=1)
    lab.receiver("am-svc", [str(POOL4[PROXY])], ports=(443,))
    flows = [lab.connect(name, a) for a in (WEB4, WEB6, str(POOL4[PROXY]))]
    assert lab.run(lab.nf.destroy_flows, 16) >= 3
    for sock in flows:
        with pytest.raises(OSError) as found:
            sock.recv(1)
        assert found.value.errno in {errno.ECONNABORTED, errno.ECONNRESET}
    assert entries(lab, 16) == []


def test_a_loopback_connection_inside_survives_everything(lab: Lab) -> None:
    name = lab.bottle(16, only(WEB4), epoch=1)
    lab.receiver(name, ["127.0.0.1", "::1", str(POOL4[16])], ports=(5432,))
    flows = [lab.connect(name, a, 5432) for a in ("127.0.0.1", "::1", str(POOL4[16]))]
    lab.run(lab.nf.apply, rules(16, 2))
    lab.run(lab.nf.cut, 16)
    lab.run(lab.nf.end_refused, 16)
    lab.run(lab.nf.destroy_flows, 16)
    assert all(goes_on(sock) for sock in flows[:2])


def test_a_slot_used_again_inherits_nothing(lab: Lab) -> None:
    name = lab.bottle(16, only(WEB4), only(WEB6), epoch=1)
    socks = [lab.connect(name, a) for a in (WEB4, WEB6)]
    assert len(entries(lab, 16)) >= 2
    lab.run(lab.nf.delete_bottle, 16)
    for sock in socks:
        sock.close()
    assert entries(lab, 16) == []
    lab.bottle(16, epoch=2)
    for address in (WEB4, WEB6):
        with pytest.raises(OSError):
            lab.connect(name, address)


def test_what_the_kernel_refuses_changes_nothing(lab: Lab) -> None:
    """An element that overlaps one that somebody else put there: the old rules stay, on both sides, and the flows."""
    name = lab.bottle(16, only(WEB4), epoch=1)
    lab.run(lab.nf.learn, 16, [learned(WEB6)])
    sock = lab.connect(name, WEB4)
    lab.shell("nft", "add", "element", "inet", "agentmon", "n4_16", "{ 203.0.113.0/24 . tcp . 1-65535 }")
    table = lab.shell("nft", "-s", "list", "table", "inet", "agentmon")
    inner = lab.shell("ip", "netns", "exec", name, "nft", "-s", "list", "ruleset")
    with pytest.raises(KernelRefused) as found:
        lab.run(lab.nf.apply, rules(16, 2, direct("203.0.113.128/25", "tcp", 443)))
    assert found.value.errno in {errno.EEXIST, errno.ENOTEMPTY} and "16" in str(found.value)
    assert lab.shell("nft", "-s", "list", "table", "inet", "agentmon") == table
    assert _untimed(lab.shell("ip", "netns", "exec", name, "nft", "-s", "list", "ruleset")) == _untimed(inner)
    assert goes_on(sock)
    lab.connect(name, WEB4).close()
    lab.connect(name, WEB6).close()
    with pytest.raises(OSError):
        lab.connect(name, OTHER4)


def _untimed(text: str) -> list[str]:
    return [line.split(" timeout ")[0] for line in text.splitlines()]


def test_a_bottle_without_its_own_table_is_still_held_and_can_learn(lab: Lab) -> None:
    name = lab.bottle(16, only(WEB4), epoch=1)
    lab.shell("ip", "netns", "exec", name, "nft", "flush", "ruleset")
    lab.run(lab.nf.learn, 16, [learned(WEB6)])
    lab.connect(name, WEB6).close()
    with pytest.raises(OSError):
        lab.connect(name, OTHER4)
    lab.shell("ip", "netns", "exec", name, "nft", "flush", "ruleset")
    lab.run(lab.nf.apply, rules(16, 1, only(WEB4), only(OTHER4)))
    lab.connect(name, OTHER4).close()


@pytest.mark.parametrize("mode", [Mode.CLOSED, Mode.CUT, Mode.OBSERVE])
def test_modes_change_live_flows(lab: Lab, mode: Mode) -> None:
    name = lab.bottle(16, only(WEB4), epoch=1)
    sock = lab.connect(name, WEB4)
    lab.run(lab.nf.apply, rules(16, 2, mode=mode))
    assert goes_on(sock) is (mode is Mode.OBSERVE)


def test_a_late_cut_does_not_reach_the_next_tenant(lab: Lab) -> None:
    lab.bottle(16, only(WEB4), epoch=1)
    lab.run(lab.nf.delete_bottle, 16)
    lab.run(lab.nf.cut, 16)
    name = lab.bottle(16, only(WEB4), epoch=2)
    lab.connect(name, WEB4).close()
