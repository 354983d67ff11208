"""What CI mode adds to a report: the verdict, what is new, what was reached and by which step. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentmon.ci.baseline import Compared, Reached
from agentmon.ci.session import Session
from agentmon.events import rfc3339
from agentmon.render.learn import because_text
from agentmon.render.report import Report, Section, as_object, table
from agentmon.render.words import duration, listed

_MOST = 200  # destinations that are shown


def with_ci(report: Report, session: Session, compared: Compared, baseline: str) -> Report:
    """:param baseline: the file's name, "" where nothing was compared."""
    return replace(report, found=verdict(report, session, compared, baseline), first=_sections(compared, baseline))


def verdict(report: Report, session: Session, compared: Compared, baseline: str) -> str:
    """One sentence or a few: what was held, how, for how long, and what was not expected."""
    took = duration((session.stopped_ns or report.until_ns) - session.started_ns)
    held = "observed" if session.mode == "observe" else "held to its policy"
    still = "" if session.stopped_ns else " so far"
    words = [f"{session.what} was {held} for {took}{still}: {_many(len(compared.reached), 'destination')}."]
    if baseline and compared.clean:
        clean = f"All of it is in {baseline}." if compared.reached else f"Nothing was told that is not in {baseline}."
        words.append(clean)
    elif baseline:
        what = [_many(len(compared.new), "destination") + f" not in {baseline}"] if compared.new else []
        what += [f"{len(compared.untold)} that no rule can say"] if compared.untold else []
        what += [_many(compared.lost, "event") + " lost"] if compared.lost else []
        words.append(f"Not as expected: {listed(what)}.")
    return " ".join(words)


def as_ci_object(report: Report, session: Session, compared: Compared, baseline: str) -> dict[str, Any]:
    """`ci report --json`: as `report --json`, with what CI mode adds in `ci`."""
    return as_object(report) | {
        "ci": {
            "what": session.what,
            "mode": session.mode,
            "started": rfc3339(session.started_ns),
            "stopped": rfc3339(session.stopped_ns) if session.stopped_ns else None,
            "baseline": baseline or None,
            "clean": compared.clean if baseline else None,
            "lost": compared.lost,
            "new": list(compared.new) if baseline else None,
            "untold": [{"what": what, "because": because} for what, because in compared.untold],
            "reached": [
                {"rule": r.rule, "new": r.new if baseline else None, "count": r.count, "steps": list(r.steps),
                 "processes": list(r.processes), "refused": r.refused} for r in compared.reached
            ],
        }
    }  # fmt: skip


def _sections(compared: Compared, baseline: str) -> tuple[Section, ...]:
    head = ("destination", "step", "program", "times", "came of it")
    new = [_row(one) for one in compared.reached if one.new][:_MOST]
    rest = [_row(one) for one in compared.reached if not (one.new and baseline)][:_MOST]
    untold = [(what or "others", because_text(because)) for what, because in compared.untold]
    found: list[Section] = [("Not in the baseline", table(head, new), "nothing is new")] if baseline else []
    found.append(("Reached, as expected" if baseline else "Reached", table(head, rest), "nothing was told"))
    if untold:
        found.append(("What no rule can say", table(("destination", "why"), untold), ""))
    shown = len(new) + len(rest) if baseline else len(rest)
    if shown < len(compared.reached):
        left = [("destinations", str(len(compared.reached) - shown))]
        found.append(("Not shown", table(("what", "how many"), left), ""))
    return tuple(found)


def _row(one: Reached) -> tuple[str, ...]:
    return (
        one.rule,
        listed(one.steps),
        listed(one.processes),
        str(one.count),
        "refused" if one.refused else "let through",
    )


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
