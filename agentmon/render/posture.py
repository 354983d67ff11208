"""The posture report: for a terminal, as Markdown, as one JSON object (docs/posture.schema.json). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import wrap
from typing import Any, Literal

import msgspec

from agentmon.events import rfc3339
from agentmon.posture.canary_facts import Attempt
from agentmon.posture.model import Finding, Status

_ORDER = (Status.FAIL, Status.WARN, Status.UNKNOWN, Status.OK)
_WORDS = {Status.FAIL: "failed", Status.WARN: "to look at", Status.UNKNOWN: "not seen", Status.OK: "good"}
_INDENT = " " * 9
_SHARED = 2


class FindingObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    title: str
    status: Literal["ok", "warn", "fail", "unknown"]
    evidence: str
    why: str
    remedy: str


class AttemptObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    technique: str
    outcome: str
    refused: bool
    layers: list[str]


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`posture --json`; `status` is the worst, `canary` null where it was not asked for."""

    ts: str
    took_ms: int
    status: Literal["ok", "warn", "fail", "unknown"]
    findings: list[FindingObject]
    canary: list[AttemptObject] | None


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of Report: docs/posture.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Report)}


def as_object(found: Sequence[Finding], attempts: Sequence[Attempt] | None, at_ns: int, took_ms: int) -> Report:
    findings = [FindingObject(f.id, f.title, f.status.value, f.evidence, f.why, f.remedy) for f in found]
    tried = [AttemptObject(a.technique, a.outcome, a.refused, list(a.layers)) for a in attempts or ()]
    return Report(rfc3339(at_ns), took_ms, _worst(found).value, findings, None if attempts is None else tried)


def text(found: Sequence[Finding], attempts: Sequence[Attempt] | None, width: int = 100) -> str:
    """What is wrong first, with why and remedy; what is good as one line each."""
    lines = []
    for status in (Status.FAIL, Status.WARN, Status.UNKNOWN):
        for finding in (f for f in found if f.status is status):
            lines.append(f"{status.value:<8} {finding.title} ({finding.id})")
            lines += _wrapped(finding.evidence, "", width) + _wrapped(finding.why, "why: ", width)
            lines += _wrapped(finding.remedy, "do:  ", width)
    lines += _good([f for f in found if f.status is Status.OK], width)
    if attempts is not None:
        lines += ["", "canary: a bottle that attacked itself just now"]
        lines += [f"{_verdict(a):<8} {a.technique}: {a.outcome}{_by(a)}" for a in attempts]
    return "\n".join([*lines, "", _sum(found)])


def _good(found: Sequence[Finding], width: int) -> list[str]:
    """One line each; those that all say the same ("no bottle is running") share one."""
    lines = []
    for evidence in dict.fromkeys(f.evidence for f in found):
        same = [f for f in found if f.evidence == evidence]
        what = f"{len(same)} checks" if len(same) > _SHARED else ", ".join(f.title for f in same)
        lines += wrap(f"{what}: {evidence}", max(width, 40), initial_indent="ok       ", subsequent_indent=_INDENT)
    return lines


def markdown(found: Sequence[Finding], attempts: Sequence[Attempt] | None) -> str:
    lines = [
        "# agentmon posture",
        "",
        _sum(found),
        "",
        "| status | check | evidence | what to do |",
        "|---|---|---|---|",
    ]
    for status in _ORDER:
        lines += [
            f"| {status.value} | {_cell(f.title)} (`{f.id}`) | {_cell(f.evidence)} | "
            f"{_cell(f.remedy) if status is not Status.OK else ''} |"
            for f in found
            if f.status is status
        ]
    if attempts is not None:
        lines += ["", "## Canary", "", "| | technique | outcome | layers that told |", "|---|---|---|---|"]
        lines += [
            f"| {_verdict(a)} | {_cell(a.technique)} | {_cell(a.outcome)} | {', '.join(a.layers)} |" for a in attempts
        ]
    return "\n".join(lines) + "\n"


def _wrapped(words: str, label: str, width: int) -> list[str]:
    hanging = _INDENT + " " * len(label)
    return wrap(label + words, max(width, 40), initial_indent=_INDENT, subsequent_indent=hanging) if words else []


def _worst(found: Sequence[Finding]) -> Status:
    return next((status for status in _ORDER if any(f.status is status for f in found)), Status.OK)


def _sum(found: Sequence[Finding]) -> str:
    counts = Counter(f.status for f in found)
    return ", ".join(f"{counts[status]} {_WORDS[status]}" for status in _ORDER if counts[status])


def _verdict(attempt: Attempt) -> str:
    return "refused" if attempt.refused else "OPEN"


def _by(attempt: Attempt) -> str:
    return f" (told by {', '.join(attempt.layers)})" if attempt.layers else ""


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")
