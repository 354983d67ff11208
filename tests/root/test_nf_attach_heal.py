"""What its own root takes away in an attached namespace is told by the kernel and put back at once, whatever else is in
there, and the host's side holds meanwhile."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from netfilter.changes import Kind, Place
from netfilter.heal import HealingNetfilter
from netfilter.netns import foreign_links
from tests.support.nf_engine import Engine
from tests.support.nf_lab import OTHER4, OTHER6, WEB4, WEB6, Lab, direct, until

pytestmark = pytest.mark.root
WEBS = (direct(f"{WEB4}/32"), direct(f"{WEB6}/128"))
TAKEN = {
    "rule": "ip rule del priority 2",
    "rule of IPv6": "ip -6 rule del priority 2",
    "rule for answers": "ip rule del priority 1",
    "route": "ip route del default table 24941",
    "route of IPv6": "ip -6 route flush table 24941",
    "route led elsewhere": "ip route replace default via 10.88.0.1 dev eth0 table 24941",
    "route without its source": "ip -6 route replace default via fd61:6d6f:6e::1 dev agentmon0 onlink table 24941",
    "device down": "ip link set agentmon0 down",
    "address": "ip address del 10.213.0.16/32 dev agentmon0",
    "address of IPv6": "ip -6 address flush dev agentmon0",
    "device": "ip link del agentmon0",
    "device again": "ip link del agentmon0",  # the one that was put back
    "table": "nft delete table inet agentmon",
}


@pytest.fixture(scope="module")
def held() -> Iterator[SimpleNamespace]:
    with Lab() as lab:
        lab.nf = lab.run(HealingNetfilter)
        engine = Engine(lab)
        lab.open()
        watcher = lab.run(lab.nf.watch)
        engine.attach("box", *WEBS)
        until(lambda: engine.reaches("box", WEB4) and engine.reaches("box", WEB6))
        lab.run(lab.nf.restore, watcher.changes())
        yield SimpleNamespace(lab=lab, engine=engine, watcher=watcher)


def mended(held: SimpleNamespace) -> tuple[list[str], float]:
    """What was told and put back, and how long that took in ms, of which waiting for the kernel's word is a part."""
    lab, began, took_ms, found = held.lab, time.monotonic(), 0.0, []
    until(lambda: select.select([held.watcher], [], [], 0)[0], why="nobody told of a change")
    for _ in range(5):  # what our own hand moved is told of, too, and found to be right
        changes = [c for c in held.watcher.changes() if c.slot == 16 or c.kind is Kind.RULES]
        if not changes:
            break
        found += lab.run(lab.nf.restore, changes)
        took_ms = took_ms or (time.monotonic() - began) * 1e3
    return [d.what for d in found if not d.lost], took_ms


@pytest.mark.parametrize("what", TAKEN)
def test_it_is_told_by_the_kernel_and_put_back(
    held: SimpleNamespace, what: str, record_property: Callable[[str, object], None]
) -> None:
    engine = held.engine
    assert held.lab.run(held.lab.nf.hold_again, 16) == ()
    engine.in_there("box", *TAKEN[what].split())
    found, took_ms = mended(held)
    record_property("restored_ms", round(took_ms, 1))
    assert found, what
    assert held.lab.run(held.lab.nf.hold_again, 16) == ()
    for allowed, refused in ((WEB4, OTHER4), (WEB6, OTHER6)):
        until(lambda a=allowed: engine.reaches("box", a))  # type: ignore[misc]
        assert not engine.reaches("box", refused)
    assert held.lab.world.to(OTHER4) == held.lab.world.to(OTHER6) == 0


def test_nobody_is_told_of_what_is_its_own(held: SimpleNamespace) -> None:
    engine, nobody = (
        held.engine,
        {"route": "ip route add 192.0.2.0/24 dev lo", "rule": "ip rule add priority 77 lookup 5"},
    )
    for command in (*nobody.values(), "ip route del 192.0.2.0/24 dev lo", "ip rule del priority 77"):
        engine.in_there("box", *command.split())
    assert [c for c in held.watcher.changes() if c.place is Place.BOTTLE] == []


def test_ten_thousand_routes_of_its_own_cost_nothing(held: SimpleNamespace) -> None:
    """Even in our own table: the kernel lists them behind the default route that is looked for."""
    lab, engine = held.lab, held.engine
    addresses = (f"100.{64 + n // 256}.{n % 256}.1" for n in range(10_000))
    many = "".join(f"route add {a} dev lo table 24941\n" for a in addresses)
    argv = ["ip", "-n", "box", "-batch", "-"]
    lab.run(lambda: subprocess.run(argv, input=many, text=True, check=True, capture_output=True))
    lab.run(lab.nf.restore, held.watcher.changes())
    engine.in_there("box", *TAKEN["route"].split())
    assert mended(held)[0]
    assert lab.run(lab.nf.hold_again, 16) == ()
    assert len(lab.inside("box", lambda: foreign_links.beginning(socket.AF_INET))) < 1000  # of 10,000
    assert engine.reaches("box", WEB4)
