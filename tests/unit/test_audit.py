"""The audit trail: rows wait for a ledger that is away; refusals are rows too, and cannot fill the file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agentmon import paths, wire
from agentmon.cli.main import agentmon
from agentmon.daemon.audit import AuditTrail
from agentmon.errors import AgentmonError, BadInput, Refused
from agentmon.events import Event
from agentmon.ledger.state import Now, Owner
from agentmon.ledger.store import Store
from agentmon.render.audit import audit_table


class Away:
    """A ledger that can be away."""

    def __init__(self) -> None:
        self.there = True
        self.rows: list[tuple[Any, ...]] = []
        self.told: list[Event] = []
        self.now_s = 1000.0

    async def record(self, *row: Any) -> None:
        if not self.there:
            raise AgentmonError("the ledger is away")
        self.rows.append(row)

    def trail(self) -> AuditTrail:
        return AuditTrail(self.record, self.told.append, lambda: self.now_s)


def test_rows_wait_in_their_order_with_the_time_they_were_asked_at(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Away()
    trail = ledger.trail()

    async def body() -> None:
        ledger.there = False
        await trail.done(0, "cut", "one", {"result": "done"})
        await trail.done(7, "kill", "two", {"result": "done"})
        await trail.flush()
        assert not ledger.rows
        ledger.there = True
        await trail.done(0, "resume", "one", {"result": "done"})

    asyncio.run(body())
    assert [row[:3] for row in ledger.rows] == [(0, "cut", "one"), (7, "kill", "two"), (0, "resume", "one")]
    assert all(row[3]["asked"].endswith("Z") and row[3]["result"] == "done" for row in ledger.rows)
    assert "cut one by uid 0 is written when the ledger is back" in capsys.readouterr().err


def test_refusals_are_recorded_but_not_of_what_only_looks_and_not_without_end() -> None:
    ledger = Away()
    trail = ledger.trail()
    cut = wire.Request(1, "cut", {"bottle": "one" * 100})

    async def body() -> None:
        await trail.refused(7, wire.Request(1, "ps", {}), Refused("no"))
        await trail.refused(7, wire.Request(1, "cut", {"all": True}), Refused("use sudo"))
        await trail.refused(7, wire.Request(1, "budget_set", {"scope": "host", "name": "host"}), BadInput("bad"))
        for _ in range(100):
            await trail.refused(7, cut, Refused("x" * 9000))
            await trail.refused(0, cut, BadInput("no bottle"))
        ledger.now_s += 61
        await trail.refused(7, cut, Refused("again"))

    asyncio.run(body())
    assert ledger.rows[0] == (7, "cut", "all", {"result": "Refused: use sudo"})
    assert ledger.rows[1] == (7, "budget_set", "host:host", {"result": "BadInput: bad"})
    mine = [row for row in ledger.rows if row[0] == 7]
    assert len(mine) == 30 + 1 and sum(row[0] == 0 for row in ledger.rows) == 100
    assert len(mine[2][2]) == 64 and len(mine[2][3]["result"]) == 500
    (lost,) = ledger.told
    assert (lost.kind, lost.uid, lost.count) == ("lost", 7, 72)


def test_a_ledger_that_stays_away_is_told_when_no_more_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmon.daemon.audit._KEPT", 3)
    ledger = Away()
    ledger.there = False
    trail = ledger.trail()

    async def body() -> None:
        for n in range(5):
            await trail.done(n, "cut", "one", {})

    asyncio.run(body())
    assert [(event.kind, event.count) for event in ledger.told] == [("lost", 1), ("lost", 2)]


def test_the_command_filters_and_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "LEDGER", tmp_path / "ledger.db")
    store = Store(str(paths.LEDGER))
    asked = [
        (wire.Audit(1, 0, "cut", "all", {"result": "done"}), Owner("b", 1, 1)),
        (wire.Audit(1, 4_000_000, "kill", "one\x1b[2J", {"result": "Refused: use sudo", "pid": 5}), Owner("b", 1, 1)),
    ]
    store.run(asked, Now(1_780_000_000 * 10**9, 1))
    store.close()
    run = CliRunner()
    text = run.invoke(agentmon, ["audit"]).output
    assert "root" in text and "4000000" in text and "Refused: use sudo" in text and "pid=5" in text
    assert "\x1b" not in text and "one\\x1b[2J" in text
    (row,) = [
        json.loads(line) for line in run.invoke(agentmon, ["audit", "--json", "--user", "root"]).output.splitlines()
    ]
    assert (row["uid"], row["user"], row["action"], row["detail"]) == (0, "root", "cut", {"result": "done"})
    for words in (["--action", "resume"], ["--target", "x"], ["--user", "nobody-such"], ["--since", "1s"]):
        assert run.invoke(agentmon, ["audit", *words]).output == "nothing was changed\n"
    assert audit_table([]) == ""
