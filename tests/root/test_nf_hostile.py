"""A bottle whose root fills its own namespace costs what is read and put back of it, not what it made there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmon.control.state import Phase
from agentmon.daemon.healing import Healing
from agentmon.events import Event
from netfilter import look
from netfilter.heal import HealingNetfilter
from netfilter.netns import state
from tests.support.nf_lab import OTHER4, WEB4, Lab, direct, learned, until

pytestmark = pytest.mark.root
HOSTILE, POLITE = 16, 17
MANY, RULES, LINKS = 100_000, 20_000, 500  # rules and links take their maker longest
ROOM_MB = 64


class Root:
    """Root in a bottle, at work beside the lab's thread, which stays free for the daemon's calls."""

    def __init__(self, lab: Lab, slot: int) -> None:
        self.slot = slot
        self._space = lab.run(os.open, f"/run/netns/am-{slot}", os.O_RDONLY)

    def run(self, *argv: str, text: str = "") -> str:
        command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._space}", *argv]
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0 or argv[0] in {"sh", "ip"}, done.stderr[:500]
        return done.stdout

    def nft(self, text: str) -> None:
        self.run("nft", "-f", "-", text=text)

    def ip(self, lines: list[str]) -> None:
        """What is refused is passed over: our table may have been put back meanwhile."""
        self.run("ip", "-force", "-batch", "-", text="\n".join(lines)) if lines else None

    def has_table(self) -> bool:
        listed = self.run("sh", "-c", "nft list chain inet agentmon output 2>&1")
        return "goto refuse" in listed

    def close(self) -> None:
        os.close(self._space)


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


class Daemon:
    """The daemon's healing over a lab, in a thread; the lab's thread is the kernel's."""

    def __init__(self, lab: Lab, nf: HealingNetfilter) -> None:
        self.events: list[Event] = []
        self.lab = lab
        bottles: Any = {slot: SimpleNamespace(name=f"b{slot}", phase=Phase.RUNNING) for slot in (HOSTILE, POLITE)}
        self._healing = Healing(nf, self._in_kernel, lambda: bottles, self.events.append, lambda *_: None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    async def _in_kernel(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(self.lab.run, call, *args)

    def _run(self) -> None:
        self._loop.run_until_complete(self._healing.open())
        self._task = self._loop.create_task(self._healing.watch())
        self._loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def __enter__(self) -> Daemon:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def told(self, slot: int) -> list[Event]:
        return [e for e in self.events if e.bottle == f"b{slot}"]


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

    with Daemon(lab, nf) as daemon:
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
