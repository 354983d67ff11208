"""Plain data for `agentmon usage`, `budget show` and `audit`: what the file says, plus which budget governs and why."""

from __future__ import annotations

from typing import Any

from agentmon import wire
from agentmon.ledger import budget
from agentmon.ledger.opening import opened
from agentmon.ledger.reading import BY

__all__ = ["BY", "audit", "budgets", "enforcement", "run_usage", "usage"]


def usage(by: str = "bottle", *, since_ns: int = 0, bottle: str = "", path: str = "") -> list[dict[str, Any]]:
    """`agentmon usage --by …`: one line per group.

    :raises errors.BadInput: an unknown `by`. :raises store.LedgerTrouble: no ledger that can be read.
    """
    with opened(path) as reader:
        return reader.usage(by, since_ns=since_ns, bottle=bottle)


def run_usage(run: str, *, path: str = "") -> dict[str, dict[str, Any]]:
    """`run --json-summary`: provider → sums of one run."""
    with opened(path) as reader:
        return reader.usage_of_run(run)


def budgets(*, path: str = "") -> list[dict[str, Any]]:
    """`budget show`: budget_v with `governs` (the runs it decides for) and `why`, a sentence."""
    with opened(path) as reader:
        lines, runs = reader.budgets(), reader.scopes()
    for line in lines:
        line["shadow"] = bool(line["shadow"])
        governed = [run for run, scopes in runs.items() if _governs(line, run, scopes, lines)]
        line["governs"] = governed
        line["why"] = _why(line, governed)
    return lines


def enforcement(*, since_ns: int = 0, bottle: str = "", path: str = "") -> list[dict[str, Any]]:
    with opened(path) as reader:
        return reader.enforcement(since_ns=since_ns, bottle=bottle)


def audit(*, since_ns: int = 0, path: str = "") -> list[dict[str, Any]]:
    """`agentmon audit`: who changed what, when."""
    with opened(path) as reader:
        return reader.audit(since_ns=since_ns)


def _governs(line: dict[str, Any], run: str, scopes: list[tuple[str, str]], lines: list[dict[str, Any]]) -> bool:
    defined = [
        (scope, name, [_budget(other) for other in lines if _is_of(other, scope, name, run)]) for scope, name in scopes
    ]
    mine = (line["scope"], line["name"], _budget(line))
    return _is_of(line, line["scope"], line["name"], run) and mine in budget.governing(defined, line["provider"])


def _is_of(line: dict[str, Any], scope: str, name: str, run: str) -> bool:
    own_window = line["per"] != "run" or line["window"] == run
    return (line["scope"], line["name"]) == (scope, name) and line["run"] in ("", run) and own_window


def _budget(line: dict[str, Any]) -> wire.BudgetDef:
    return wire.BudgetDef(line["provider"], line["tokens"], line["per"], bool(line["shadow"]))


def _why(line: dict[str, Any], governed: list[str]) -> str:
    if line["shadow"]:
        return "a shadow budget: recorded, never cuts"
    if line["scope"] == "ceiling":
        return "a ceiling: checked whatever narrower scope governs"
    if governed:
        return f"the nearest scope with a budget for {line['provider']}"
    return "no running bottle is charged here, or a narrower scope has its own budget"
