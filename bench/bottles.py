"""A thousand bottles by the library alone: how fast they are made, what a packet costs beside them, how they go.

In a host of its own (tests.support.nf_lab): namespace, device, addresses, rules of both sides, one allowed network;
no daemon, no BPF, no process inside. They are watched, as the daemon does it, and root storms in three of them.
"""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import time
from pathlib import Path

from bench.figure import Figure, median, pairwise, spread
from netfilter.heal import HealingNetfilter
from netfilter.spec import Direct
from tests.support.nf_healing import STORM, Daemon, Root
from tests.support.nf_lab import WEB4, Lab, direct, net, rules, until

FIRST = 16
COUNT, QUICK = 1000, 50
ROUNDS, TRIPS, STORMS = 9, 400, 3


def measure(tmp: Path, quick: bool) -> list[Figure]:
    count = QUICK if quick else COUNT
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed = direct(f"{WEB4}/32", "udp")
    with Lab() as lab:
        lab.nf = lab.run(HealingNetfilter)
        lab.open()
        lab.run(lab.nf.watch)
        lab.bottle(FIRST, allowed)
        _trips(lab)
        alone = [_trips(lab) for _ in range(ROUNDS)]
        rules_alone = _rules(lab)
        made = [_made(lab, slot, allowed) for slot in range(FIRST + 1, FIRST + count)]
        beside = [_trips(lab) for _ in range(ROUNDS)]
        rules_beside = _rules(lab)
        changed = [_changed(lab, FIRST + n % count, allowed) for n in range(100)]
        quiet, stormy = _restored(lab, count, quick)
        gone = [_deleted(lab, slot) for slot in range(FIRST + 1, FIRST + count)]
        left = len(lab.run(lab.nf.slots)) - 1
        again = [_trips(lab) for _ in range(ROUNDS)]
    around = [(a + b) / 2 for a, b in zip(sorted(alone), sorted(again), strict=True)]
    late = made[-max(1, count // 10) :]
    per_bottle = (rules_beside - rules_alone) / (count - 1)
    return [
        Figure("bottle.create.per_s", 1 / median(late), "1/s", ">= 40", spread=[1 / max(late), 1 / min(late)],
               note=f"the last tenth of {count}, with rules; the first tenth: {1 / median(made[: len(late)]):.0f}/s"),
        Figure("bottles.latency.ratio", pairwise(sorted(beside), around), "×", "<= 1.05",
               {"alone, µs": median(around) * 1e6}, spread=[min(beside) / max(around), max(beside) / min(around)],
               note=f"a datagram to the world and back beside {count} bottles, against one alone before and after"),
        Figure("bottles.rules_each", per_bottle, "rules", note="on the host; all stand in the bottle's own chain"),
        Figure("bottles.change.p99_ms", sorted(changed)[98] * 1000, "ms", spread=spread(t * 1000 for t in changed),
               note=f"put() of a removal at one of {count}"),
        Figure("watch.storm.restored_ms", median(stormy), "ms", "<= 100", {"nobody storms": median(quiet)},
               spread=spread(stormy), note=f"a table inside, flushed, is back; root storms in {STORMS} of {count}"),
        Figure("bottles.delete.per_s", 1 / median(gone), "1/s", note=f"teardown of {count}: {sum(gone):.1f} s"),
        Figure("bottles.left", left, "bottles", "<= 0"),
    ]  # fmt: skip


def _made(lab: Lab, slot: int, allowed: Direct) -> float:
    def work() -> float:
        began = time.perf_counter()
        lab.nf.create_bottle(net(slot))
        lab.nf.apply(rules(slot, slot, allowed))
        return time.perf_counter() - began

    return lab.run(work)


def _changed(lab: Lab, slot: int, allowed: Direct) -> float:
    def work() -> float:
        lab.nf.put(rules(slot, slot, allowed, direct("192.0.2.7/32")))
        began = time.perf_counter()
        lab.nf.put(rules(slot, 100_000 + slot, allowed))
        took = time.perf_counter() - began
        lab.nf.put(rules(slot, slot, allowed, direct("192.0.2.7/32")))
        return took

    return lab.run(work)


def _restored(lab: Lab, count: int, quick: bool) -> tuple[list[float], list[float]]:
    """Milliseconds from the end of a flush inside a bottle to its table, without and with storms in others; in another
    bottle each time. Looked for by nft(8): exact to its run time, 5 ms and more under load."""
    times = 3 if quick else 20
    storming = [Root(lab, FIRST + 1 + n) for n in range(STORMS)]
    others = [Root(lab, FIRST + 1 + STORMS + n) for n in range(2 * times)]

    def back(root: Root) -> float:
        root.run("nft", "flush", "ruleset")
        began = time.perf_counter()
        until(root.has_table, 30)
        return (time.perf_counter() - began) * 1000

    with contextlib.ExitStack() as stack, Daemon(lab, lab.nf, range(FIRST, FIRST + count)):
        stack.callback(lambda: [root.close() for root in (*storming, *others)])
        quiet = [back(root) for root in others[:times]]
        for root in storming:
            stack.enter_context(root.again_and_again(STORM))
        return quiet, [back(root) for root in others[times:]]


def _deleted(lab: Lab, slot: int) -> float:
    def work() -> float:
        began = time.perf_counter()
        lab.nf.delete_bottle(slot)
        return time.perf_counter() - began

    return lab.run(work)


def _trips(lab: Lab) -> float:
    """Seconds of one datagram to the world and back, the median of many."""

    def work() -> float:
        took = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((WEB4, 443))
            for _ in range(TRIPS):
                began = time.perf_counter()
                sock.send(b"x")
                sock.recv(1)
                took.append(time.perf_counter() - began)
        return median(took)

    return lab.inside(f"am-{FIRST}", work)


def _rules(lab: Lab) -> int:
    listed = lab.shell("nft", "-s", "-t", "list", "ruleset")
    return len(re.findall(r"^\t\t.*(accept|drop|goto|masquerade|vmap)", listed, re.MULTILINE))
