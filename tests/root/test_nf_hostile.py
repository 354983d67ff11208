"""A bottle whose root fills its own namespace costs what is read and put back of it, not what it made there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.daemon.healing import ALOUD
from netfilter import look
from netfilter.changes import Change, Kind, Place
from netfilter.errors import TooMuch
from netfilter.heal import HealingNetfilter
from netfilter.netns import state
from tests.support.nf_healing import STORM, Daemon, Root
from tests.support.nf_lab import OTHER4, WEB4, Lab, direct, learned, until
from tests.support.nf_lab import rules as policy

pytestmark = pytest.mark.root
HOSTILE, POLITE = 16, 17
MANY, RULES, LINKS = 100_000, 20_000, 500  # rules and links take their maker longest
ROOM_MB = 64
BESIDE, STORMS = 24, 3


def address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def rules(root: Root) -> None:
    root.nft("\n".join(f"add rule inet agentmon output ip daddr {address(n)} accept" for n in range(RULES)))


def elements(root: Root) -> None:
    members = ", ".join(f"{address(n)} . tcp . 443" for n in range(MANY))
    root.nft(f"add element inet agentmon s4 {{ {members} }}")


def chains(root: Root) -> None:
    root.nft("\n".join(f"add chain inet agentmon c{n}" for n in range(RULES)))


def tables(root: Root) -> None:
    root.nft("\n".join(f"add table inet t{n}; add chain inet t{n} c" for n in range(RULES // 20)))


def routes(root: Root) -> None:
    root.ip([f"route add {address(n)}/32 dev eth0" for n in range(MANY // 2)])


def neighbours(root: Root) -> None:
    root.ip([f"neigh add {address(n)} lladdr 02:00:00:00:00:01 dev eth0" for n in range(2 * state.MOST)])


def devices(root: Root) -> None:
    root.ip([f"link add d{n} type veth peer name e{n}" for n in range(LINKS // 2)])


FILLED: dict[str, Callable[[Root], None]] = {
    f.__name__: f for f in (rules, elements, chains, tables, routes, neighbours, devices)
}
LEFT = {"rules", "chains"}  # what is so much that it is not even taken away


def peak_mb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) >> 10


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        made.nf = made.run(HealingNetfilter)
        made.open()
        made.run(made.nf.watch)
        for slot in (HOSTILE, POLITE):
            made.bottle(slot, direct(f"{WEB4}/32"))
            made.run(made.nf.learn, slot, [learned(OTHER4, 5432, timeout_s=900)])
        yield made


@pytest.fixture
def roots(lab: Lab) -> Iterator[tuple[Root, Root]]:
    made = Root(lab, HOSTILE), Root(lab, POLITE)
    yield made
    for root in made:
        root.close()


@pytest.mark.parametrize("what", FILLED)
def test_what_root_makes_in_one_bottle_costs_no_more_than_a_look_and_delays_no_other(
    lab: Lab, roots: tuple[Root, Root], what: str
) -> None:
    nf: Any = lab.nf
    hostile, polite = roots

    def healed() -> None:
        polite.run("nft", "flush", "ruleset")
        until(polite.has_table, 10, "the other bottle's table is not put back")

    with Daemon(lab, nf, (HOSTILE, POLITE)) as daemon:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
        before, rounds = peak_mb(), 0
        filling = threading.Thread(target=FILLED[what], args=(hostile,))
        filling.start()
        while filling.is_alive() or rounds < 5:
            healed()
            rounds += 1
        filling.join()
        if what in LEFT:
            until(lambda: any("holds more than" in str(e.detail) for e in daemon.told(HOSTILE)), 10, "nobody is told")
            assert lab.inside(f"am-{HOSTILE}", lambda: look.size("agentmon")).too_much
            healed()
        assert peak_mb() - before < ROOM_MB
        lab.shell("nft", "flush", "ruleset")
        until(lambda: lab.run(nf.check, None) == [], 10, "the host's table is not put back")
        tidy = "nft flush ruleset; ip link set eth0 down; ip addr flush dev eth0; ip neigh flush dev eth0 nud all"
        hostile.run("sh", "-c", f"{tidy}; ip link set eth0 up")
        until(lambda: lab.run(nf.check, HOSTILE) == [], 20, "it is not put back when there is room again")
        lab.connect(f"am-{HOSTILE}", WEB4).close()


def test_names_and_policies_of_a_bottle_whose_table_is_filled_are_held_by_the_host(
    lab: Lab, roots: tuple[Root, Root]
) -> None:
    nf: Any = lab.nf
    lines = [f"add rule inet agentmon c ip daddr {address(n)} drop" for n in range(look.MOST + 10)]
    anew = "delete table inet agentmon; add table inet agentmon; add chain inet agentmon c"
    roots[0].nft("\n".join([anew, *lines]))
    lab.run(nf.learn, HOSTILE, [learned(OTHER4)])
    lab.connect(f"am-{HOSTILE}", OTHER4).close()
    lab.run(nf.apply, policy(HOSTILE, 99, direct(f"{OTHER4}/32")))
    lab.connect(f"am-{HOSTILE}", OTHER4).close()
    with pytest.raises(OSError):
        lab.connect(f"am-{HOSTILE}", WEB4, timeout=0.3)
    assert lab.inside(f"am-{HOSTILE}", lambda: look.size("agentmon")).too_much
    with pytest.raises(TooMuch):
        lab.run(nf.restore, [Change(HOSTILE, Place.BOTTLE, Kind.RULES, "table agentmon deleted")])
    roots[0].run("nft", "flush", "ruleset")
    lab.run(nf.restore, [Change(HOSTILE, Place.BOTTLE, Kind.RULES, "table agentmon deleted")])
    assert lab.run(nf.check, HOSTILE) == []


def test_storms_in_a_few_of_many_bottles_leave_the_others_and_the_host_to_be_put_back(lab: Lab) -> None:
    nf: Any = lab.nf
    slots = range(HOSTILE, HOSTILE + BESIDE)
    for slot in slots[2:]:
        lab.bottle(slot, direct(f"{WEB4}/32"))
    roots = [Root(lab, slot) for slot in slots]
    with contextlib.ExitStack() as stack, Daemon(lab, nf, slots) as daemon:
        stack.callback(lambda: [root.close() for root in roots])
        with contextlib.ExitStack() as storms:
            for root in roots[:STORMS]:
                storms.enter_context(root.again_and_again(STORM))
            until(lambda: len(daemon.told(HOSTILE)) >= ALOUD, 20, "nobody is told of the storm")
            for root in roots[STORMS::5]:
                root.run("nft", "flush", "ruleset")
                until(root.has_table, 10, f"the table of bottle {root.slot} is not put back")
            lab.shell("nft", "delete", "table", "inet", "agentmon")
            until(lambda: lab.run(nf.check, None) == [], 10, "the host's table is not put back")
            lab.connect(f"am-{slots[-1]}", WEB4).close()
        assert all(len(daemon.told(slot)) <= ALOUD for slot in slots[:STORMS])
        until(lambda: not [d for slot in slots for d in lab.run(nf.check, slot)], 30, "it does not come to rest")
        lab.connect(f"am-{HOSTILE}", WEB4).close()
