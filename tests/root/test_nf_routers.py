"""A host that learns its IPv6 default route from router advertisements keeps it and goes on learning while it forwards
for bottles; afterwards it is as it was."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from netfilter.heal import HealingNetfilter
from tests.support.nf_lab import OTHER6, WEB6, Lab, direct, until

pytestmark = pytest.mark.root
ADVERTISEMENT = 134


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Without a default route of its own; the world behind the uplink is a router that has said nothing yet."""
    with Lab() as lab:
        lab.nf = lab.run(HealingNetfilter)
        lab.shell("sysctl", "-qw", "net.ipv6.conf.up0.accept_ra=1", "net.ipv6.conf.up0.autoconf=0")
        lab.shell("ip", "-6", "route", "del", "default")
        router = lambda: Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")  # noqa: E731
        lab.inside("world", router)  # else its neighbour advertisements say that it is none, and end the route
        settled = lambda: lab.shell("ip", "-n", "world", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link")  # noqa: E731
        until(lambda: settled().strip() and "tentative" not in settled())
        yield lab


def advertise(lab: Lab, lifetime_s: int, *, namespace: str = "world", device: str = "eth0") -> None:
    """RFC 4861, 4.2: to all nodes, without options."""

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            number = socket.if_nametoindex(device)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
            body = struct.pack(">BBHBBHII", ADVERTISEMENT, 0, 0, 64, 0, lifetime_s, 0, 0)
            sock.sendto(body, ("ff02::1", 0, 0, number))

    lab.inside(namespace, send)


def learned_routes(lab: Lab) -> dict[str, int]:
    """Device → seconds that are left, of default routes that were learned."""
    listed = json.loads(lab.shell("ip", "-j", "-6", "route", "show", "default", "proto", "ra") or "[]")
    return {route["dev"]: route["expires"] for route in listed}


def reaches(lab: Lab, address: str) -> bool:
    try:
        lab.connect("am-16", address).close()
    except OSError:
        return False
    return True


def switch(lab: Lab, path: str) -> str:
    return lab.run(lambda: Path("/proc/sys/net/ipv6/conf", path).read_text().strip())


def between(lab: Lab, low: int, high: int, device: str = "up0") -> None:
    until(lambda: low < learned_routes(lab).get(device, 0) <= high)


def test_the_route_stays_and_is_renewed_and_the_host_is_left_as_it_was(lab: Lab) -> None:
    advertise(lab, 600)
    between(lab, 500, 600)
    lab.open()
    assert switch(lab, "all/forwarding") == "1" and switch(lab, "up0/accept_ra") == "2"
    between(lab, 500, 600)
    lab.bottle(16, direct(f"{WEB6}/128"))
    until(lambda: reaches(lab, WEB6))  # a new device takes a moment to have a carrier
    assert not reaches(lab, OTHER6)
    advertise(lab, 1800)
    between(lab, 1700, 1800)
    advertise(lab, 0)  # the router is none any more
    until(lambda: not learned_routes(lab))
    advertise(lab, 900)
    between(lab, 800, 900)
    assert reaches(lab, WEB6)
    lab.run(lab.nf.close_host)
    assert switch(lab, "all/forwarding") == "0" and switch(lab, "up0/accept_ra") == "1"
    between(lab, 800, 900)
    advertise(lab, 1200)
    between(lab, 1100, 1200)


def test_a_device_that_comes_later_may_learn_too_and_one_that_did_not_listen_does_not_begin_to(lab: Lab) -> None:
    lab.shell("sysctl", "-qw", "net.ipv6.conf.up0.accept_ra=0")
    lab.open()
    watcher = lab.run(lab.nf.watch)
    lab.run(
        lab.ip, "netns add far", "link add up1 type veth peer name eth0 netns far", "-n far link set eth0 up",
        "link set up1 up",
    )  # fmt: skip
    until(
        lambda: lab.run(lambda: lab.nf.restore(watcher.changes())) is not None and switch(lab, "up1/accept_ra") == "2"
    )
    tentative = ("ip", "-n", "far", "-6", "address", "show", "tentative")
    until(lambda: not lab.shell(*tentative).strip())
    advertise(lab, 600, namespace="far")
    between(lab, 500, 600, "up1")
    advertise(lab, 600)
    assert switch(lab, "up0/accept_ra") == "0" and list(learned_routes(lab)) == ["up1"]
    lab.run(lab.nf.close_host)
    assert switch(lab, "up1/accept_ra") == "1" and switch(lab, "up0/accept_ra") == "0"
