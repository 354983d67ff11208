"""A running bottle's names and rules: DNS answers that open the kernel first, and `allow`/`deny` while it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentmon import wire
from agentmon.blocking import BlockingChannel
from bench.figure import Figure, interleaved, median, quantile, spread
from bench.process import AGENTMON, Failed, cpu_ms, end, wall_ms
from tests.internet import world as internet
from tests.support.live import Job, World

ASKER = Path(__file__).parent / "jobs/asker.py"
NAMES = "*.wild.example"
TO = (internet.OPENAI[0], 8080)  # no name of the manifest resolves to it
RULE = f"tcp://{TO[0]}:{TO[1]}"
WINDOW = 16
RACE = f"*.{internet.RACE}"
_MANIFEST = f"""
allow: ['{NAMES}:8080', 'direct.allowed.example:8080', '{RACE}:{internet.ECHO_PORT}']
limits: {{queries_per_s: 1000000, name_bytes_per_min: 1000000, addresses: 100000}}
"""


def measure(tmp: Path, quick: bool) -> list[Figure]:
    with World(tmp) as world:
        manifest = world.root / "etc/agentmon/bottles/live.yml"  # elsewhere a manifest may not raise a limit
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(_MANIFEST)
        world.start_daemon()
        command = ("/usr/bin/python3", "-I", str(ASKER))
        job = world.run("--name", "live", "--policy", str(manifest), "--ro", str(ASKER.parent), "--", *command)
        if job.line(30) != "ready":
            raise Failed("the job in the bottle did not start")
        upstream = Process([sys.executable, "-I", str(ASKER), internet.DNS[0]])
        try:
            changes = 15 if quick else 100
            fresh = _changes(world, job, changes)
            names = _dns(world, job, upstream.ask, quick)
            lost = _race(job, 500 if quick else 10_000)
            figures = [*names, lost, *_rules(fresh, _changes(world, job, changes // 4)), _command(world)]
        finally:
            upstream.end()
        job.end()
    return figures


def _ask(job: Job, **asked: Any) -> Any:
    job.say(json.dumps(asked))
    return json.loads(job.line(60))


def _dns(world: World, job: Job, upstream: Callable[..., Any], quick: bool) -> list[Figure]:
    count, rounds = (50, 3) if quick else (200, 5)
    ours: list[float] = []
    plain: list[float] = []
    for _ in range(rounds):
        ours += _ask(job, do="miss", names=NAMES, count=count)
        plain += upstream(do="miss", names=NAMES, count=count)
    resolver = world.pid_of("resolver")
    cpu: list[float] = []

    def cached() -> float:
        before = cpu_ms(resolver)
        rate = float(_ask(job, do="cached", name="direct.allowed.example", seconds=1.0, window=WINDOW))
        cpu.append(rate / (cpu_ms(resolver) - before) * 1000)
        return rate

    def direct() -> float:
        return float(upstream(do="cached", name="direct.allowed.example", seconds=1.0, window=WINDOW))

    rates = interleaved(rounds, {"ours": cached, "upstream": direct})
    told = f"{len(ours)} names never asked before, one after another; opened in nft and BPF before the answer"
    beside = {"upstream alone": quantile(plain, 0.99)}
    return [
        Figure("dns.p99_ms", quantile(ours, 0.99), "ms", "<= 3", beside, {}, spread(ours), note=told),
        Figure("dns.p50_ms", median(ours), "ms", "<= 1", {"upstream alone": median(plain)}, {}, spread(ours)),
        Figure("dns.cached.qps", median(rates["ours"]), "1/s", ">= 5000",
               {"stand-in upstream": median(rates["upstream"])}, {}, spread(rates["ours"]),
               note=f"one name, {WINDOW} questions under way, asked from the bottle"),
        Figure("dns.cached.qps_a_core", median(cpu), "1/s", ">= 5000", spread=spread(cpu),
               note="answers by CPU second of the resolver"),
    ]  # fmt: skip


def _race(job: Job, count: int) -> Figure:
    failed: list[int] = []
    for first in range(0, count, 500):
        failed += _ask(job, do="race", names=RACE, port=internet.ECHO_PORT, first=first, count=min(500, count - first))
    return Figure(
        "dns.race.lost",
        float(len(failed)),
        "",
        "<= 0",
        note=f"of {count} connects, each to an address of its own right behind the answer that named it",
    )


def _changes(world: World, job: Job, pairs: int) -> dict[str, list[float]]:
    """Request to reply on the control socket; at the reply the change is in force: the bottle proves it each time."""
    channel = BlockingChannel.connect(str(world.run_dir / "control.sock"), 20)
    took: dict[str, list[float]] = {"allow": [], "deny": []}
    for number in range(2 * pairs):
        verb = ("allow", "deny")[number % 2]
        began = time.perf_counter()
        reply = channel.call(wire.Request(channel.next_id(), verb, {"bottle": "live", "rule": RULE}))
        took[verb].append((time.perf_counter() - began) * 1000)
        if reply.error:
            raise Failed(f"{verb} {RULE}: {reply.error}")
        works = _ask(job, do="connect", to=TO) == 0
        if works != (verb == "allow"):
            raise Failed(f"after {verb} {RULE} was answered, a connect {'worked' if works else 'was refused'}")
    channel.close()
    return took


def _rules(fresh: dict[str, list[float]], later: dict[str, list[float]]) -> list[Figure]:
    every, learned = fresh["allow"] + fresh["deny"], later["allow"] + later["deny"]
    return [
        Figure("rule.live_change.p99_ms", quantile(every, 0.99), "ms", "<= 2", spread=spread(every),
               note=f"{len(every)} changes, control socket's request to reply; the bottle tried each at once"),
        Figure("rule.live_change.allow_ms", median(fresh["allow"]), "ms", spread=spread(fresh["allow"])),
        Figure("rule.live_change.deny_ms", median(fresh["deny"]), "ms", spread=spread(fresh["deny"])),
        Figure("rule.live_change.learned_ms", median(learned), "ms", spread=spread(learned),
               note="after the bottle has asked for all the names of dns.p99_ms"),
    ]  # fmt: skip


def _command(world: World) -> Figure:
    took = [wall_ms([AGENTMON, "allow", "live", RULE], world.env) for _ in range(8)]
    return Figure(
        "rule.live_change.command_ms", median(took), "ms", spread=spread(took), command="agentmon allow BOTTLE RULE",
        note="the whole of `agentmon allow`, its start-up included",
    )  # fmt: skip


class Process:
    """The asker on the host, for what the upstream server does by itself."""

    def __init__(self, argv: list[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def ask(self, **asked: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        end(self._process)
