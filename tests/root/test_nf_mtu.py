"""Packets of a bottle are as large as the way out takes: the uplink's MTU, its changes, and narrower links behind it.

bottle ── lab's host ── up0, 1,400 bytes ── world ── far0, 1,300 bytes ── far
"""

from __future__ import annotations

import errno
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netfilter.heal import HealingNetfilter
from tests.support.nf_lab import WEB4, WEB6, Lab, direct, until

pytestmark = pytest.mark.root
UPLINK, FAR, LATER = 1400, 1300, 1360
FAR4, FAR6 = "192.0.2.9", "2001:db8:9::9"
EACH_WAY = 3_000_000
_IPV6_MTU_DISCOVER, _IPV6_MTU, _DO = 23, 24, 2
_IP_MTU_DISCOVER, _IP_MTU = 10, 14


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.run(made.ip, f"link set up0 mtu {UPLINK}")
        made.run(
            made.ip, "netns add far", f"-n world link set eth0 mtu {UPLINK}",
            "-n world link add far0 type veth peer name eth0 netns far",
            f"-n world link set far0 up mtu {FAR}", "-n world addr add 192.0.2.1/24 dev far0",
            "-n world addr add 2001:db8:9::1/64 dev far0 nodad",
            f"-n far link set eth0 up mtu {FAR}", "-n far addr add 192.0.2.9/24 dev eth0",
            "-n far addr add 2001:db8:9::9/64 dev eth0 nodad", "-n far route add default via 192.0.2.1",
            "-n far -6 route add default via 2001:db8:9::1",
        )  # fmt: skip
        made.inside("world", route)
        made.receiver("far", [FAR4, FAR6])
        made.nf = made.run(HealingNetfilter)
        made.open()
        made.run(made.nf.watch)
        everywhere = [f"{a}/{'128' if ':' in a else '32'}" for a in (WEB4, WEB6, FAR4, FAR6)]
        made.bottle(16, *(direct(n, p) for n in everywhere for p in ("tcp", "udp")))
        yield made


def route() -> None:
    for family in ("ipv4", "ipv6"):
        Path(f"/proc/sys/net/{family}/conf/all/forwarding").write_text("1")


def mtus(lab: Lab) -> set[int]:
    """Of both ends of the bottle and of the service namespace."""
    names = (("am16",), ("am-svc",), ("-n", "am-16", "eth0"), ("-n", "am-svc", "eth0"))
    shown = [lab.shell("ip", *where, "link", "show", device) for *where, device in names]
    return {int(re.search(r"mtu (\d+)", text)[1]) for text in shown}  # type: ignore[index]


def transfer(lab: Lab, address: str) -> int:
    """EACH_WAY bytes there and back; the largest segment that was sent then."""

    def work() -> int:
        data, got = memoryview(bytes(EACH_WAY)), 0
        with socket.create_connection((address, 443), 5) as sock:
            sock.settimeout(0.02)
            sent = 0
            deadline = time.monotonic() + 30
            while got < EACH_WAY:
                assert time.monotonic() < deadline, (sent, got)
                with suppress(TimeoutError):
                    if sent < EACH_WAY and sent - got < 60_000:  # an echo takes what it can send back
                        sent += sock.send(data[sent : sent + 20_000])
                with suppress(TimeoutError):
                    got += len(sock.recv(1 << 16))
            return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    return lab.inside("am-16", work)


@pytest.mark.parametrize("address", [WEB4, WEB6])
def test_a_bottle_has_the_mtu_of_the_way_out(lab: Lab, address: str) -> None:
    assert mtus(lab) == {UPLINK}
    headers = 40 if ":" in address else 20
    assert UPLINK - headers - 40 <= transfer(lab, address) <= UPLINK - headers - 20


@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_what_a_router_says_of_a_narrower_link_reaches_the_bottle(lab: Lab, address: str) -> None:
    """A large datagram that must not be fragmented is refused once it is known; streams go through."""
    headers = 40 if ":" in address else 20
    assert FAR - headers - 40 <= transfer(lab, address) <= FAR - headers - 20
    six = ":" in address
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP

    def work() -> int:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(level, _IPV6_MTU_DISCOVER if six else _IP_MTU_DISCOVER, _DO)
            sock.connect((address, 5432))

            def sent(size: int) -> bool:
                try:
                    return sock.send(bytes(size)) == size
                except OSError as e:
                    assert e.errno == errno.EMSGSIZE
                    return False

            until(lambda: not sent(FAR - headers - 7), why="nobody said that it is too large")
            until(lambda: sent(FAR - headers - 8), why="what fits is refused too")  # after what was on its way
            sock.settimeout(5)
            assert len(sock.recv(1 << 16)) == FAR - headers - 8
            return sock.getsockopt(level, _IPV6_MTU if six else _IP_MTU)

    assert lab.inside("am-16", work) == FAR


def test_a_change_of_the_uplink_is_followed_and_is_nobodys_tampering(lab: Lab) -> None:
    watcher = lab.run(lab.nf.watch)  # type: ignore[attr-defined]

    def followed() -> bool:
        assert lab.run(lab.nf.restore, watcher.changes()) == []  # type: ignore[attr-defined]
        return mtus(lab) == {LATER}

    flow = lab.connect("am-16", WEB4)
    lab.run(lab.ip, f"link set up0 mtu {LATER}", f"-n world link set eth0 mtu {LATER}")
    until(followed, why="the bottle still sends larger packets")
    for address in (WEB4, WEB6):
        headers = 40 if ":" in address else 20
        assert LATER - headers - 40 <= transfer(lab, address) <= LATER - headers - 20
    flow.sendall(b"still")
    assert flow.recv(5) == b"still"
    flow.close()
    lab.run(
        lab.ip,
        "link add vpn0 mtu 1290 type veth peer name vpn1",
        "link set vpn0 up",
        "route add 0.0.0.0/1 dev vpn0 table 77",
    )
    lab.run(lab.nf.follow_uplink)
    assert mtus(lab) == {1290}  # the smallest of the ways out
    lab.run(lab.ip, "link del vpn0", "route del default", "-6 route del default")
    lab.run(lab.nf.follow_uplink)
    assert mtus(lab) == {1500}  # nothing leads out
