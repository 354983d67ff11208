"""A spawner that has gone: another one is started, also at a second try; whose job it does not hold is ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agentmon.control.events import Broken
from agentmon.daemon import launcher_watch
from agentmon.errors import HostLacks
from agentmon.events import Event


class Spawner:
    """Fails to start once; then holds the job of slot 17, which lived after all."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.starts = 0

    async def start(self) -> list[Any]:
        self.starts += 1
        if self.starts == 1:
            raise HostLacks("the spawner does not answer")
        self.lost.clear()
        return [SimpleNamespace(slot=17, run="r17")]


def test_jobs_that_nobody_holds_are_ended_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_watch, "_AGAIN_S", 0.0)
    attached = {16: None, 17: None, 18: object(), 19: None}
    bottles = {slot: SimpleNamespace(run=f"r{slot}", attached=what) for slot, what in attached.items()}
    broken: list[Broken] = []
    told: list[Event] = []

    async def body() -> int:
        spawner: Any = Spawner()
        watch = launcher_watch.watch(spawner, lambda: bottles, broken.append, told.append)  # type: ignore[arg-type]
        task = asyncio.create_task(watch)
        await asyncio.sleep(0)
        assert not told
        spawner.lost.set()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        return int(spawner.starts)

    assert asyncio.run(body()) == 2
    assert [b.slot for b in broken] == [16, 19] and "run starts the command again" in broken[0].hint
    assert [e.verdict for e in told] == ["refused", "observed"]
    assert "does not answer" in told[0].reason and "2 jobs are ended" in told[1].reason
