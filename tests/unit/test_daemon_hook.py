"""A command of the settings that is told something: what it gets, and what is told of one that fails or hangs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentmon.daemon import hook
from agentmon.daemon.hook import Hook
from agentmon.events import Event


def told(
    argv: tuple[str, ...], *what: dict[str, Any], until: Callable[[list[Event]], bool], **more: Any
) -> list[Event]:
    events: list[Event] = []

    async def body() -> None:
        one = Hook("approvals: hook", lambda: argv, events.append, **more)
        for each in what:
            one.tell(each)
        async with asyncio.timeout(10):
            while not until(events):
                await asyncio.sleep(0.005)
        await one.close()

    asyncio.run(body())
    return events


def test_it_gets_json_and_nothing_of_the_daemons_environment(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SECRET", "planted")
    out, done = tmp_path / "out", tmp_path / "done"
    script = f"cat > {out}; env >> {out}; pwd >> {out}; touch {done}"
    assert told(("/bin/sh", "-c", script), {"id": 3}, until=lambda _: done.exists()) == []
    first, *rest = out.read_text().splitlines()
    assert json.loads(first) == {"id": 3}
    assert "planted" not in rest and rest[-1] == "/" and any(line.startswith("PATH=") for line in rest)


def test_one_that_fails_is_told_once() -> None:
    events = told(("/bin/false",), {"id": 1}, {"id": 2}, until=lambda events: bool(events))
    assert len(events) == 1
    assert "/bin/false ended with status 1" in events[0].reason and "approvals: hook" in events[0].hint
    events = told(("/nowhere/command",), {"id": 1}, until=lambda events: bool(events))
    assert "/nowhere/command: No such file" in events[0].reason


def test_one_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid}; wait"
    events = told(("/bin/sh", "-c", script), {}, until=lambda events: bool(events), timeout_s=0.5)
    assert "did not end within 0.5 s" in events[0].reason
    status = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_calls_are_bounded_in_number() -> None:
    events = told(("/bin/sleep", "30"), *[{}] * (hook.WAITING + 1), until=lambda events: bool(events))
    assert len(events) == 1 and "one was left out" in events[0].reason
