"""What the guard adds to a connect, beside no guard: processes in a namespace of their own, rounds interleaved.

The address is on the namespace's loopback device and refuses; the name is in its own /etc/hosts, so that no server's
time is measured. By name is getaddrinfo and connect, as clients do.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.figure import Figure, interleaved, median, spread
from bench.process import ROOT, Failed, end

ADDRESS, NAME, PORT = "198.51.100.7", "api.example.com", 5432
CASES = ("none", "guard", "guard-10000")
_SHELL = (
    'mount --bind "$0" /etc/hosts && ip link set lo up && ip addr add 198.51.100.7/32 dev lo && '
    'export PYTHONPATH="$1" PYTHONPYCACHEPREFIX="$2" PYTHONDONTWRITEBYTECODE= && shift 2 && exec "$@"'
)


def measure(tmp: Path, quick: bool) -> list[Figure]:
    rounds, times, starts = (8, 300, 5) if quick else (60, 1000, 25)
    hosts = tmp / "hosts"
    hosts.write_text(f"{ADDRESS} {NAME}\n")
    installs = [_install_ms(tmp, hosts) for _ in range(starts + 1)][1:]  # the first one writes the bytecode
    with contextlib.ExitStack() as stack:
        processes = {case: _Job(case, tmp, hosts, stack) for case in CASES}
        work = {
            f"{way} {case}": partial(process.ask, way, times)
            for way in ("address", "name")
            for case, process in processes.items()
        }
        for warm_up in work.values():
            warm_up()
        got = interleaved(rounds, work)
    return [*_figures(got), _start(installs)]


def _figures(got: dict[str, list[float]]) -> list[Figure]:
    figures = []
    names = {
        ("address", "guard"): ("guard.connect_us", "<= 5"),
        ("name", "guard"): ("guard.connect_name_us", "<= 15"),
        ("address", "guard-10000"): ("guard.connect_10k_us", "<= 5"),
        ("name", "guard-10000"): ("guard.connect_name_10k_us", "<= 15"),
    }
    for (way, case), (id, goal) in names.items():
        added = [(a - b) / 1000 for a, b in zip(got[f"{way} {case}"], got[f"{way} none"], strict=True)]
        without = median(got[f"{way} none"]) / 1000
        rules = "10,002 rules" if case == "guard-10000" else "2 rules"
        note = f"added, by {way}, {rules}; the connect alone takes {without:.1f} µs"
        figures.append(Figure(id, median(added), "µs", goal, spread=spread(added), note=note))
    return figures


def _start(installs: list[tuple[float, float]]) -> Figure:
    note = "import agentmon.guard and install, in a fresh interpreter; on a busy machine the CPU time says more"
    wall = [took for took, _ in installs]
    cpu = {"CPU time": median([took for _, took in installs])}
    return Figure("guard.install_ms", median(wall), "ms", "<= 15", cpu, spread=spread(wall), note=note)


def _install_ms(tmp: Path, hosts: Path) -> tuple[float, float]:
    """Wall and CPU time."""
    with contextlib.ExitStack() as stack:
        job = _Job("guard", tmp, hosts, stack)
        return job.install_ns / 1e6, job.cpu_ns / 1e6


class _Job:
    """One measured process, in its own network and mount namespace."""

    def __init__(self, case: str, tmp: Path, hosts: Path, stack: contextlib.ExitStack) -> None:
        argv = [sys.executable, str(ROOT / "bench/jobs/guarded.py"), case, ADDRESS, NAME, str(PORT)]
        inside = ["unshare", "-n", "-m", "sh", "-c", _SHELL, str(hosts), str(ROOT), str(tmp / "pyc"), *argv]
        self._process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(end, self._process)
        took = self._line()
        self.install_ns, self.cpu_ns = took["install_ns"], took["cpu_ns"]

    def ask(self, way: str, times: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{way} {times}\n")
        self._process.stdin.flush()
        return float(self._line()["ns"])

    def _line(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed("the connecting process ended")
        answer: dict[str, int] = json.loads(line)
        return answer
