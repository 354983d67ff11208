"""Reading the ledger's file without the ledger: reports, the command line, anybody with permission. Never writes.

Every method is one short read transaction, so that the writer's log can be checkpointed. The file's directory is 0700:
root reads it, or user agentmon-ledger.
"""

from __future__ import annotations

from typing import Any

import apsw

from agentmon.ledger import migrations
from agentmon.ledger.check import findings
from agentmon.ledger.finding import Finding
from agentmon.ledger.reading import BY, EXPORTS, Reading
from agentmon.ledger.store import LedgerTrouble, trouble

__all__ = ["BY", "EXPORTS", "Reader", "sqlite_version"]


class Reader(Reading):
    """A read-only connection.

    :raises LedgerTrouble: no such file, no permission, damaged. :raises migrations.SchemaTooNew: of a newer agentmon.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
            self._db.set_busy_timeout(1000)
            have = migrations.version_of(self._db)
        except apsw.CantOpenError as e:
            hint = "the ledger is written by agentmon daemon, read by root"
            raise LedgerTrouble(f"{path}: cannot be read ({e})", hint) from e
        except apsw.Error as e:
            raise trouble(path, e) from e
        if have != migrations.MIGRATIONS[-1].version:
            self._db.close()
            raise migrations.SchemaTooNew(
                f"{path} has schema version {have}, this agentmon reads {migrations.MIGRATIONS[-1].version}",
                "let the same version's daemon and command line work on it",
            )

    def close(self) -> None:
        self._db.close()

    def findings(self) -> list[Finding]:
        """What `ledger check` looks at, and what is wrong there. Ends early where the file cannot be read."""
        found: list[Finding] = []
        try:
            found.extend(findings(self._db))
        except apsw.Error as e:
            found.append(Finding("the file", 1, (trouble(self.path, e).message,)))
        return found

    def backup(self, to: str) -> None:
        """A consistent copy, also while the ledger writes.

        :raises LedgerTrouble: `to` cannot be written.
        """
        try:
            with apsw.Connection(to) as copy, copy.backup("main", self._db, "main") as job:
                job.step()
        except apsw.Error as e:
            raise trouble(to, e) from e

    def dicts(self, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        try:
            cursor = self._db.execute(sql, values)
            return [dict(zip((d[0] for d in cursor.description), row, strict=True)) for row in cursor]
        except apsw.Error as e:
            raise trouble(self.path, e) from e


def sqlite_version() -> tuple[int, ...]:
    """Of the library that this process writes and reads ledgers with."""
    return tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
