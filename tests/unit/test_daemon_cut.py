"""A cut goes on past a step that fails, and its row waits for the ledger, not the cut for the row."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control.state import Bottle, Phase
from agentmon.daemon import enforcements
from agentmon.daemon.clients import Clients
from agentmon.daemon.enforcements import Enforcements
from agentmon.daemon.runner import Runner
from agentmon.errors import AgentmonError
from tests.unit.test_control_machine import host


@pytest.mark.parametrize("verb", ["freeze", "cut"])
@pytest.mark.parametrize("fails", [a.CutKernel, a.CloseStreams])
def test_every_other_step_of_a_cut_is_done(verb: str, fails: type[a.Action]) -> None:
    done: list[str] = []
    told: list[a.Emit] = []

    async def apply(action: a.Action) -> None:
        done.append(type(action).__name__)
        if isinstance(action, fails):
            raise OSError(5, "an error of this step")
        if isinstance(action, a.Emit):
            told.append(action)

    async def main() -> Runner:
        runner = Runner(host(one=Phase.RUNNING), apply, Clients(), lambda: None)
        runner.dispatch(e.Operator(1, verb, "one", 0))
        await asyncio.wait_for(runner.drained(), 10)
        return runner

    runner = asyncio.run(main())
    steps = ["CutKernel", "CloseStreams", *(["Freeze"] if verb == "freeze" else []), "Save", "Emit"]
    assert done[: len(steps)] == steps and ("SaveState" in done) == (verb == "freeze")
    assert runner.host.bottles[16].phase is (Phase.FROZEN if verb == "freeze" else Phase.CUT)
    assert any("an error of this step" in str(emit.event) for emit in told)


def test_rows_wait_for_the_ledger_in_their_order_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(enforcements, "_AGAIN_S", 0.001)
    rows: list[tuple[str, str]] = []
    away = [True]

    async def record(bottle: Bottle, policy: str, trigger: str, by: str, latency_ns: int, result: str) -> None:
        if away[0]:
            raise AgentmonError("the disk is full")
        rows.append((policy, result))

    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []

        def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
            tasks.append(asyncio.create_task(work, name=name))

        kept = Enforcements(record, spawn)
        bottle = host(one=Phase.RUNNING).bottles[16]
        await kept.record(bottle, "freeze", "operator", "uid:0", 5, "0 streams closed")
        away[0] = False
        await kept.record(bottle, "save", "operator", "uid:0", 0, "saved")  # not before the one that waits
        assert rows == [] and len(tasks) == 1
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        await kept.record(bottle, "cutoff", "operator", "uid:0", 0, "at once")

    asyncio.run(main())
    assert [policy for policy, _ in rows] == ["freeze", "save", "cutoff"]
    assert [("recorded late, done at 2" in result) for _, result in rows] == [True, True, False]
    assert "freeze of one: its row in enforcement_v is written when the ledger is back: the disk is full" in (
        capsys.readouterr().err
    )
