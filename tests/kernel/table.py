"""What the matrix found, as lines for a person. Pure.

kernel  release               boot   tests  passed  failed  skipped  LSM  fentry
6.1     6.1.0-50-amd64        14 s   290 s      93       0        1  yes  yes
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

HEAD = ("kernel", "release", "boot", "tests", "passed", "failed", "skipped", "LSM", "fentry")
_LEFT = 2  # columns of words; the rest are figures, or short


@dataclass(frozen=True)
class Tests:
    """A junit file of pytest: how many, which failed, and why some were skipped."""

    passed: int = 0
    failed: tuple[tuple[str, str], ...] = ()  # (test, first line of the reason)
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One kernel. `trouble` says why there is no result, or not the whole of one."""

    kernel: str
    release: str = ""
    boot_s: float = 0.0
    tests: Tests = Tests()
    features: dict[str, str] = field(default_factory=dict)
    trouble: str = ""

    @property
    def good(self) -> bool:
        return not self.trouble and not self.tests.failed and self.tests.passed > 0


def read(junit: str) -> Tests:
    """Counts of a junit file ("xunit2" of pytest)."""
    failed, skipped, passed, seconds = [], Counter[str](), 0, 0.0
    for suite in ET.fromstring(junit).iter("testsuite"):
        seconds += float(suite.get("time", 0))
    for case in ET.fromstring(junit).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        bad = [part for part in case if part.tag in ("failure", "error")]
        skip = case.find("skipped")
        if bad:
            failed.append((name, _first_line(bad[0].get("message", ""))))
        elif skip is not None:
            skipped[_first_line(skip.get("message", ""))] += 1
        else:
            passed += 1
    return Tests(passed, tuple(failed), skipped, seconds)


def render(rows: list[Row]) -> list[str]:
    """The table, then what a reader has to know beside the figures."""
    cells = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(HEAD))]
    lines = [
        "  ".join(c.ljust(w) if n < _LEFT else c.rjust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    for row in rows:
        lines += [f"{row.kernel}: {row.trouble}"] if row.trouble else []
        lines += [f"{row.kernel}: failed: {text}" for text in _by_reason(row.tests.failed)]
        lines += [f"{row.kernel}: not there: {what}: {why}" for what, why in row.features.items() if why != "yes"]
        lines += [f"{row.kernel}: skipped {n}: {why}" for why, n in sorted(row.tests.skipped.items())]
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    def feature(name: str) -> str:
        found = row.features.get(name)
        return "-" if found is None else "yes" if found == "yes" else "no"

    counts = (row.tests.passed, len(row.tests.failed), row.tests.skipped.total())
    return (
        *(row.kernel, row.release or "-", f"{row.boot_s:.0f} s", f"{row.tests.seconds:.0f} s"),
        *(str(n) for n in counts),
        *(feature("LSM"), feature("fentry")),
    )


def _by_reason(failed: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each reason: a program that does not load fails every test of a file."""
    names: dict[str, list[str]] = {}
    for name, reason in failed:
        names.setdefault(reason, []).append(name)
    return [
        f"{which[0]}{f' and {len(which) - 1} more' if len(which) > 1 else ''}: {why}" for why, which in names.items()
    ]


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
