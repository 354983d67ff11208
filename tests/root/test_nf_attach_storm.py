"""A namespace whose root never stops trying is attached, changed, healed and let go again and again, on busy
processors: of what is tried while it is held nothing arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from netfilter.heal import HealingNetfilter
from tests.support.nf_engine import BOX4, ROUTED4, RULES, Engine
from tests.support.nf_lab import OTHER4, OTHER6, WEB4, Lab, direct, learned, rules, until
from tests.support.nf_storm import Tap, busy, storm
from tests.support.rounds import rounds

pytestmark = pytest.mark.root
ROUNDS = rounds(4)
_SYN = 0x02
HOW = {"socket", "frame", ""}  # of datagrams; "": a connection


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Lab() as lab:
        lab.nf = lab.run(HealingNetfilter)
        made = Engine(lab)
        lab.open()
        yield made


def flush_inside(engine: Engine, name: str) -> None:
    engine.in_there(name, "nft", "flush", "ruleset")
    engine.in_there(name, "ip", "rule", "del", "priority", "2")


def remove_device(engine: Engine, name: str) -> None:
    engine.in_there(name, "ip", "link", "del", "agentmon0")


def flush_host(engine: Engine, _: str) -> None:
    engine.lab.shell("nft", "flush", "ruleset")
    engine.lab.shell("nft", RULES)


def change_policy(engine: Engine, _: str) -> None:
    lab = engine.lab
    lab.run(lab.nf.learn, 16, [learned(WEB4)])
    lab.run(lab.nf.apply, rules(16, 17 + time.monotonic_ns() % 100_000, direct(f"{WEB4}/32", "udp")))


@pytest.mark.parametrize(("name", "address", "gateway"), [("box", BOX4, "br0"), ("routed", ROUTED4, "routed0")])
def test_nothing_that_is_tried_while_it_is_held_arrives(
    engine: Engine, name: str, address: str, gateway: str, record_property: Callable[[str, object], None]
) -> None:
    lab = engine.lab
    watcher = lab.run(lab.nf.watch)
    engine.quiet()
    tap = lab.inside("world", lambda: Tap("eth0", (OTHER4, OTHER6)))
    held: list[tuple[int, int]] = []
    try:
        with busy(2), storm(lab, name, address, gateway):
            for _ in range(ROUNDS):
                seen = len(tap.arrivals)
                until(lambda n=seen: {a.how for a in tap.arrivals[n:]} >= HOW, 10)  # type: ignore[misc] # it can
                engine.attach(name, direct(f"{WEB4}/32"))
                began = time.time_ns()
                for change in (flush_inside, remove_device, flush_host, change_policy):
                    change(engine, name)
                    for _ in range(3):
                        lab.run(lab.nf.restore, watcher.changes())
                        lab.run(lab.nf.hold_again, 16)
                held.append((began, time.time_ns()))
                engine.detach()
    finally:
        tap.close()
    arrived = [a for a in tap.arrivals if any(began <= a.tried_ns and a.arrived_ns < end for began, end in held)]
    before = [a for a in tap.arrivals if any(0 < a.tried_ns < began <= a.arrived_ns < end for began, end in held)]
    record_property("arrived", len(tap.arrivals))
    record_property("held_ms", [round((end - began) / 1e6) for began, end in held])
    opened = [a for a in tap.arrivals if a.flags == _SYN and any(began <= a.arrived_ns < end for began, end in held)]
    assert (arrived, before, opened) == ([], [], []), held
