"""A throw-away bottle that attacks itself: what was refused, counted where it would have arrived. Needs root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from agentmon.errors import AgentmonError, HostLacks
from agentmon.posture import canary_facts, canary_job
from agentmon.posture.canary_facts import Attempt
from agentmon.posture.canary_yard import Yard
from agentmon.posture.model import Finding

_RUN_S = 40.0
_EVENTS_S = 3.0  # repeats are counted for a second before they are told

Events = Callable[[str], Iterable[Mapping[str, Any]]]


def run(events: Events) -> tuple[Finding, list[Attempt]]:
    """:param events: a bottle's events, as in the contract.
    :raises AgentmonError: the canary could not be started.
    """
    if os.geteuid() != 0:
        raise HostLacks("the canary needs root: it makes a namespace to count in", "sudo agentmon posture --canary")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
    if python is None:
        raise HostLacks("the canary needs a python3 of the system, which bottles see", "apt-get install python3")
    bottle = f"agentmon-canary-{os.urandom(3).hex()}"
    with Yard() as yard:
        said = _attack(bottle, python, yard)
        received = yard.received()
    tried = [one for one in said if one["mark"] != "control"]
    found = canary_facts.attempts(tried, received, _told(bottle, events, tried))
    return canary_facts.judge(found, control=received.get("control", 0) > 0), found


def _attack(bottle: str, python: str, yard: Yard) -> list[dict[str, str]]:
    source = Path(canary_job.__file__).read_text()
    command = [sys.executable, "-m", "agentmon.cli", "run", "--name", bottle, "--allow", yard.rule(), "--", python,
               "-I", "-c", source, json.dumps(yard.facts)]  # fmt: skip
    root = str(Path(__file__).resolve().parents[2])
    try:
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_RUN_S, check=False,
            env={**os.environ, "PYTHONPATH": root},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise AgentmonError(f"the canary did not end within {_RUN_S:g} s", "see agentmon ps") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        last = next(
            (line for line in done.stderr.splitlines() if line.startswith("error: ")), done.stderr.strip()[-300:]
        )
        raise AgentmonError(
            f"the canary could not run (exit {done.returncode}): {last}", "agentmon events --kind daemon"
        )
    return [json.loads(line) for line in lines]


def _told(bottle: str, events: Events, tried: list[dict[str, str]]) -> list[Mapping[str, Any]]:
    """Its events, once what it sent is all told or time is up."""
    end = time.monotonic() + _EVENTS_S
    want = {(one["dst"], one["port"]) for one in tried if one.get("dst")}
    while True:
        found = list(events(bottle))
        told = {(str(e.get("dst")), str(e.get("port", ""))) for e in found}
        if want <= told or time.monotonic() > end:
            return found
        time.sleep(0.1)
