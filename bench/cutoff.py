"""Cutoff: a call spends the budget while a stream of its bottle goes on; how long until nothing more arrives.

A hundred bottles are live: eight whose streams are quick, one after the other of them cut; the others' go on slowly.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from agentmon.ledger.reader import Reader
from bench.crowd import Crowd
from bench.figure import Figure, median, quantile, spread
from bench.process import Failed
from tests.support.live import Job, World, until

PACE_MS = 10
LIVE = 8  # bottles at once that are cut one after the other, each with its stream
CROWD, QUICK_CROWD = 92, 8  # beside them
SLOW = "claude-scripted-in500-out100-chunks6000-pace1000"
BUDGET = 4000
STREAM = f"claude-scripted-in500-out100-chunks6000-pace{PACE_MS}"
SPENDER = "claude-scripted-in5000-out10"
JOB = Path(__file__).parent / "jobs/cut_stream.py"


def measure(tmp: Path, quick: bool) -> list[Figure]:
    cuts: list[dict[str, Any]] = []
    with World(tmp) as world:
        world.start_daemon()
        crowd = QUICK_CROWD if quick else CROWD
        with Crowd(world, crowd, SLOW) as beside:
            for batch in range(1 if quick else 6):
                cuts += _batch(world, [f"cut{batch}x{n}" for n in range(LIVE)])
            if (left := beside.streaming()) != crowd:
                raise Failed(f"{crowd - left} bottles of the crowd were cut as well")
    closed = [cut["latency_ms"] for cut in cuts]
    last = [cut["last_byte_ms"] for cut in cuts]
    error = [cut["error_ms"] for cut in cuts if cut["error_ms"] is not None]
    both = [max(pair) for pair in zip(closed, last, strict=True)]
    late = sum("destroyed" in cut["result"] for cut in cuts)
    told = f"{len(cuts)} cuts, {LIVE + crowd} bottles live, {LIVE} with {1000 // PACE_MS} deltas/s, the others with 1"
    return [
        Figure(
            "cutoff.p99_ms", quantile(both, 0.99), "ms", "<= 20", spread=spread(both),
            note=f"{told}; the later of: last provider byte at the client, upstream closed",
        ),
        Figure("cutoff.p50_ms", median(both), "ms", spread=spread(both)),
        Figure(
            "cutoff.closed_ms", median(closed), "ms", spread=spread(closed),
            note="commit that crossed the budget, to the last upstream connection closed (enforcement_v.latency_ns); "
            f"{late} of {len(cuts)} needed the kernel's destruction of sockets",
        ),
        Figure(
            "cutoff.last_byte_ms", median(last), "ms", spread=spread(last),
            note="begin of the ledger's transaction to the last provider byte read by the client; "
            "negative: nothing came any more",
        ),
        Figure(
            "cutoff.error_event_ms", median(error) if error else -1, "ms", spread=spread(error or [-1]),
            note=f"until the client had read the typed error event: {len(error)} of {len(cuts)} got one",
        ),
    ]  # fmt: skip


def _batch(world: World, names: list[str]) -> list[dict[str, Any]]:
    words = ("--provider", "claude", "--budget", str(BUDGET), "--ro", str(JOB.parent))
    command = ("/usr/bin/python3", "-I", str(JOB), STREAM, SPENDER)
    jobs = {name: world.run("--name", name, *words, "--", *command) for name in names}
    for job in jobs.values():
        if job.line(30) != "streaming":
            raise Failed("the job in the bottle did not stream")
    time.sleep(0.3)
    cuts = [_cut(world, name, job) for name, job in jobs.items()]
    for job in jobs.values():
        job.say("enough")
        job.end()
    return cuts


def _cut(world: World, name: str, job: Job) -> dict[str, Any]:
    """Milliseconds from the crossing settle."""
    job.say("now")
    seen = json.loads(job.line(30))
    if seen["status"] != "200" or not seen["ended"]:
        raise Failed(f"{name}: {seen}")
    with Reader(str(world.root / "var/lib/agentmon/ledger/ledger.db")) as reader:
        row = until(lambda: reader.enforcement(bottle=name))[0]
        crossing = next(u for u in reader.rows(bottle=name) if u["input"] == 5000)
    return {
        "latency_ms": row["latency_ns"] / 1e6,
        "result": row["result"],
        "last_byte_ms": (seen["last_byte_ns"] - crossing["ts_ns"]) / 1e6,
        "error_ms": (seen["error_ns"] - crossing["ts_ns"]) / 1e6 if seen["error_ns"] else None,
    }
