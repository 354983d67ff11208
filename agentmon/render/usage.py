"""`agentmon usage` as a table and as CSV. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from agentmon.render.table import table
from agentmon.render.words import printable, tokens

COUNTS = ("requests", "input", "cache_write", "cache_read", "output", "weighted")
GUESSES = ("input_estimated", "input_told", "input_missed")  # admission's estimates of input beside what was counted
SHARES = ("estimated", "incomplete")  # of the rows, which are the requests and the corrections of estimates


def usage_table(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """One line per group, and a last one with the sum if there are several. The last columns say how much of it is
    estimated, or known only in part, and how far admission's estimates of input were off: in sum, and on average."""
    if not rows:
        return ""
    counts, shares = [c for c in COUNTS if c in rows[0]], [s for s in SHARES if s in rows[0]]
    guesses = [g for g in GUESSES if g in rows[0]]

    def line(name: str, of: Mapping[str, Any]) -> tuple[str, ...]:
        guess = (_error(of),) if guesses else ()
        return name, *(tokens(of[c]) for c in counts), *(_share(of[s], of["rows"]) for s in shares), *guess

    lines = [line(printable(str(row[by])) or "-", row) for row in rows]
    if len(rows) > 1:
        summed = (*counts, *shares, *guesses, *(("rows",) if shares else ()))
        lines.append(line("all", {c: sum(int(row[c]) for row in rows) for c in summed}))
    head = (by.upper(), *(c.replace("_", " ").upper() for c in (*counts, *shares)), *(("ESTIMATE",) if guesses else ()))
    return table(head, lines, right=frozenset(range(1, len(head))))


def _error(of: Mapping[str, Any]) -> str:
    """`+12% ±20%`: so much more was estimated than counted, and a request's estimate was so far off."""
    told = of["input_told"]
    if not told:
        return "-"
    return f"{round(100 * (of['input_estimated'] - told) / told):+}% ±{round(100 * of['input_missed'] / told)}%"


def _share(part: int, of: int) -> str:
    """Per cent, never 0 or 100 for what is not."""
    if not part or part == of:
        return "-" if not part else "100%"
    return f"{min(99, max(1, round(100 * part / of)))}%"


def usage_csv(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """RFC 4180, with a header; the same columns, with numbers of rows instead of shares."""
    if not rows:
        return ""
    out = io.StringIO()
    columns = [by, *(c for c in (*COUNTS, "rows", *SHARES, *GUESSES, "zone") if c in rows[0])]
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([row[c] for c in columns] for row in rows)
    return out.getvalue()
