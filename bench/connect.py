"""What the cgroup programs cost a connect(2): one process, moved between a cgroup with them and one without."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench import ebpf_stats
from bench.figure import Figure, interleaved, median, pairwise, spread
from bench.process import Failed, end
from ebpf import cgroup, links
from ebpf.sources import Sizes
from ebpf.spec import Entry, Guard
from tests.support.bpf_lab import Bottle, Lab, entry

PREFIXES, MANY = 1000, 100_000
EXACT, BY_PREFIX, DENIED = "198.51.100.7", "203.0.113.5", "198.51.100.8"
CLOSED_PORT, OPEN_PORT = 7, 443
_CONNECT4 = 10  # BPF_CGROUP_INET4_CONNECT


def measure(_tmp: Path, quick: bool) -> list[Figure]:
    rounds, times = (10, 300) if quick else (80, 1000)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        lab.programs = lab.new_programs(sizes=Sizes())
        lab.programs.open(str(lab.parent))
        bottle, many, guarded = lab.bottle(), lab.bottle(), lab.bottle()
        bottle.apply(allow=_allow(PREFIXES))
        many.apply(allow=_allow(MANY))
        guarded.apply(allow=_allow(PREFIXES), guard=Guard.OBSERVE)
        without, empty = stack.enter_context(bare_cgroup("plain")), stack.enter_context(bare_cgroup("empty"))
        job, vouching = Connector(lab.netns, stack), Connector(lab.netns, stack)

        def connect(directory: Path, to: str, number: int) -> float:
            return job.ask(cgroup=str(directory / "cgroup.procs"), to=[to, CLOSED_PORT], errno=number, times=times)

        refused = {
            "with": partial(connect, bottle.directory, EXACT, errno.ECONNREFUSED),
            "by prefix": partial(connect, bottle.directory, BY_PREFIX, errno.ECONNREFUSED),
            "without": partial(connect, without, EXACT, errno.ECONNREFUSED),
            "by policy": partial(connect, bottle.directory, DENIED, errno.EPERM),
        }
        got = interleaved(rounds, refused)
        lab.programs.read()
        ours = {
            **{name: work for name, work in refused.items() if name != "without"},
            "exact of many": partial(connect, many.directory, EXACT, errno.ECONNREFUSED),
            "by prefix of many": partial(connect, many.directory, BY_PREFIX, errno.ECONNREFUSED),
            "vouched": partial(_vouched, vouching, guarded, times),
        }
        costs = _program_ns(lab, ours, (empty, partial(connect, empty, EXACT, errno.ECONNREFUSED)), max(3, rounds // 4))
    told = f"{rounds} × {times} connects each, over loopback, {PREFIXES} prefixes in the policy"
    return [*_times(got, told), *_programs(costs)]


def _allow(prefixes: int) -> tuple[Entry, ...]:
    """Two exact entries, a prefix that covers BY_PREFIX, and as many others at random."""
    chance = random.Random(prefixes)
    others = {
        f"{chance.randrange(11, 120)}.{chance.randrange(256)}.{chance.randrange(256)}.0/24" for _ in range(prefixes)
    }
    return (
        entry(f"{EXACT}/32", CLOSED_PORT, OPEN_PORT), entry("203.0.113.0/26", CLOSED_PORT, OPEN_PORT),
        *(entry(network, 443) for network in sorted(others)),
    )  # fmt: skip


def _vouched(job: Connector, bottle: Bottle, times: int) -> float:
    procs = str(bottle.directory / "cgroup.procs")
    return job.ask(cgroup=procs, to=[EXACT, CLOSED_PORT], errno=errno.ECONNREFUSED, times=times, vouch=True)


def _times(got: dict[str, list[float]], told: str) -> list[Figure]:
    def ratio(name: str) -> list[float]:
        return [a / b for a, b in zip(got[name], got["without"], strict=True)]

    us = {name: median(values) / 1000 for name, values in got.items()}
    exact, prefix = ratio("with"), ratio("by prefix")
    added = [a - b for a, b in zip(got["with"], got["without"], strict=True)]
    return [
        Figure(
            "connect.refused.ratio", median(exact), "×", "<= 1.02", spread=spread(exact),
            note=f"permitted by an exact entry, refused by the other side; {told}",
        ),
        Figure("connect.refused.prefix_ratio", median(prefix), "×", "<= 1.02", spread=spread(prefix)),
        Figure("connect.refused.added_ns", median(added), "ns", spread=spread(added)),
        Figure(
            "connect.refused_us", us["with"], "µs", "", {"no programs": us["without"]}, {},
            [value / 1000 for value in spread(got["with"])],
        ),
        Figure("connect.denied_us", us["by policy"], "µs", spread=[v / 1000 for v in spread(got["by policy"])],
               note="refused by the program with EPERM, its event written"),
    ]  # fmt: skip


def _programs(costs: dict[str, list[float]]) -> list[Figure]:
    labels = {
        "with": ("connect.prog_ns", "<= 300", f"exact entry, {PREFIXES} prefixes in the policy"),
        "by prefix": ("connect.prog_prefix_ns", "<= 300", f"found among {PREFIXES} prefixes"),
        "exact of many": ("connect.prog_100k_ns", "", f"exact entry, {MANY} prefixes in the policy"),
        "by prefix of many": ("connect.prog_prefix_100k_ns", "", f"found among {MANY} prefixes"),
        "by policy": ("connect.prog_denied_ns", "", "refused, its repeat counted"),
        "vouched": ("connect.prog_vouched_ns", "", "by a guarded process that vouched for the socket"),
        "attribution": ("connect.prog_origin_ns", "", "am_by_connect4 where nothing was reported"),
    }
    empty = costs["empty"]
    return [
        Figure(
            id, median(costs[name]), "ns", goal, {"empty program": median(empty)},
            {"empty program": pairwise(costs[name], empty)}, spread(costs[name]), note=note,
        )
        for name, (id, goal, note) in labels.items()
    ]  # fmt: skip


def _program_ns(
    lab: Lab, work: Mapping[str, Callable[[], float]], beside: tuple[Path, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Nanoseconds a run of am_connect4 for each of `work`, of its attribution, and of an empty program."""
    with contextlib.ExitStack() as stack:
        decides = stack.enter_context(ebpf_stats.attached(lab.pin_dir / "links/am_connect4"))
        attributes = stack.enter_context(ebpf_stats.attached(lab.pin_dir / "links/am_by_connect4"))
        nothing = stack.enter_context(ebpf_stats.empty(beside[0], links.SOCK_ADDR, _CONNECT4))
        stack.enter_context(ebpf_stats.counting())
        runs = {name: partial(ebpf_stats.ns_a_run, decides, one) for name, one in work.items()}
        runs["attribution"] = partial(ebpf_stats.ns_a_run, attributes, work["with"])
        runs["empty"] = partial(ebpf_stats.ns_a_run, nothing, beside[1])
        return interleaved(rounds, runs)


class Connector:
    def __init__(self, netns: str, stack: contextlib.ExitStack) -> None:
        argv = [sys.executable, "-I", str(Path(__file__).parent / "jobs/connector.py"), netns]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(end, self._process)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise Failed("the connecting process did not start")

    def ask(self, **asked: Any) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if answer["wrong"]:
            raise Failed(f"{asked}: {answer['wrong']} connects ended otherwise")
        return float(answer["ns"])


@contextlib.contextmanager
def bare_cgroup(name: str) -> Iterator[Path]:
    """As deep as a bottle's, with no programs."""
    parent = cgroup.find_v2() / f"ambench-{os.getpid()}-{name}"
    leaf = parent / "leaf"
    leaf.mkdir(parents=True)
    try:
        yield leaf
    finally:
        leaf.rmdir()
        parent.rmdir()
