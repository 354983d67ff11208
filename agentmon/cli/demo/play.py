"""What the demo does, in order, and what was seen of it by those who cannot be fooled: receivers, ledger, kernel."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from agentmon import paths
from agentmon.cli import leftovers
from agentmon.cli.demo import look, stage
from agentmon.errors import AgentmonError, HostLacks
from agentmon.ledger.reader import Reader

BUDGET, RESUMED_BUDGET = 20_000, 60_000
_SILENCE_S = 60.0
_SETTLE_S = 10.0


@dataclass
class Seen:
    """Facts only; verdict.py judges them."""

    bottle: str
    ready_ms: float = 0.0
    start: look.Facts = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    cut: dict[str, Any] = field(default_factory=dict)  # what the agent saw
    resumed: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)  # usage_v
    enforcement: list[dict[str, Any]] = field(default_factory=list)  # enforcement_v
    counters: dict[str, Any] = field(default_factory=dict)  # of the stand-in internet
    summary: dict[str, Any] = field(default_factory=dict)  # run --json-summary
    leftovers: list[str] = field(default_factory=list)


def play(say: stage.Say) -> Seen:
    """The whole demo.

    :raises AgentmonError: it could not be played to its end; everything is removed again.
    """
    if os.geteuid() != 0:
        raise HostLacks("the demo makes namespaces, rules and BPF programs: it must run as root", "sudo agentmon demo")
    before = leftovers.snapshot()
    seen = Seen(f"demo-{secrets.token_hex(3)}")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentmon-demo-")))
        directory.chmod(0o755)  # services of other users read the CA in it
        say("starting the stand-in internet: DNS, web hosts, model providers, on this host only")
        world = stack.enter_context(stage.World(directory))
        world.start()
        say("starting the daemon")
        stack.enter_context(stage.Daemon()).start(_settings(directory, world), directory / "daemon.log")
        started = time.monotonic()
        say(f"starting bottle {seen.bottle} with a budget of {BUDGET} tokens")
        bottle = stack.enter_context(stage.Bottle(seen.bottle, directory))
        bottle.start(f"claude={BUDGET}")
        for step in bottle.steps(_SILENCE_S):
            _take(step, seen, bottle, say, started)
        _collect(seen, world)
        seen.summary = bottle.finish()
    say("everything is taken down; comparing the host with before")
    seen.leftovers = leftovers.since(before)
    return seen


def _settings(directory: Path, world: stage.World) -> Path:
    file = directory / "settings.yml"
    servers = ", ".join(f'"{address}"' for address in world.dns)
    file.write_text(f"upstream:\n  dns: [{servers}]\n  ca: {world.ca}\n")
    return file


def _take(step: dict[str, Any], seen: Seen, bottle: stage.Bottle, say: stage.Say, started: float) -> None:
    kind = step.pop("step")
    if kind == "started":
        seen.ready_ms = round((time.monotonic() - started) * 1000, 1)
        say(f"the bottle is ready, {seen.ready_ms:.0f} ms after its command line")
        rows = stage.agentmon("ps", "--json")
        seen.start = next((look.start(row) for row in rows if row["bottle"] == seen.bottle), {})
    elif kind == "call":
        say(f"{step['client']} {step['host']}: {step['status']}")
        seen.calls.append(step)
    elif kind == "attempt":
        say(f"{step['attempt']}: {'went through' if step['worked'] else 'refused, ' + step['said']}")
        seen.attempts.append(step)
    elif kind == "cut":
        say(f"after {step['calls']} calls: {step['status']} {step['type']}; resuming with {RESUMED_BUDGET} tokens")
        seen.cut = step
        if step["status"] == HTTPStatus.FORBIDDEN:
            stage.agentmon("resume", seen.bottle, "--budget", f"claude={RESUMED_BUDGET}", "--json")
        bottle.tell()
    elif kind == "resumed":
        say(f"the next call: {step['status']}")
        seen.resumed = step


def _collect(seen: Seen, world: stage.World) -> None:
    """While daemon and bottle live. Events and rows are written beside the traffic: wait for the last of them."""
    _until(lambda: len({_key(e) for e in _events(seen)}) >= len(seen.attempts))
    seen.counters = world.counters()
    billed = len(seen.counters["served"]["calls"])
    _until(lambda: len(_rows(seen)) >= billed)
    with Reader(str(paths.LEDGER)) as reader:
        seen.enforcement = reader.enforcement(bottle=seen.bottle)


def _events(seen: Seen) -> list[dict[str, Any]]:
    seen.events = stage.agentmon("events", "--bottle", seen.bottle, "--json")
    return [event for event in seen.events if event.get("verdict") == "refused" and _key(event) is not None]


def _key(event: dict[str, Any]) -> str | None:
    return event.get("host") or event.get("dst")


def _rows(seen: Seen) -> list[dict[str, Any]]:
    with Reader(str(paths.LEDGER)) as reader:
        seen.usage = reader.rows(bottle=seen.bottle)
    return seen.usage


def _until(condition: Callable[[], bool]) -> None:
    """Poll; the verdict says what is missing after the deadline."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(AgentmonError):
            if condition():
                return
        time.sleep(0.1)
