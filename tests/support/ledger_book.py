"""A ledger's store with short questions, for the tests of its single rules: of a file, or of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw

from agentmon import wire
from agentmon.ledger.keeper import Keeper
from agentmon.ledger.reader import Reader
from agentmon.ledger.reading import Reading
from agentmon.ledger.state import Owner
from agentmon.ledger.store import Store
from tests.support.ledger_rig import START, A, usage


class Book:
    """A store with short questions. `url`: of a PostgreSQL database, which then is what it keeps its rows in."""

    def __init__(self, path: Path, url: str = "") -> None:
        self.path = str(path / "ledger.db")
        self.url = url
        self.store: Keeper = self.another()
        self.now = START
        self.crossed: list[wire.Crossed] = []

    def another(self) -> Keeper:
        """A store of another process on this host."""
        if not self.url:
            return Store(self.path)
        from tests.support.postgres_rig import shared_store

        return shared_store(self.url, Path(self.path).with_name("outbox.db"))

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

    def reader(self) -> Reading:
        """The ledger as it is on the disk."""
        if not self.url:
            return Reader(self.path)
        from agentmon.ledger.postgres import Database
        from agentmon.ledger.postgres_reader import SharedReader

        return SharedReader(Database(self.url))

    def problems(self) -> list[str]:
        """What `ledger check` finds."""
        with self.reader() as reader:
            return reader.check()

    def reads(self, sql: str) -> list[Any]:
        if self.url:
            from agentmon.ledger.postgres import Database

            with Database(self.url).connect() as db:
                return db.execute(sql.encode()).fetchall()
        return apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READONLY).execute(sql).fetchall()
