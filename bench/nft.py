"""A bottle's allowlist of 100,000 addresses replaced by another, on both sides, beside nft(8) loading one such set.

In namespaces of its own (tests.support.nf_lab). `nft -f` is given one set in one table; agentmon programs two: the
host's for the veth, and the bottle's own.
"""

from __future__ import annotations

import time
from ipaddress import IPv4Network
from pathlib import Path

from bench.figure import Figure, against, interleaved, pairwise, spread
from netfilter.spec import Direct
from tests.support.nf_lab import Lab, rules

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
    ]  # fmt: skip


def _direct(half: int, number: int) -> Direct:
    return Direct(IPv4Network((0x14000000 + (half << 20) + number, 32)), "tcp", ((443, 443),))
