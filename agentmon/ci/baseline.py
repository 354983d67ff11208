"""What a repository expects its CI to reach: a manifest with nothing but `allow:`, the same bytes for the same rules.

events ─ learn ─▶ rules that would allow them ┐
baseline ─▶ rules that do                     ┴─▶ Compared: known, new, and what no rule can say. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentmon.ci.steps import UNNAMED, Steps
from agentmon.policy.learn import Known, learn
from agentmon.policy.rules import Rule

_HEAD = """\
# What this repository's CI reaches: a manifest, which `agentmon policy check` reads and `agentmon ci start --enforce`
# holds to. Written by: agentmon ci report --update
"""
# Words of learn.py for what needs no rule, or was refused whatever the baseline says.
_HARMLESS = frozenset({"sorting", "lookup", "own", "deny", "protected"})


@dataclass(frozen=True, slots=True)
class Reached:
    """A destination as the rule that allows it. `refused`: it was tried, and never let through."""

    rule: str
    new: bool
    count: int
    steps: tuple[str, ...]
    processes: tuple[str, ...]
    refused: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """`untold`: (what, the word for why) that no rule can express. `lost`: events of that time that are missing."""

    reached: tuple[Reached, ...]
    untold: tuple[tuple[str, str], ...]
    lost: int = 0

    @property
    def new(self) -> tuple[str, ...]:
        return tuple(one.rule for one in self.reached if one.new)

    @property
    def clean(self) -> bool:
        """Whether everything is known, and was expected."""
        return not (self.new or self.untold or self.lost)


def text(rules: Iterable[str]) -> str:
    """The file: its rules in order, each once."""
    lines = [f"  - {json.dumps(rule)}\n" for rule in sorted(set(rules))]
    return _HEAD + ("allow:\n" + "".join(lines) if lines else "allow: []\n")


def compare(
    bottle: str, events: Sequence[Mapping[str, Any]], steps: Steps, baseline: Sequence[Rule], inspected: Sequence[str],
    *, lost: int = 0,
) -> Compared:  # fmt: skip
    """:param events: the contract's, of this bottle and session. :param inspected: hosts of providers.
    :param lost: events of that time that could not be recorded."""
    hosts = tuple(inspected)
    everything = learn(bottle, events, Known((), hosts))
    found = learn(bottle, events, Known(tuple(baseline), hosts))
    new = {str(one["rule"]) for one in found["rules"]}
    by_step: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        by_step.setdefault(steps.of(event), []).append(event)
    order = [*steps.names, UNNAMED]
    users: dict[str, list[str]] = {}
    for step in sorted(by_step, key=order.index):
        for known in (Known((), hosts), Known(tuple(baseline), hosts)):
            for one in learn(bottle, by_step[step], known)["rules"]:
                mine = users.setdefault(str(one["rule"]), [])
                if step not in mine:
                    mine.append(step)
    rows = [*found["rules"], *(one for one in everything["rules"] if one["rule"] not in new)]
    untold = [(str(u["what"]), str(u["because"])) for u in found["not_proposed"] if u["because"] not in _HARMLESS]
    return Compared(tuple(_reached(one, new, users) for one in rows), tuple(untold), lost)


def _reached(one: Mapping[str, Any], new: set[str], users: Mapping[str, Sequence[str]]) -> Reached:
    rule = str(one["rule"])
    return Reached(
        rule=rule,
        new=rule in new,
        count=int(one["count"]),
        steps=tuple(users.get(rule, (UNNAMED,))),
        processes=tuple(one["processes"]),
        refused=list(one["verdicts"]) == ["refused"],
    )
