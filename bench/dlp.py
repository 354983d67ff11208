"""Searching what leaves for secrets: a conversation of 200 KB without one, whole and grown by a turn; in this process.

`…_cpu_ms` is processor time, which a busy machine changes less.
Beside it: the same rules one after the other with RE2, on the same bytes, once, without any decoding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from agentmon.dlp import scanner
from agentmon.proxy.clean import Clean
from agentmon.proxy.search import search
from bench.figure import Figure, against, interleaved, median, pairwise, spread

ROOT = Path(__file__).resolve().parents[1]
_BYTES = 200_000


def conversation(size: int, more: str = "") -> bytes:
    """Turns that carry this repository's sources, as a coding agent's do."""
    text = "".join(f.read_text() for f in sorted((ROOT / "agentmon/ledger").glob("*.py")))
    turns = [text[at : at + 4000] for at in range(0, int(size / 1.06), 4000)]
    return json.dumps(
        {"messages": [{"role": "user", "content": turn} for turn in turns] + ([more] if more else [])}
    ).encode()


def measure(tmp: Path, quick: bool) -> list[Figure]:
    detector = scanner.detector(keep=tmp)
    known = {f"credential {n}": f"sk-made-up-{n:04d}-{n * 7919:08x}".encode() for n in range(10)}
    searcher = scanner.Scanner(detector, known, b"key")
    body, small = conversation(_BYTES), conversation(2_000)
    turns = iter(range(1_000_000))
    warm = Clean()
    assert not search(searcher, warm, "run", "host", body, "", False).findings
    assert 190_000 < len(body) < 215_000 and len(small) < 5_000

    cpu: list[float] = []  # of every search, in the order of the rounds
    whole_cpu: list[float] = []

    def whole() -> float:
        took = search_whole()
        whole_cpu.append(cpu[-1])
        return took

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            began, used = time.perf_counter(), time.thread_time()
            found = work()
            took = (time.perf_counter() - began) * 1e3
            cpu.append((time.thread_time() - used) * 1e3)
            assert not getattr(found, "findings", ()), "it should have none"
            return took

        return once

    def grown() -> object:
        return search(searcher, warm, "run", "host", conversation_grown[next(turns) % 50], "", False)

    conversation_grown = [conversation(_BYTES, f"turn {n}: " + "and so it went on. " * 100) for n in range(50)]
    rules = detector.rules.rules
    search_whole = timed(lambda: search(searcher, Clean(), "run", "host", body, "", False))
    ways = {
        "whole": whole,
        "grown": timed(grown),
        "2 KB": timed(lambda: search(searcher, Clean(), "run", "host", small, "", False)),
        "re2 by rule": timed(lambda: [rule.pattern.search(body) for rule in rules] and None),
    }
    for way in ways.values():
        way()
    got = interleaved(11 if quick else 41, ways)
    figures = [against("dlp.scan_200k_ms", "ms", {w: got[w] for w in ("whole", "re2 by rule")}, "whole", "<= 5")]
    figures.append(Figure("dlp.scan_200k_cpu_ms", median(whole_cpu), "ms", "", spread=spread(whole_cpu)))
    for id, way in (("dlp.scan_grown_200k_ms", "grown"), ("dlp.scan_2k_ms", "2 KB")):
        figures.append(
            Figure(id, median(got[way]), "ms", "", {"whole": median(got["whole"])},
                   {"whole": pairwise(got[way], got["whole"])}, spread(got[way]))
        )  # fmt: skip
    return figures
