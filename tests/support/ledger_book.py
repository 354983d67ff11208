"""A ledger's store with short questions, for the tests of its single rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw

from agentmon import wire
from agentmon.ledger.state import Owner
from agentmon.ledger.store import Store
from tests.support.ledger_rig import START, A, usage


class Book:
    """A store with short questions."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "ledger.db")
        self.store = Store(self.path)
        self.now = START
        self.crossed: list[wire.Crossed] = []

    def ask(self, kind: type[Any], *fields: Any, owner: Owner = A, **named: Any) -> Any:
        return self.all([(kind(1, *fields, **named), owner)])[0]

    def all(self, asked: list[tuple[Any, Owner]]) -> list[Any]:
        out = self.store.run(asked, self.now)
        self.crossed += out.crossed
        return out.answers

    def open(self, slot: int, *scopes: wire.ScopeDef, run: str = "", bottle: str = "", **weights: int) -> None:
        done = self.ask(wire.OpenRun, slot, bottle or f"b{slot}", run or f"run{slot}", "", scopes, weights)
        assert isinstance(done, wire.Done), done

    def reserve(self, slot: int, input: int, output: int, key: str, provider: str = "claude", owner: Owner = A) -> Any:
        return self.ask(wire.Reserve, slot, provider, "m", input, output, key, owner=owner)

    def spend(self, slot: int, tokens: int, request: str, provider: str = "claude") -> wire.Settled:
        """A row of `tokens`, whatever was held for it."""
        hold = self.reserve(slot, 1, 0, request, provider)
        assert isinstance(hold, wire.Granted), hold
        settled = self.ask(wire.Settle, hold.hold, usage(tokens, request_id=request, provider=provider))
        assert isinstance(settled, wire.Settled)
        return settled

    def line(self, slot: int, scope: str, provider: str = "claude") -> dict[str, Any]:
        lines = self.ask(wire.Totals, slot).value
        return next(line for line in lines if (line["scope"], line["provider"]) == (scope, provider))

    def reads(self, sql: str) -> list[Any]:
        return apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READONLY).execute(sql).fetchall()
