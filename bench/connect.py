"""What the cgroup programs cost a connect(2): one process, moved between a cgroup with them and one without."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.figure import Figure, interleaved, median, spread
from bench.process import Failed, end
from ebpf import cgroup, links, syscall
from ebpf.sources import Sizes
from tests.support.bpf_lab import Lab, entry

PREFIXES = 1000
EXACT, BY_PREFIX, DENIED = "198.51.100.7", "203.0.113.5", "198.51.100.8"
CLOSED_PORT, OPEN_PORT = 7, 443
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_PROG_GET_FD_BY_ID = 13


def measure(_tmp: Path, quick: bool) -> list[Figure]:
    rounds, times = (10, 300) if quick else (80, 1000)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        lab.programs = lab.new_programs(sizes=Sizes())
        lab.programs.open(str(lab.parent))
        bottle = lab.bottle()
        bottle.apply(
            allow=(
                entry(f"{EXACT}/32", CLOSED_PORT, OPEN_PORT), entry("203.0.113.0/26", CLOSED_PORT, OPEN_PORT),
                *(entry(f"10.{n >> 8}.{n & 255}.0/24", 443) for n in range(PREFIXES)),
            )
        )  # fmt: skip
        without = stack.enter_context(_cgroup())
        job = Connector(lab.netns, stack)

        def connect(directory: Path, to: str, port: int, number: int) -> float:
            return job.ask(cgroup=str(directory / "cgroup.procs"), to=[to, port], errno=number, times=times)

        refused = {
            "with": partial(connect, bottle.directory, EXACT, CLOSED_PORT, errno.ECONNREFUSED),
            "by prefix": partial(connect, bottle.directory, BY_PREFIX, CLOSED_PORT, errno.ECONNREFUSED),
            "without": partial(connect, without, EXACT, CLOSED_PORT, errno.ECONNREFUSED),
            "by policy": partial(connect, bottle.directory, DENIED, CLOSED_PORT, errno.EPERM),
        }
        got = interleaved(rounds, refused)
        lab.programs.read()
        costs = _program_ns(lab, {name: work for name, work in refused.items() if name != "without"}, rounds // 4)
    return _figures(got, costs, f"{rounds} × {times} connects each, over loopback, {PREFIXES} prefixes in the policy")


def _figures(got: dict[str, list[float]], costs: dict[str, list[float]], told: str) -> list[Figure]:
    def ratio(name: str) -> list[float]:
        return [a / b for a, b in zip(got[name], got["without"], strict=True)]

    us = {name: median(values) / 1000 for name, values in got.items()}
    exact, prefix = ratio("with"), ratio("by prefix")
    figures = [
        Figure(
            "connect.refused.ratio", median(exact), "×", "<= 1.02", spread=spread(exact),
            note=f"permitted by an exact entry, refused by the other side; {told}",
        ),
        Figure("connect.refused.prefix_ratio", median(prefix), "×", "<= 1.02", spread=spread(prefix)),
        Figure(
            "connect.refused_us", us["with"], "µs", "", {"no programs": us["without"]}, {},
            [value / 1000 for value in spread(got["with"])],
        ),
        Figure("connect.denied_us", us["by policy"], "µs", spread=[v / 1000 for v in spread(got["by policy"])],
               note="refused by the program with EPERM, its event written"),
    ]  # fmt: skip
    labels = {"with": ("connect.prog_ns", "<= 300"), "by prefix": ("connect.prog_prefix_ns", "<= 300"),
              "by policy": ("connect.prog_denied_ns", "")}  # fmt: skip
    for name, (id, goal) in labels.items():
        note = "am_connect4 by the kernel's own count, which costs some 20–40 ns of it"
        figures.append(Figure(id, median(costs[name]), "ns", goal, spread=spread(costs[name]), note=note))
    return figures


def _program_ns(lab: Lab, work: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Nanoseconds a run of am_connect4, by kernel.bpf_stats_enabled, in rounds of their own."""
    path = next(lab.pin_dir.rglob("am_connect4"))
    found = links.pinned(str(path))
    assert found is not None
    fd = syscall.call(_PROG_GET_FD_BY_ID, struct.pack("=III", found.prog_id, 0, 0), "opening am_connect4")
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:

        def one(run: Any) -> float:
            ns, count = _stats(fd)
            run()
            after_ns, after_count = _stats(fd)
            return (after_ns - ns) / (after_count - count)

        return interleaved(max(3, rounds), {name: partial(one, run) for name, run in work.items()})
    finally:
        _STATS.write_text(before)
        os.close(fd)


def _stats(fd: int) -> tuple[int, int]:
    """(run_time_ns, run_cnt) of struct bpf_prog_info."""
    return struct.unpack_from("=QQ", syscall.obj_info(fd, 208, "reading a program"), 192)


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
def _cgroup() -> Iterator[Path]:
    """As deep as a bottle's, with no programs."""
    parent = cgroup.find_v2() / f"ambench-{os.getpid()}"
    leaf = parent / "plain"
    leaf.mkdir(parents=True)
    try:
        yield leaf
    finally:
        leaf.rmdir()
        parent.rmdir()
