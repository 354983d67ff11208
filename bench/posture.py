"""How long the posture report takes on a running daemon with bottles, without and with its canary."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from bench.figure import Figure, median, spread
from bench.process import AGENTMON
from tests.support.live import World

BOTTLES = 5


def measure(tmp: Path, quick: bool) -> list[Figure]:
    with World(tmp) as world:
        world.start_daemon()
        for n in range(BOTTLES):
            job = world.run(
                "--name", f"b{n}", "--allow", "tcp://203.0.113.20:8080", "--", "sh", "-c", "echo up; sleep 100"
            )
            job.line(20)
        plain = [_took_ms(world) for _ in range(3 if quick else 10)]
        canary = [_took_ms(world, "--canary") for _ in range(1 if quick else 3)]
        world.agentmon("kill", "--all")
    note = f"{BOTTLES} bottles compared with the kernel"
    return [
        Figure("posture.wall_ms", median(plain), "ms", "<= 3000", spread=spread(plain), note=note),
        Figure("posture.canary.wall_ms", median(canary), "ms", "<= 15000", spread=spread(canary)),
    ]


def _took_ms(world: World, *options: str) -> float:
    """Exit status 2 is a report, too; a usage error would be one as well, and prints no JSON."""
    began = time.perf_counter()
    done = subprocess.run(
        [AGENTMON, "posture", "--json", *options], env=world.env, capture_output=True, timeout=60, check=False
    )
    took = (time.perf_counter() - began) * 1000
    assert done.stdout.startswith(b"{"), done.stderr
    return took
