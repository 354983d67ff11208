"""`agentmon usage` as a table and as CSV. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from agentmon.render.table import table
from agentmon.render.words import printable, tokens

COUNTS = ("requests", "input", "cache_write", "cache_read", "output", "weighted")


def usage_table(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """One line per group, and a last one with the sum if there are several."""
    if not rows:
        return ""
    counts = [c for c in COUNTS if c in rows[0]]
    lines = [(printable(str(row[by])) or "-", *(tokens(row[c]) for c in counts)) for row in rows]
    if len(rows) > 1:
        lines.append(("all", *(tokens(sum(int(row[c]) for row in rows)) for c in counts)))
    head = (by.upper(), *(c.replace("_", " ").upper() for c in counts))
    return table(head, lines, right=frozenset(range(1, len(counts) + 1)))


def usage_csv(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """RFC 4180, with a header; the same columns."""
    if not rows:
        return ""
    out = io.StringIO()
    columns = [by, *(c for c in COUNTS if c in rows[0])]
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([row[c] for c in columns] for row in rows)
    return out.getvalue()
