"""A bottle's allowlist of 100,000 addresses replaced by another, on both sides, beside nft(8) loading one such set.

In namespaces of its own (tests.support.nf_lab). `nft -f` is given one set in one table; agentmon programs two: the
host's for the veth, and the bottle's own.
"""

from __future__ import annotations

import time
from ipaddress import IPv4Network
from pathlib import Path

from bench.figure import Figure, against, interleaved, median, pairwise, quantile, spread
from netfilter.spec import Direct
from tests.support.nf_lab import OTHER4, WEB4, Lab, direct, rules

COUNT = 100_000
SLOT = 16
_SET = "type ipv4_addr . inet_proto . inet_service;"


def measure(tmp: Path, quick: bool) -> list[Figure]:
    halves = [tuple(_direct(half, n) for n in range(COUNT)) for half in (0, 1)]
    texts = []
    for half in (0, 1):
        elements = ", ".join(f"{d.network.network_address} . tcp . 443" for d in halves[half])
        texts.append(tmp / f"half{half}.nft")
        texts[half].write_text(f"flush set inet beside s\nadd element inet beside s {{ {elements} }}\n")
    turn = {"agentmon": 0, "nft -f": 0}
    with Lab() as lab:
        lab.open()
        lab.bottle(SLOT)
        lab.shell("nft", f"add table inet beside; add set inet beside s {{ {_SET} }}")

        def ours() -> float:
            turn["agentmon"] ^= 1
            wanted = rules(SLOT, SLOT, *halves[turn["agentmon"]])
            began = time.perf_counter()
            lab.run(lab.nf.apply, wanted)
            return (time.perf_counter() - began) * 1000

        def theirs() -> float:
            turn["nft -f"] ^= 1
            began = time.perf_counter()
            lab.shell("nft", "-f", str(texts[turn["nft -f"]]))
            return (time.perf_counter() - began) * 1000

        changes, endings = _changes(lab, 20 if quick else 200)
        work = {"agentmon": ours, "nft -f": theirs}
        for first in work.values():
            first()
        got = interleaved(1 if quick else 5, work)
    each = [a / b for a, b in zip(got["agentmon"], got["nft -f"], strict=True)]
    ratio = pairwise(got["agentmon"], got["nft -f"])
    return [
        Figure("nft.replace_100k.ratio", ratio, "×", "<= 0.85", spread=spread(each),
               note="two sets, the host's and the bottle's, against one by nft -f; both replace 100,000 elements"),
        against("nft.replace_100k_ms", "ms", got, "agentmon"),
        Figure("rule.live_change.library_p99_ms", quantile(changes, 0.99), "ms", "<= 2", spread=spread(changes),
               note=f"put() of {len(changes)} additions and removals, both sides; median {median(changes):.2g} ms"),
        Figure("rule.live_change.ended_p99_ms", quantile(endings, 0.99), "ms", "<= 50", spread=spread(endings),
               note="from a removal to its flows' end in both directions: put, walk, end_refused"),
    ]  # fmt: skip


def _changes(lab: Lab, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each change, and of each removal with the end of its flow."""
    slot = SLOT + 1
    kept, other = direct(f"{WEB4}/32"), direct(f"{OTHER4}/32")
    lab.bottle(slot, kept)
    lab.connect(f"am-{slot}", WEB4)

    def put(epoch: int, *allow: Direct) -> float:
        began = time.perf_counter()
        lab.nf.put(rules(slot, epoch, *allow))
        return (time.perf_counter() - began) * 1000

    def end() -> float:
        began = time.perf_counter()
        found = lab.nf.walk(slot)()
        lab.nf.end_refused(slot, found)
        return (time.perf_counter() - began) * 1000

    changes, endings = [], []
    for number in range(count):
        changes.append(lab.run(put, slot + number, kept, other))
        with lab.connect(f"am-{slot}", OTHER4):
            changes.append(lab.run(put, slot + number + 1, kept))
            endings.append(changes[-1] + lab.run(end))
    lab.run(lab.nf.delete_bottle, slot)
    return changes, endings


def _direct(half: int, number: int) -> Direct:
    return Direct(IPv4Network((0x14000000 + (half << 20) + number, 32)), "tcp", ((443, 443),))
