"""CPU of the dashboard with 300 bottles that all change, and with none: the real process in a pty of 140×40.

The control socket is answered by a process of this benchmark: 300 jobs on two cores would measure themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import pty
import select
import socket
import struct
import subprocess
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

from agentmon import wire
from agentmon.blocking import BlockingChannel
from bench.figure import Figure
from bench.process import AGENTMON, cpu_ms, end

BOTTLES, SETTLE_S = 300, 6.0


def measure(tmp: Path, quick: bool) -> list[Figure]:
    seconds = 10.0 if quick else 30.0
    busy, idle = (_share(tmp / f"n{n}", n, seconds) for n in (BOTTLES, 0))
    note = f"{BOTTLES} bottles whose usage changes with every look, 10 refusals a second; one core is 100"
    return [
        Figure("top.cpu_300_pct", busy, "%", "<= 5", note=note),
        Figure("top.idle_pct", idle, "%", "<= 1", note="no bottle"),
    ]


def _share(root: Path, bottles: int, seconds: float) -> float:
    """Per cent of one core over `seconds`, after it has settled."""
    run = root / "run/agentmon"
    run.mkdir(parents=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(run / "control.sock"))
    server.listen()
    daemon = multiprocessing.Process(target=_serve, args=(server, bottles), daemon=True)
    daemon.start()
    server.close()
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("4H", 40, 140, 0, 0))
    env = {**os.environ, "AGENTMON_ROOT": str(root), "TERM": "xterm-256color"}
    top = subprocess.Popen(
        [AGENTMON, "top"], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    )
    os.close(theirs)
    try:
        drawn = _drain(ours, SETTLE_S)
        wanted = b"b000" if bottles else b"this host"
        assert top.poll() is None and wanted in drawn, "the dashboard did not draw"
        began, before = time.monotonic(), cpu_ms(top.pid)
        _drain(ours, seconds)
        return (cpu_ms(top.pid) - before) / (time.monotonic() - began) / 10
    finally:
        end(top)
        os.close(ours)
        daemon.kill()
        daemon.join()


def _drain(fd: int, seconds: float) -> bytes:
    """A terminal reads what is drawn."""
    stop, drawn = time.monotonic() + seconds, b""
    while (left := stop - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            drawn += os.read(fd, 1 << 16)
    return drawn


def _serve(server: socket.socket, bottles: int) -> None:
    import threading

    while True:
        sock, _ = server.accept()
        threading.Thread(target=_answer, args=(BlockingChannel(sock), bottles), daemon=True).start()


def _answer(channel: BlockingChannel, bottles: int) -> None:
    try:
        request: Any = channel.recv()
        if request.op == "events":
            while True:
                channel.send(wire.Item(request.id, _event(bottles)))
                time.sleep(0.1 if bottles else 5.0)
        rows = [_row(n) for n in range(bottles)] if request.op == "ps" else []
        channel.send(wire.Reply(request.id, rows))
    except (OSError, wire.WireError):
        pass  # the dashboard has gone


def _row(n: int) -> dict[str, Any]:
    used = int(time.time() * (n + 1)) % 900_000
    name = f"b{n:03}"
    budget = {"scope": "bottle", "name": name, "provider": "claude", "tokens": 1_000_000, "used": used, "held": 0}
    return {
        "bottle": name, "slot": n, "phase": "running", "observe": False, "command": ["claude", "-p", "fix it"],
        "owner": 0, "processes": [1, 2, 3], "budgets": [budget],
        "scopes": [["bottle", name], ["parent", f"team-{n % 7}"]],
    }  # fmt: skip


def _event(bottles: int) -> dict[str, Any]:
    return {
        "ts": "2026-01-01T00:00:00Z", "kind": "connect", "verdict": "refused" if bottles else "allowed", "layer": "bpf",
        "reason": "default", "bottle": f"b{int(time.time()) % max(1, bottles):03}", "comm": "curl", "pid": 7,
        "dst": "203.0.113.9", "port": 443, "proto": "tcp", "count": 1,
    }  # fmt: skip
