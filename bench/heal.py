"""A foreign `nft flush ruleset`, from its end to the table that is whole again, beside `nft -f` loading the same table.

In namespaces of its own (tests.support.nf_lab); each bottle has a policy and 40 learned addresses. After each round a
bottle's connection proves that the table is back.
"""

from __future__ import annotations

import select
import time
from pathlib import Path
from typing import Any

from bench.figure import Figure, against, interleaved
from netfilter.heal import HealingNetfilter
from tests.support.nf_lab import WEB4, Lab, direct, learned

FIRST, LEARNED = 16, 40
COUNTS, QUICK = (1, 20, 100), (1, 5)
ROUNDS = 7
GOALS = {1: "<= 100", 20: "<= 100", 100: "<= 100"}


def measure(tmp: Path, quick: bool) -> list[Figure]:
    figures, made = [], 0
    with Lab() as lab:
        lab.nf = lab.run(HealingNetfilter)
        lab.open()
        watcher = lab.run(lab.nf.watch)
        for count in QUICK if quick else COUNTS:
            for slot in range(FIRST + made, FIRST + count):
                lab.bottle(slot, direct(f"{WEB4}/32"))
                lab.run(lab.nf.learn, slot, [learned(f"192.0.{slot}.{n}", timeout_s=3600) for n in range(LEARNED)])
            made = count
            saved = tmp / f"{count}.nft"
            saved.write_text(lab.shell("nft", "list", "table", "inet", "agentmon"))
            work = {"agentmon": lambda: _ours(lab, watcher), "nft -f": lambda path=saved: _theirs(lab, watcher, path)}
            got = interleaved(2 if quick else ROUNDS, work)
            figures.append(
                against(f"restore.flush_{count}", "ms", got, "agentmon", GOALS.get(count, ""),
                        note=f"until the last of {count} bottles is back; 32 at a time")
            )  # fmt: skip
    return figures


def _ours(lab: Lab, watcher: Any) -> float:
    lab.shell("nft", "flush", "ruleset")
    began = time.perf_counter()
    told = []
    while not told:
        select.select([watcher], [], [], 10)
        told = watcher.changes()
    lab.run(lab.nf.restore, told)
    took = (time.perf_counter() - began) * 1000
    lab.connect(f"am-{FIRST}", WEB4).close()
    return took


def _theirs(lab: Lab, watcher: Any, saved: Path) -> float:
    lab.shell("nft", "flush", "ruleset")
    began = time.perf_counter()
    lab.shell("nft", "-f", str(saved))
    took = (time.perf_counter() - began) * 1000
    lab.connect(f"am-{FIRST}", WEB4).close()
    while select.select([watcher], [], [], 0.2)[0]:
        watcher.changes()
    return took
