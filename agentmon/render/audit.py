"""The audit as a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agentmon.render.table import table
from agentmon.render.words import printable

_HEAD = ("TIME", "USER", "ACTION", "TARGET", "RESULT", "DETAIL")


def audit_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row, in local time. What was refused says so under RESULT."""
    return table(_HEAD, [_row(row) for row in rows])


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    detail = dict(row["detail"])
    result = printable(str(detail.pop("result", "done")))
    more = " ".join(f"{key}={value}" for key, value in sorted(detail.items()) if value not in ("", None))
    moment = datetime.fromisoformat(str(row["ts"])[:19] + "+00:00").astimezone()
    return (
        f"{moment:%Y-%m-%d %H:%M:%S}", printable(str(row["user"])), printable(str(row["action"])),
        printable(str(row["target"])), result, printable(more),
    )  # fmt: skip
