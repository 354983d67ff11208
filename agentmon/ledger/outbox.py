"""What a host could not record while the shared database was away: a small file of its own, sent once it is back.

    settled in an outage ─▶ add() (on the disk) ─▶ answered ··· database back ─▶ a transaction there: rows, hosts.sent
                                                                                ─▶ drop() here

Killed between the two, the entries are still here, and hosts.sent says that they are recorded. The file also has the
host's name in the database: a copied machine must not keep it (docs/ledger.md).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from agentmon import wire
from agentmon.ledger.store import LedgerTrouble, trouble
from agentmon.ledger.transaction import transaction

_SCHEMA = """
CREATE TABLE IF NOT EXISTS host (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: hosts.sent is compared with it
    wall_ns INTEGER NOT NULL,               -- when it happened: which window it counts in
    batch INTEGER NOT NULL,                 -- of a COMMIT without an answer: recorded if hosts.batch is there; else 0
    message BLOB NOT NULL                   -- a frame of wire.py
);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    seq: int
    wall_ns: int
    batch: int
    message: Any


class Outbox:
    """One open file. All methods from one thread. :raises LedgerTrouble: from each, the file cannot be used now."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.host = ""
        self.count = 0  # entries
        self._db: apsw.Connection | None = None

    def open(self) -> None:
        """Idempotent."""
        if self._db is not None:
            return
        try:
            db = apsw.Connection(self.path)
            db.set_busy_timeout(1000)
            db.pragma("journal_mode", "wal")
            db.pragma("synchronous", "full")
            with transaction(db):
                db.execute(_SCHEMA)
                if not db.execute("SELECT count(*) FROM host").get:
                    db.execute("INSERT INTO host VALUES (?)", (uuid.uuid4().hex,))
            self.host = str(db.execute("SELECT id FROM host").get)
            self.count = int(db.execute("SELECT count(*) FROM waiting").get)
        except apsw.Error as e:
            raise trouble(self.path, e) from e
        self._db = db

    def add(self, messages: Sequence[Any], wall_ns: int, batch: int = 0) -> None:
        """When it returns they are on the disk."""
        db = self._opened()
        try:
            with transaction(db):
                rows = [(wall_ns, batch, wire.encode(message)) for message in messages]
                db.executemany("INSERT INTO waiting VALUES (NULL, ?, ?, ?)", rows)
        except apsw.Error as e:
            raise trouble(self.path, e) from e
        self.count += len(messages)

    def entries(self, limit: int) -> list[Entry]:
        """The oldest ones."""
        sql = "SELECT seq, wall_ns, batch, message FROM waiting ORDER BY seq LIMIT ?"
        try:
            found: list[Any] = self._opened().execute(sql, (limit,)).fetchall()
            return [Entry(seq, wall, batch, wire.Frames().feed(frame)[0]) for seq, wall, batch, frame in found]
        except (apsw.Error, wire.WireError, IndexError) as e:
            raise LedgerTrouble(f"{self.path}: cannot be read ({e})", "see docs/ledger.md, Many hosts") from e

    def drop(self, upto: int) -> None:
        """Those up to `upto` are recorded in the database."""
        db = self._opened()
        try:
            with transaction(db):
                db.execute("DELETE FROM waiting WHERE seq <= ?", (upto,))
            self.count = int(db.execute("SELECT count(*) FROM waiting").get)
        except apsw.Error as e:
            raise trouble(self.path, e) from e

    def close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(apsw.Error):
                self._db.close()
            self._db = None

    def _opened(self) -> apsw.Connection:
        self.open()
        assert self._db is not None
        return self._db
