"""What `ledger check` says of sums and holds, whichever store they are in. Rows in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agentmon.ledger.owner import alive
from agentmon.ledger.state import Owner

SUMS = """
WITH rows AS (
    SELECT run_id, provider, sum(weighted) AS used FROM usage GROUP BY 1, 2
    UNION ALL SELECT run_id, provider, sum(weighted) FROM usage_folded GROUP BY 1, 2),
charged AS (
    SELECT s.scope, s.name, r.run, rows.provider, rows.used
    FROM rows JOIN runs r ON r.id = rows.run_id JOIN run_scopes s ON s.run_id = rows.run_id),
each AS (SELECT * FROM charged UNION ALL SELECT scope, name, run, '*', used FROM charged),
periods (per) AS (VALUES ('run'), ('hour'), ('day'), ('week'), ('month')),
said AS (
    SELECT scope, name, provider, per, CASE per WHEN 'run' THEN run ELSE '' END AS run, sum(used) AS used
    FROM each, periods GROUP BY 1, 2, 3, 4, 5),
kept AS (
    SELECT scope, name, provider, per, CASE per WHEN 'run' THEN "window" ELSE '' END AS run, sum(used) AS used
    FROM totals GROUP BY 1, 2, 3, 4, 5)
SELECT scope, name, provider, per, run, coalesce(kept.used, 0) AS total, coalesce(said.used, 0) AS rows
FROM said FULL OUTER JOIN kept USING (scope, name, provider, per, run)"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `notes` are not wrong, but worth knowing."""

    what: str
    count: int
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def totals(rows: Iterable[Sequence[Any]]) -> Finding:
    """Each run's totals equal its rows; of the other windows the sum over all of them does, in whatever time zone.

    :param rows: of SUMS.
    """
    count, wrong = 0, []
    for scope, name, provider, per, run, total, said in rows:
        count += 1
        if total == said:
            continue
        if per == "run":
            wrong.append(f"total of {scope} {name}, {provider}, run {run} is {total}, its rows say {said}")
        else:
            wrong.append(f"totals of {scope} {name}, {provider}, per {per} add up to {total}, their rows to {said}")
    return Finding("totals against their rows", count, tuple(sorted(wrong)))


def holds(rows: Iterable[Sequence[Any]]) -> Finding:
    """:param rows: (id, run, whether it runs, boot, pid, start) of holds of this host."""
    wrong, notes, count = [], [], 0
    for hold, run, is_open, boot, pid, start in rows:
        count += 1
        if not is_open:
            wrong.append(f"hold {hold} belongs to run {run}, which has ended")
        elif not alive(Owner(str(boot), int(str(pid)), int(str(start)))):
            notes.append(f"hold {hold} of run {run}: process {pid} has ended; a running ledger charges its estimate")
    return Finding("holds and their owners", count, tuple(wrong), tuple(notes))
