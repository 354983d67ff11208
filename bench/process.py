"""Processes as they are measured: wall time from spawn to reaped, CPU and memory from /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AGENTMON = str(ROOT / ".venv/bin/agentmon")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Failed(RuntimeError):
    """What was to be measured did not work; its number would mean nothing."""


def wall_ms(argv: Sequence[str], env: Mapping[str, str] | None = None) -> float:
    """Milliseconds from before the spawn until it is reaped, its output thrown away. :raises Failed: status not 0."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        files = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1)]
        began = time.perf_counter_ns()
        pid = os.posix_spawnp(argv[0], list(argv), dict(env or os.environ), file_actions=files)
        _, status = os.waitpid(pid, 0)
        took = time.perf_counter_ns() - began
    finally:
        os.close(null)
    if status != 0:
        raise Failed(f"{' '.join(argv)}: exit {os.waitstatus_to_exitcode(status)}")
    return took / 1e6


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += tree(int(child))
    return found


def cpu_ms(pid: int) -> float:
    """CPU time so far of all its threads, in milliseconds, nanosecond resolution."""
    total = 0
    for entry in Path(f"/proc/{pid}/task").iterdir():
        total += int((entry / "schedstat").read_text().split()[0])
    return total / 1e6


def cpu_tree_ms(pid: int) -> float:
    """As cpu_ms, by clock ticks, with reaped children: for trees that come and go."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) * _TICK_S * 1000


def memory_mb(pid: int, key: str = "Rss") -> float:
    """Rss, Pss or Anonymous of one process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str], seconds: float = 10.0) -> None:
    """SIGTERM, then SIGKILL; its pipes are closed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def run(*argv: str, stdin: str = "") -> str:
    """Its stdout. :raises Failed: with what it said."""
    done = subprocess.run(argv, input=stdin, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout
