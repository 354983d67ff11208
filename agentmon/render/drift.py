"""A drift report for people and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentmon.drift.compare import drifted
from agentmon.drift.model import Difference, Observation, Weight
from agentmon.render.words import printable


def text(was: Observation, now: Observation, found: Sequence[Difference]) -> str:
    head = f"{now.provider} ({now.host}) beside the baseline of {was.at}"
    if not found:
        return f"{head}: nothing differs in {len(now.answers)} answers"
    lines = [head]
    for difference in found:
        lines.append(f"{difference.weight.value:<8} {printable(difference.where)}: {difference.what}")
        lines += [f"         - {printable(difference.was)}", f"         + {printable(difference.now)}"]
    counts = [(w, sum(d.weight is w for d in found)) for w in Weight]
    return "\n".join([*lines, "", ", ".join(f"{n} {w.value}" for w, n in counts if n)])


def as_object(was: Observation, now: Observation, found: Sequence[Difference]) -> dict[str, Any]:
    return {
        "provider": now.provider,
        "host": now.host,
        "baseline": was.at,
        "at": now.at,
        "drifted": drifted(list(found)),
        "differences": [
            {"weight": d.weight.value, "where": d.where, "was": d.was, "now": d.now, "what": d.what} for d in found
        ],
    }
