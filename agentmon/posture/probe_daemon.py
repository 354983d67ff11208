"""Asking the daemon, and looking at its services and the processes of its bottles in /proc."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from agentmon import paths
from agentmon.errors import AgentmonError, DaemonUnreachable, Refused
from agentmon.ledger import events_store
from agentmon.posture.facts import Bottle, Bypasses, Daemon, Process, Seen, Service
from agentmon.posture.model import Unseen
from agentmon.posture.probe_network import CONTROL_SOCKETS

Ask = Callable[[str], Any]
_NOT_RUNNING = frozenset("TtZX")  # stopped, traced, ended; proc_pid_status(5)
_DAY_NS = 86_400 * 1_000_000_000


def daemon(ask: Ask) -> Seen[Daemon]:
    """:param ask: sends a request without arguments over the control socket; its value."""
    try:
        said = ask("posture")
    except DaemonUnreachable:
        return Daemon(0)
    except Refused as error:
        return Unseen(f"the daemon does not say: {error.message}", "sudo agentmon posture")
    return Daemon(
        pid=_peer(),
        host=tuple(said["host"]),
        left_out=dict(said["left_out"]),
        events_lost=int(said["events_lost"]),
        services=tuple(_service(s["name"], int(s["pid"]), bool(s["up"])) for s in said["services"]),
        bottles=tuple(_bottle(b) for b in said["bottles"]),
    )


def _peer() -> int:
    """The daemon's process as it wrote itself down; -1 where it did not: one runs all the same."""
    try:
        return int((paths.RUN / "daemon.lock").read_text().strip() or -1)
    except (OSError, ValueError):
        return -1


def _service(name: str, pid: int, up: bool) -> Service:
    status = _status(pid)
    if not status:
        return Service(name, pid, up)
    uid = int(status["Uid"].split()[1])
    runs = up and status["State"][0] not in _NOT_RUNNING
    return Service(name, pid, runs, uid, int(status["CapEff"], 16), _core(pid))


def _core(pid: int) -> int | None:
    """Soft limit of core files, proc_pid_limits(5)."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("Max core file size"):
            word = line[len("Max core file size") :].split()[0]
            return int(word) if word.isdigit() else None
    return None


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _bottle(said: dict[str, Any]) -> Bottle:
    guarded = frozenset(said["guarded"])
    processes = tuple(p for pid in said["pids"] if (p := _process(pid, pid in guarded)) is not None)
    found = msgspec.convert({key: value for key, value in said.items() if key not in {"pids", "guarded"}}, Bottle)
    return replace(found, processes=processes, sockets=_sockets(said))


def _process(pid: int, guarded: bool) -> Process | None:
    status = _status(pid)
    if not status:
        return None  # it has ended
    try:
        exe = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        exe = ""
    return Process(pid, status["Name"], int(status["CapEff"], 16), exe.startswith("python"), guarded)


def _sockets(said: dict[str, Any]) -> tuple[str, ...]:
    """Control sockets of the host that `unix:` gives, or that are to be seen in the mounts of its first process."""
    given = {path for path in CONTROL_SOCKETS for rule in said["unix"] if _within(path, rule)}
    mounted = set()
    if said["attached"] and said["pids"]:
        root = f"/proc/{said['pids'][0]}/root"
        mounted = {path for path in CONTROL_SOCKETS if _is_hosts(root, path)}
    return tuple(sorted(given | mounted))


def _within(path: str, rule: str) -> bool:
    names = {path, path.replace("/run/", "/var/run/", 1)}
    return any(name == rule or (rule.endswith("/") and name.startswith(rule)) for name in names)


def _is_hosts(root: str, path: str) -> bool:
    """The same socket as the host's: a container may have a daemon of its own by that name."""
    try:
        return os.path.samestat(os.stat(root + path), os.stat(path))
    except OSError:
        return False


def bypasses() -> Seen[Bypasses]:
    """From the stored events of the last day."""
    if not paths.EVENTS.exists():
        return Bypasses({})
    found: Counter[str] = Counter()
    try:
        for _, event in events_store.read(str(paths.EVENTS), kind="bypass", since_ns=time.time_ns() - _DAY_NS):
            found[event.library or event.comm or ""] += event.count or 1
    except AgentmonError as error:
        return Unseen(error.message, error.hint or "sudo agentmon posture")
    return Bypasses(dict(found))
