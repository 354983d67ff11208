"""What reports ask of a ledger, in SQL that files and PostgreSQL both take.

The connections are in reader.py and postgres_reader.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import date
from typing import Any, Self

from agentmon import errors
from agentmon.ledger import retention
from agentmon.ledger.finding import Finding

BY = ("bottle", "agent", "provider", "model", "day")
EXPORTS = {
    "usage": "usage_v", "folded": "usage_folded_v", "enforcement": "enforcement_v", "audit": "audit_v",
    "approvals": "approvals_v",
}  # fmt: skip
_CHUNK = 1000  # rows of one read transaction of export()

_COUNTS = """sum("rows") AS "rows", sum(requests) AS requests, sum(input) AS input, sum(cache_read) AS cache_read,
    sum(cache_write) AS cache_write, sum(output) AS output, sum(reasoning) AS reasoning, sum(weighted) AS weighted,
    sum(CASE source WHEN 'estimate' THEN "rows" ELSE 0 END) AS estimated,
    sum(CASE complete WHEN 0 THEN "rows" ELSE 0 END) AS incomplete,
    sum(input_estimated) AS input_estimated, sum(input_told) AS input_told, sum(input_missed) AS input_missed"""


class Reading(ABC):
    """Every method but export() is one moment of the ledger; a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def findings(self) -> list[Finding]:
        """What `ledger check` looks at, and what is wrong there. Ends early where the ledger cannot be read."""

    @abstractmethod
    def dicts(self, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        """Rows by column; `?` stands for a value. :raises LedgerTrouble: it cannot be read."""

    def usage(self, by: str = "bottle", *, since_ns: int = 0, bottle: str = "") -> list[dict[str, Any]]:
        """Sums of usage_counts_v: {<by>, rows, requests, input, cache_read, cache_write, output, reasoning, weighted,
        estimated, incomplete (both in rows), input_estimated, input_told, input_missed}; by day also {zone}, the names
        of the host's time zone.

        :param by: bottle | agent | provider | model | day (of the host's time zone).
        :param since_ns: within a day whose usage is kept as sums: from its beginning; see folded_day().
        :raises errors.BadInput: another `by`.
        """
        if by not in BY:
            raise errors.BadInput(f"usage --by {by!r}: not one of {', '.join(BY)}", "agentmon usage --by bottle")
        zone = {"zone": "/".join(dict.fromkeys(time.tzname))} if by == "day" else {}
        lines = self.dicts(
            f"""SELECT {by}, {_COUNTS} FROM usage_counts_v
                WHERE ts_ns >= ? AND (? = '' OR bottle = ?) GROUP BY 1 ORDER BY 1""",
            (retention.before(since_ns, 0) if self.folded_day(since_ns) else since_ns, bottle, bottle),
        )
        return [line | zone for line in lines]

    def daily(self, *, since_ns: int = 0, bottle: str = "") -> list[dict[str, Any]]:
        """Weighted tokens of each local day and provider: {day, provider, weighted}."""
        return self.dicts(
            """SELECT day, provider, sum(weighted) AS weighted FROM usage_counts_v
               WHERE ts_ns >= ? AND (? = '' OR bottle = ?) GROUP BY 1, 2 ORDER BY 1, 2""",
            (since_ns, bottle, bottle),
        )

    def folded_day(self, since_ns: int) -> str:
        """The local day of `since_ns` if its usage is kept as sums, so that it counts as a whole; else ""."""
        day = date.fromtimestamp(since_ns // 1_000_000_000).isoformat()
        found = self.dicts("SELECT 1 FROM usage_folded WHERE day = ? AND ts_ns >= ? LIMIT 1",
                            (day, retention.before(since_ns, 0)))  # fmt: skip
        return day if found and since_ns else ""

    def usage_of_run(self, run: str) -> dict[str, dict[str, Any]]:
        """The same sums for one run, by provider."""
        lines = self.dicts(f"SELECT provider, {_COUNTS} FROM usage_counts_v WHERE run = ? GROUP BY 1", (run,))
        return {line.pop("provider"): line for line in lines}

    def rows(self, *, since_ns: int = 0, bottle: str = "", limit: int = 1 << 62) -> list[dict[str, Any]]:
        """Rows of usage_v, oldest first."""
        return self.dicts(
            "SELECT * FROM usage_v WHERE ts_ns >= ? AND (? = '' OR bottle = ?) ORDER BY id LIMIT ?",
            (since_ns, bottle, bottle, limit),
        )

    def budgets(self) -> list[dict[str, Any]]:
        """budget_v: shared scopes and running bottles, in their current windows."""
        return self.dicts("SELECT * FROM budget_v ORDER BY scope, name, provider, per, run", ())

    def live(self) -> list[dict[str, Any]]:
        """Requests under way: {bottle, provider, model, tokens}, tokens as they are held, weighted; oldest first."""
        return self.dicts(
            """SELECT r.bottle, h.provider, h.model, h.tokens FROM holds h JOIN runs r ON r.id = h.run_id
               ORDER BY h.id""",
            (),
        )

    def scopes(self) -> dict[str, list[tuple[str, str]]]:
        """Run → its scopes, most specific first, of the runs that are open."""
        found: dict[str, list[tuple[str, str]]] = {}
        for line in self.dicts(
            """SELECT r.run, s.scope, s.name FROM runs r JOIN run_scopes s ON s.run_id = r.id
               WHERE r.closed_ns IS NULL ORDER BY r.id, s.position""",
            (),
        ):
            found.setdefault(line["run"], []).append((line["scope"], line["name"]))
        return found

    def enforcement(self, *, since_ns: int = 0, bottle: str = "") -> list[dict[str, Any]]:
        sql = "SELECT * FROM enforcement_v WHERE ts_ns >= ? AND (? = '' OR bottle = ?) ORDER BY id"
        return self.dicts(sql, (since_ns, bottle, bottle))

    def approvals(self, *, since_ns: int = 0, bottle: str = "") -> list[dict[str, Any]]:
        sql = "SELECT * FROM approvals_v WHERE ts_ns >= ? AND (? = '' OR bottle = ?) ORDER BY id"
        return self.dicts(sql, (since_ns, bottle, bottle))

    def audit(self, *, since_ns: int = 0) -> list[dict[str, Any]]:
        return self.dicts("SELECT * FROM audit_v WHERE ts_ns >= ? ORDER BY id", (since_ns,))

    def check(self) -> list[str]:
        """What is wrong with the ledger, empty for nothing."""
        return [problem for finding in self.findings() for problem in finding.problems]

    def export(self, what: str, *, since_ns: int = 0) -> Iterator[dict[str, Any]]:
        """Rows of one of the views EXPORTS, oldest first, in short transactions: the reader may take its time.

        :param what: a key of EXPORTS. :raises LedgerTrouble: while iterating.
        """
        after = -1
        while chunk := self.dicts(
            f"SELECT * FROM {EXPORTS[what]} WHERE id > ? AND ts_ns >= ? ORDER BY id LIMIT ?", (after, since_ns, _CHUNK)
        ):
            yield from chunk
            after = chunk[-1]["id"]
