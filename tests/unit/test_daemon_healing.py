"""The daemon's healing task outlives what nobody thought of: told, and everything is looked at anew."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from agentmon.control.state import Phase
from agentmon.daemon.healing import ALOUD, Healing
from agentmon.events import Event
from netfilter.changes import Kind
from netfilter.heal_fake import FakeHealing


class Told:
    """The task over a netfilter in memory; `kernel` runs its calls."""

    def __init__(self, kernel: Callable[..., Any], bottles: Callable[[], Any] = dict) -> None:
        self.events: list[Event] = []
        self.nf = FakeHealing()
        self._kernel = kernel
        self._healing = Healing(self.nf, self._call, bottles, self.events.append, lambda *_: None)

    async def _call(self, call: Callable[..., Any], *args: Any) -> Any:
        return self._kernel(call, *args)

    def during(self, what: Callable[[], Awaitable[None]]) -> None:
        async def body() -> None:
            await self._healing.open()
            task = asyncio.create_task(self._healing.watch())
            await asyncio.wait_for(what(), 20)
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(body())


async def until(what: Callable[[], object]) -> None:
    while not what():
        await asyncio.sleep(0.005)


def test_a_round_that_fails_is_told_and_what_it_was_to_mend_is_mended(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [ValueError("unthought of")]

    def kernel(call: Callable[..., Any], *args: Any) -> Any:
        if call == told.nf.restore:
            if failures:
                raise failures.pop()
            if any(change.kind is Kind.UNKNOWN for change in args[0]):
                return call(told.nf.check(None))
        return call(*args)

    told = Told(kernel)

    async def work() -> None:
        told.nf.tamper(None, Kind.RULES, "table agentmon deleted")
        await until(lambda: len(told.events) == 2)

    told.during(work)
    failed, mended = told.events
    assert failed.kind == "daemon" and "ValueError: unthought of" in str(failed.reason)
    assert mended.kind == "tamper" and mended.reason == "table agentmon deleted"
    assert "warning: watching over rules and devices failed (ValueError" in capsys.readouterr().err
    assert not told.nf.broken


def test_one_that_fails_each_time_is_told_a_few_times_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = 0

    def kernel(call: Callable[..., Any], *args: Any) -> Any:
        nonlocal rounds
        if call == told.nf.restore:
            rounds += 1
            raise KeyError("again")
        return call(*args)

    told = Told(kernel)

    async def work() -> None:
        told.nf.tamper(None, Kind.RULES, "table agentmon deleted")
        await until(lambda: rounds > ALOUD + 1)

    told.during(work)
    assert [event.kind for event in told.events] == ["daemon"] * ALOUD
    assert capsys.readouterr().err.count("warning:") == ALOUD


def test_what_root_does_in_one_bottle_delays_and_hides_nothing_elsewhere() -> None:
    """It takes the rules in there away again and again, so that they cannot be put back; then the host's go."""
    calls: list[int | None] = []

    def kernel(call: Callable[..., Any], *args: Any) -> Any:
        if call == told.nf.restore:
            (slot,) = {change.slot for change in args[0]}
            calls.append(slot)
            if slot == 16:
                raise OSError(errno.EPERM, "it holds the table")
        return call(*args)

    bottle = SimpleNamespace(name="hostile", phase=Phase.RUNNING)
    told = Told(kernel, lambda: {16: bottle})

    async def work() -> None:
        told.nf.tamper(16, Kind.RULES, "table agentmon deleted")
        await until(lambda: calls.count(16) > ALOUD + 3)
        calls.clear()
        told.nf.tamper(None, Kind.RULES, "chain pre deleted")
        await until(lambda: not any(d.slot is None for d in told.nf.broken))

    told.during(work)
    assert calls[-1] is None and calls.count(16) <= 1
    assert [e.bottle for e in told.events[:-1]] == ["hostile"] * ALOUD
    assert told.events[-1].reason == "chain pre deleted"
