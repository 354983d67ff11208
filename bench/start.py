"""Bottle start: `agentmon run -- /bin/true` against a bare process, a ready namespace and bubblewrap."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from agentmon import wire
from agentmon.blocking import BlockingChannel
from bench.figure import Figure, against, interleaved, median, spread
from bench.process import AGENTMON, cpu_ms, memory_mb, run, wall_ms
from tests.support.live import World

GOAL_WALL_MS, GOAL_DAEMON_MS = "<= 100", "<= 25"
_IDLE_S = 5.0


def measure(tmp: Path, quick: bool) -> list[Figure]:
    netns = f"ambench{os.getpid()}"
    run("ip", "netns", "add", netns)
    try:
        with World(tmp) as world:
            began = time.perf_counter()
            daemon = world.start_daemon()
            ready_ms = (time.perf_counter() - began) * 1000
            figures = _starts(world, netns, 8 if quick else 30, daemon.pid)
            return figures + _daemon(daemon, ready_ms, 2.0 if quick else _IDLE_S)
    finally:
        run("ip", "netns", "delete", netns)


def _starts(world: World, netns: str, rounds: int, daemon: int) -> list[Figure]:
    bottle = (AGENTMON, "run", "--", "/bin/true")
    wall_ms(bottle, world.env)  # the first one finds cold caches
    got = interleaved(
        rounds,
        {
            "agentmon": lambda: wall_ms(bottle, world.env),
            "bare": lambda: wall_ms(["/bin/true"]),
            "ip netns exec": lambda: wall_ms(["ip", "netns", "exec", netns, "/bin/true"]),
            "bwrap": lambda: wall_ms(["bwrap", "--unshare-all", "--dev-bind", "/", "/", "/bin/true"]),
        },
    )
    parts: list[dict[str, float]] = [_by_hand(world, daemon) for _ in range(rounds)]
    startup = [wall_ms([AGENTMON, "--version"], world.env) for _ in range(rounds)]

    def part(id: str, key: str, goal: str = "", note: str = "") -> Figure:
        values = [p[key] for p in parts]
        return Figure(f"bottle.start.{id}", median(values), "ms", goal, spread=spread(values), note=note)

    daemon_ms = [p["ready"] + p["teardown"] for p in parts]
    return [
        against("bottle.start.wall_ms", "ms", got, "agentmon", GOAL_WALL_MS, " ".join(bottle)),
        Figure(
            "bottle.start.daemon_ms", median(daemon_ms), "ms", GOAL_DAEMON_MS, spread=spread(daemon_ms),
            note="request to open bottle, and end of the job to reply, waits for launcher and probe included",
        ),
        part("ready_ms", "ready", note="request to open bottle: kernel state, services, launch, probe"),
        part("job_ms", "job", note="the bottle is open: thaw, exec, /bin/true itself, its exit reported"),
        part("teardown_ms", "teardown", note="the job's output has ended, until the reply: all of the bottle is gone"),
        part("daemon_cpu_ms", "cpu", note="CPU time of the daemon's own threads"),
        Figure(
            "bottle.start.client_ms", median(startup), "ms", spread=spread(startup),
            command=f"{AGENTMON} --version", note="interpreter and imports of the command line",
        ),
    ]  # fmt: skip


def _by_hand(world: World, daemon: int) -> dict[str, float]:
    """One start spoken on the control socket, without the command line: milliseconds of its parts."""
    args: dict[str, Any] = {
        "argv": ["/bin/true"], "env": {"PATH": "/usr/bin:/bin"}, "cwd": "/", "name": "", "allow": [], "budgets": [],
        "observe": False, "root": False, "ro": [], "rw": [], "tty": False, "rows": 24, "cols": 80,
    }  # fmt: skip
    args["name"] = f"bench-{os.urandom(4).hex()}"
    cpu = cpu_ms(daemon)
    channel = BlockingChannel.connect(str(world.run_dir / "control.sock"))
    began = time.perf_counter()
    channel.send(wire.Request(channel.next_id(), "run", args))
    while "slot" not in (getattr(message := channel.recv(), "value", None) or {}):
        assert not getattr(message, "error", None), message
    ready = time.perf_counter()
    _until_end_of_output(channel.fds)
    ended = time.perf_counter()
    while not isinstance(channel.recv(), wire.Reply):
        pass
    gone = time.perf_counter()
    channel.close()
    return {
        "ready": (ready - began) * 1000, "job": (ended - ready) * 1000, "teardown": (gone - ended) * 1000,
        "cpu": cpu_ms(daemon) - cpu,
    }  # fmt: skip


def _until_end_of_output(fds: list[int]) -> None:
    """The job's stdout is closed by its last process."""
    os.close(fds[0])
    for fd in fds[1:]:
        while os.read(fd, 4096):
            pass
        os.close(fd)
    fds.clear()


def _daemon(daemon: subprocess.Popen[str], ready_ms: float, idle_s: float) -> list[Figure]:
    time.sleep(1.0)  # what the last bottle left to do is done
    before = cpu_ms(daemon.pid)
    began = time.perf_counter()
    time.sleep(idle_s)
    share = (cpu_ms(daemon.pid) - before) / ((time.perf_counter() - began) * 1000) * 100
    return [
        Figure(
            "daemon.ready_ms", ready_ms, "ms", "<= 1000",
            note="spawn to its `ready` line: services and BPF programs from nothing; polled every 20 ms",
        ),
        Figure(
            "daemon.rss_mb", memory_mb(daemon.pid), "MB", "<= 120",
            note=f"the daemon process; unique {memory_mb(daemon.pid, 'Private_Dirty'):.0f} MB",
        ),
        Figure("daemon.idle_cpu_pct", share, "%", "<= 0.2", note=f"over {idle_s:.0f} s, no bottle"),
    ]  # fmt: skip
