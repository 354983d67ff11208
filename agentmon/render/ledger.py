"""What `agentmon ledger check` says and `agentmon ledger export --csv` writes. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from agentmon.render.words import printable


class Finding(Protocol):
    """agentmon.ledger.check.Finding."""

    @property
    def what(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def problems(self) -> Sequence[str]: ...
    @property
    def notes(self) -> Sequence[str]: ...


def check_text(findings: Sequence[Finding]) -> str:
    """A line for each check, its problems under it, and the verdict."""
    lines: list[str] = []
    for finding in findings:
        verdict = f"{len(finding.problems)} wrong" if finding.problems else "in order"
        lines.append(f"{finding.what} ({finding.count}): {verdict}")
        lines += [f"  {printable(problem)}" for problem in finding.problems]
        lines += [f"  note: {printable(note)}" for note in finding.notes]
    bad = any(finding.problems for finding in findings)
    lines.append("the ledger is damaged" if bad else "the ledger is in order")
    return "\n".join(lines) + "\n"


def check_object(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for --json."""
    return {
        "ok": not any(finding.problems for finding in findings),
        "checked": [{"what": f.what, "count": f.count} for f in findings],
        "problems": [problem for f in findings for problem in f.problems],
        "notes": [note for f in findings for note in f.notes],
    }


def csv_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """RFC 4180 with a header, a line at a time, without their ends; nothing for no rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="")
    for n, row in enumerate(rows):
        for values in (row.keys(), row.values()) if n == 0 else (row.values(),):
            out.seek(0)
            out.truncate()
            writer.writerow(values)
            yield out.getvalue()
