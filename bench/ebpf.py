"""What the other programs cost (setsockopt; fork, exec and exit of every process), loading them, and their memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import ebpf_stats
from bench.connect import MANY, bare_cgroup
from bench.figure import Figure, interleaved, median, pairwise, spread
from bench.process import Failed, end
from ebpf import abi, links, syscall
from ebpf.sources import Sizes
from ebpf.spec import Guard
from tests.support.bpf_lab import Lab, entry

_SETSOCKOPT = 22  # BPF_CGROUP_SETSOCKOPT
_TRACEPOINTS = tuple(h for h in links.HOOKS if h.tracepoint)


def measure(_tmp: Path, quick: bool) -> list[Figure]:
    rounds = 5 if quick else 40
    figures = _loading(3 if quick else 15)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        lab.programs = lab.new_programs(sizes=Sizes())
        lab.programs.open(str(lab.parent))
        if "vouch" not in lab.programs.features():
            raise Failed(f"this kernel does not take the programs: {lab.programs.left_out}")
        figures += _memory(lab)
        bottle = lab.bottle()
        bottle.apply(guard=Guard.OBSERVE)
        plain, empty = (stack.enter_context(bare_cgroup(name)) for name in ("plain", "empty"))
        job = Caller(stack)
        figures += _setsockopt(job, {"none": plain, "empty": empty, "ours": bottle.directory}, 60 if quick else 500)
        figures += _spawning(lab, partial(job.ask, plain, "spawn", 20 if quick else 50), rounds)
    return figures


def _setsockopt(job: Caller, where: dict[str, Path], rounds: int) -> list[Figure]:
    times = 2_000  # short rounds: what disturbs them then disturbs all three alike
    with ebpf_stats.empty(where["empty"], links.SOCKOPT, _SETSOCKOPT):
        got = interleaved(rounds, {n: partial(job.ask, d, "setsockopt", times) for n, d in where.items()})
    ours, empty = ([a - b for a, b in zip(got[n], got["none"], strict=True)] for n in ("ours", "empty"))
    note = f"on top of {median(got['none']):.0f} ns of a Python setsockopt of TCP_NODELAY; {rounds} × {times} calls"
    return [
        Figure(
            "setsockopt.added_ns", median(ours), "ns", "", {"empty program": median(empty)}, {}, spread(ours), note=note
        ),
        Figure(
            "setsockopt.added.ratio",
            median(ours) / median(empty),
            "×",
            "<= 1.3",
            note="added by ours / by an empty program",
        ),
        Figure(
            "setsockopt.ratio",
            pairwise(got["ours"], got["empty"]),
            "×",
            "<= 1.3",
            note="the whole call, beside an empty program",
        ),
    ]


def _spawning(lab: Lab, spawn: Callable[[], float], rounds: int) -> list[Figure]:
    """The tracepoints see every process of the host, so the same process is measured with and without them."""
    with contextlib.ExitStack() as stack:
        paths = {hook: lab.pin_dir / "links" / hook.function for hook in _TRACEPOINTS}
        programs = {hook: stack.enter_context(ebpf_stats.attached(path)) for hook, path in paths.items()}
        for path in paths.values():
            links.detach(str(path))

        def with_programs(work: Callable[[], float]) -> float:
            with contextlib.ExitStack() as held:
                for hook, fd in programs.items():
                    held.callback(os.close, _tracepoint(hook, fd))
                return work()

        def settled() -> float:
            spawn()  # what taking tracepoints off leaves to the kernel's workers is done by then
            return spawn()

        got = interleaved(rounds, {"with": partial(with_programs, settled), "without": settled})
        with ebpf_stats.counting():
            ns = {
                hook.function: [
                    with_programs(partial(ebpf_stats.ns_a_run, fd, spawn)) for _ in range(max(3, rounds // 4))
                ]
                for hook, fd in programs.items()
            }
    us = {name: median(values) / 1000 for name, values in got.items()}
    ratio = [a / b for a, b in zip(got["with"], got["without"], strict=True)]
    told = ", ".join(f"{name} {median(values):.0f} ns" for name, values in ns.items())
    return [
        Figure(
            "process.spawn.ratio", median(ratio), "×", spread=spread(ratio), note="posix_spawn and reaping of /bin/true"
        ),
        Figure("process.spawn_us", us["with"], "µs", "", {"no programs": us["without"]}),
        Figure("process.prog_ns", sum(median(v) for v in ns.values()), "ns", note=f"of an unguarded process: {told}"),
    ]


def _tracepoint(hook: links.Hook, fd: int) -> int:
    name = hook.tracepoint.encode() + b"\0"
    attr = struct.pack("=QI", syscall.address(name), fd)
    return syscall.call(syscall.RAW_TRACEPOINT_OPEN, attr, f"attaching {hook.function}")


def _loading(rounds: int) -> list[Figure]:
    """Compile, verify, attach, pin in the child: everything that open() does on a host without pins."""
    wall, cpu, adopted = [], [], []
    for _ in range(rounds):
        with Lab() as lab:
            programs = lab.new_programs(sizes=Sizes())
            before = _children_cpu_s()
            began = time.perf_counter()
            programs.open(str(lab.parent))
            wall.append((time.perf_counter() - began) * 1000)
            cpu.append((_children_cpu_s() - before) * 1000)
            programs.release()
            began = time.perf_counter()
            programs.open(str(lab.parent))
            adopted.append((time.perf_counter() - began) * 1000)
            programs.release()
    return [
        Figure(
            "ebpf.load_ms",
            median(wall),
            "ms",
            "<= 1000",
            spread=spread(wall),
            note="compile, verify, attach and pin, in a child",
        ),
        Figure("ebpf.load_cpu_ms", median(cpu), "ms", spread=spread(cpu), note="CPU time of that child"),
        Figure(
            "ebpf.adopt_ms",
            median(adopted),
            "ms",
            spread=spread(adopted),
            note="a restart: the programs are in force already",
        ),
    ]


def _memory(lab: Lab) -> list[Figure]:
    def now() -> dict[str, int]:
        return {name: ebpf_stats.map_bytes(lab.programs.table(name).fd) for name in abi.MAPS}

    before = now()
    bottle = lab.bottle()
    bottle.apply(allow=tuple(entry(f"{11 + n // 65536}.{n // 256 % 256}.{n % 256}.7/32", 443) for n in range(MANY)))
    exact = sum(now().values()) - sum(before.values())
    bottle.apply(allow=tuple(entry(f"{11 + n // 65536}.{n // 256 % 256}.{n % 256}.0/24", 443) for n in range(MANY)))
    prefix = sum(now().values()) - sum(before.values())
    lab.programs.delete_bottle(bottle.slot)
    most = sorted(before.items(), key=lambda item: -item[1])[:4]
    told = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in most)
    return [
        Figure(
            "ebpf.maps_mb", sum(before.values()) / 1e6, "MB", note=f"accounted by the kernel, no bottle yet; {told}"
        ),
        Figure("ebpf.maps_100k_exact_mb", exact / 1e6, "MB", note=f"more, for {MANY} exact entries"),
        Figure("ebpf.maps_100k_prefix_mb", prefix / 1e6, "MB", note=f"more, for {MANY} prefixes"),
    ]


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Caller:
    """jobs/sysloop.py."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        argv = [sys.executable, "-I", str(Path(__file__).parent / "jobs/sysloop.py")]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(end, self._process)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise Failed("the calling process did not start")

    def ask(self, directory: Path, what: str, times: int) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"cgroup": str(directory / "cgroup.procs"), "what": what, "times": times}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())["ns"])
