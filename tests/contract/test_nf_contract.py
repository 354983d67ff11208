"""What every Netfilter promises, asked of the fake and of the kernel alike."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any, Protocol

import pytest

from netfilter.errors import KernelRefused
from netfilter.fake import FakeFlow, FakeNetfilter
from netfilter.spec import EPOCH_MASK, Learned, Mode, Netfilter
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
    host_spec,
    learned,
    net,
    rules,
)

EVERYTHING = (direct("0.0.0.0/0"), direct("::/0"))


class World(Protocol):
    """A Netfilter and a way to try it."""

    def call(self, name: str, *args: Any) -> Any: ...
    def opens(self, slot: int, address: str, port: int = 443) -> Any:
        """A TCP connection, or None: refused."""

    def lives(self, connection: Any) -> bool: ...


class FakeWorld:
    def __init__(self) -> None:
        self.nf: Netfilter = FakeNetfilter()

    def call(self, name: str, *args: Any) -> Any:
        return getattr(self.nf, name)(*args)

    def opens(self, slot: int, address: str, port: int = 443) -> FakeFlow | None:
        assert isinstance(self.nf, FakeNetfilter)
        try:
            return self.nf.connect(slot, ip_address(address), port)
        except ConnectionRefusedError:
            return None

    @staticmethod
    def lives(connection: FakeFlow) -> bool:
        return connection.alive


class KernelWorld:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.nf: Netfilter = lab.nf

    def call(self, name: str, *args: Any) -> Any:
        return self.lab.run(getattr(self.nf, name), *args)

    def opens(self, slot: int, address: str, port: int = 443) -> Any:
        try:
            return self.lab.connect(f"am-{slot}", address, port)
        except OSError:
            return None

    @staticmethod
    def lives(connection: Any) -> bool:
        connection.settimeout(0.5)
        try:
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
        except OSError:
            return False


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.root)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        if request.param == "fake":
            found: World = FakeWorld()
        else:
            lab = stack.enter_context(Lab())
            found = KernelWorld(lab)
        found.call("open_host", host_spec())
        if request.param == "kernel":
            services = [str(pool[n]) for pool in (POOL4, POOL6) for n in (RELAY, PROXY)]
            lab.receiver("am-svc", services, ports=(443,))
        yield found


def bottle(world: World, slot: int, *allow: Any, **more: Any) -> None:
    world.call("create_bottle", net(slot))
    world.call("apply", rules(slot, more.pop("epoch", slot), *allow, **more))


def test_a_new_bottle_is_closed(world: World) -> None:
    world.call("create_bottle", net(16))
    for address in (WEB4, WEB6, str(POOL4[PROXY])):
        assert world.opens(16, address) is None


@pytest.mark.parametrize(
    ("mode", "open_to"),
    [
        (Mode.CLOSED, set()),
        (Mode.CUT, {"proxy"}),
        (Mode.ENFORCE, {"proxy", "relay", "allowed"}),
        (Mode.OBSERVE, {"proxy", "relay", "allowed", "other"}),
    ],
)
def test_a_mode_opens_so_much_and_no_more(world: World, mode: Mode, open_to: set[str]) -> None:
    bottle(world, 16, direct(f"{WEB4}/32"), direct(f"{WEB6}/128", "tcp", 443), mode=mode)
    places = {
        "proxy": (str(POOL4[PROXY]), str(POOL6[PROXY])),
        "relay": (str(POOL4[RELAY]), str(POOL6[RELAY])),
        "allowed": (WEB4, WEB6),
        "other": (OTHER4, OTHER6),
    }
    found = {name for name, addresses in places.items() if all(world.opens(16, a) for a in addresses)}
    refused = {name for name, addresses in places.items() if not any(world.opens(16, a) for a in addresses)}
    assert found == open_to
    assert refused == set(places) - open_to


def test_protected_stays_refused_and_deny_wins(world: World) -> None:
    bottle(world, 16, *EVERYTHING, deny=(direct(f"{OTHER4}/32"), direct(f"{OTHER6}/128")), mode=Mode.OBSERVE)
    world.call("learn", 16, [learned(OTHER4)])
    refused = ("169.254.169.254", "fd00:ec2::254", str(POOL4[1]), str(POOL6[1]), str(POOL4[17]), OTHER4, OTHER6)
    assert [world.opens(16, a, 5432) for a in refused] == [None] * len(refused)
    assert world.opens(16, WEB4) and world.opens(16, WEB6)


def test_learned_addresses_open_their_ports(world: World) -> None:
    bottle(world, 16)
    wide = Learned(ip_address(WEB6), "tcp", ((400, 500), (5000, 6000)), 60)
    assert world.opens(16, WEB4) is None
    world.call("learn", 16, [learned(WEB4), wide])
    world.call("learn", 16, [learned(WEB4), wide._replace(ports=((440, 450),))])  # renewed, and over a part
    assert world.opens(16, WEB4) and world.opens(16, WEB6) and world.opens(16, WEB6, 5432)
    assert world.opens(16, WEB4, 5432) is None


def test_what_is_over_opens_nothing(world: World) -> None:
    bottle(world, 16, learned=(learned(WEB4, timeout_s=0), learned(WEB6)))
    world.call("learn", 16, [learned(OTHER4, timeout_s=0)])
    assert [bool(world.opens(16, a)) for a in (WEB4, WEB6, OTHER4)] == [False, True, False]


def test_the_same_epoch_adds_and_ends_nothing(world: World) -> None:
    bottle(world, 16, direct(f"{WEB4}/32"), epoch=5)
    world.call("learn", 16, [learned(OTHER6)])
    flow = world.opens(16, OTHER6)
    world.call("apply", rules(16, 5, direct(f"{WEB4}/32"), direct(f"{WEB6}/128")))
    assert world.lives(flow)
    assert world.opens(16, WEB6) and world.opens(16, OTHER6)


def test_a_new_epoch_ends_what_it_does_not_allow(world: World) -> None:
    bottle(world, 16, direct(f"{WEB4}/32"), direct(f"{WEB6}/128"), epoch=5)
    world.call("learn", 16, [learned(OTHER4), learned(OTHER6)])
    kept, gone, named, forgotten = (world.opens(16, a) for a in (WEB4, WEB6, OTHER4, OTHER6))
    world.call("apply", rules(16, 6, direct(f"{WEB4}/32"), learned=(learned(OTHER4, timeout_s=0),)))
    assert [world.lives(f) for f in (kept, named, gone, forgotten)] == [True, True, False, False]
    assert world.opens(16, OTHER4) is None and world.opens(16, WEB6) is None


def test_a_cut_ends_what_does_not_survive_it(world: World) -> None:
    bottle(world, 16, *EVERYTHING)
    flows = [world.opens(16, a) for a in (str(POOL4[PROXY]), WEB4, str(POOL4[RELAY]))]
    world.call("cut", 16)
    assert world.opens(16, WEB4) is None
    assert world.call("end_refused", 16) >= 2
    assert [world.lives(f) for f in flows] == [True, False, False]
    assert world.call("end_refused", 16) == 0
    world.call("apply", rules(16, 16, *EVERYTHING))  # the same epoch: opened again
    assert world.opens(16, WEB4)


def test_destroying_ends_services_flows_too(world: World) -> None:
    bottle(world, 16, *EVERYTHING)
    flows = [world.opens(16, a) for a in (str(POOL4[PROXY]), WEB6)]
    assert world.call("destroy_flows", 16) >= 2
    assert not any(world.lives(f) for f in flows)
    assert world.opens(16, WEB6)


def test_refusals_are_counted_by_reason(world: World) -> None:
    bottle(world, 16, deny=(direct(f"{OTHER4}/32"),))
    before = world.call("refusals", 16)
    assert set(before) == {"spoof", "protected", "deny", "policy", "cut", "closed"}
    assert set(before.values()) == {0}
    world.opens(16, WEB4)
    world.call("cut", 16)
    world.opens(16, str(POOL4[RELAY]))
    found = world.call("refusals", 16)
    assert found["cut"] >= 1


def test_bottles_come_and_go(world: World) -> None:
    assert world.call("slots") == frozenset()
    bottle(world, 16)
    bottle(world, 17)
    assert world.call("slots") == {16, 17}
    world.call("delete_bottle", 16)
    world.call("delete_bottle", 16)
    world.call("delete_bottle", 99)
    assert world.call("slots") == {17}
    bottle(world, 16, direct(f"{WEB4}/32"))
    assert world.opens(16, WEB4)


def test_errors_say_what_is_wrong(world: World) -> None:
    bottle(world, 16)
    with pytest.raises(KernelRefused) as taken:
        world.call("create_bottle", net(16))
    assert taken.value.errno == errno.EEXIST and "am-16" in str(taken.value)
    for call, args in (
        ("apply", (rules(77, 1),)),
        ("learn", (77, [learned(WEB4)])),
        ("end_refused", (77,)),
        ("refusals", (77,)),
        ("adopt_bottle", (net(77),)),
    ):
        with pytest.raises(KernelRefused) as absent:
            world.call(call, *args)
        assert absent.value.errno in {errno.ENOENT, errno.ENODEV}, call
    for epoch in (0, EPOCH_MASK + 1):
        with pytest.raises(ValueError, match="epoch"):
            world.call("apply", rules(16, epoch))
    assert world.call("slots") == {16}


def test_services_dials_are_taken_and_renewed(world: World) -> None:
    for ports in (((443, 443),), ((443, 443),), ((400, 500),), ((450, 600),)):
        world.call("permit_service", [Learned(ip_address(WEB4), "tcp", ports, 60)])


def test_closing_twice_is_fine(world: World) -> None:
    bottle(world, 16)
    world.call("close_host")
    assert world.call("slots") == frozenset()
    world.call("close_host")
