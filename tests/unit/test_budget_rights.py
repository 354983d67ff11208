"""Whose budgets a member of group agentmon may raise: those of his own bottle, whatever was spent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agentmon import wire
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon.ledger_link import LedgerLink
from agentmon.errors import BadInput, Refused
from agentmon.policy.effective import EffectivePolicy

JOB = Job(("agent",), (), "/", 1000, 1000, (), tty=False, owner=1000)
BOTTLE = Bottle(16, "one", "r1", Phase.CUT, EffectivePolicy("one", ()), JOB, 5)


class Ledger:
    """Answers Totals with these lines; keeps what else it is asked."""

    def __init__(self, *lines: dict[str, Any]) -> None:
        self.lines = lines
        self.asked: list[Any] = []

    def next_id(self) -> int:
        return 1

    async def call(self, message: Any) -> wire.Done:
        if isinstance(message, wire.Totals):
            return wire.Done(1, list(self.lines))
        self.asked.append(message)
        return wire.Done(1)


def line(scope: str, name: str, used: int = 50, *, governs: bool = True) -> dict[str, Any]:
    return {"scope": scope, "name": name, "provider": "claude", "per": "run", "tokens": 40, "used": used,
            "governs": governs}  # fmt: skip


def set_budget(ledger: Ledger, uid: int, spent: dict[str, Any] | None, provider: str = "claude") -> Any:
    bottle = replace(BOTTLE, spent=spent)
    asyncio.run(LedgerLink(ledger).set_budget(bottle, provider, 99, uid))  # type: ignore[arg-type]
    (asked,) = ledger.asked
    return asked.scope, asked.name, asked.run, asked.budget.tokens


@pytest.mark.parametrize("scope", ["parent", "host", "ceiling"])
def test_only_root_raises_what_others_are_charged_to(scope: str) -> None:
    ledger = Ledger()
    with pytest.raises(Refused, match=f"{scope} base spent its claude budget, 50 of 40 tokens: others") as caught:
        set_budget(ledger, 1000, line(scope, "base"))
    assert caught.value.hint == "sudo agentmon resume one --budget claude=99" and not ledger.asked
    assert set_budget(ledger, 0, line(scope, "base")) == (scope, "base", "", 99)


@pytest.mark.parametrize("scope", ["agent", "bottle"])
def test_a_member_raises_what_is_his_bottles_alone(scope: str) -> None:
    assert set_budget(Ledger(), 1000, line(scope, "one")) == (scope, "one", "r1", 99)


def test_where_nothing_is_spent_the_nearest_own_budget_is_set() -> None:
    agents = Ledger(line("agent", "reviewer", 1), line("bottle", "one", 1, governs=False), line("host", "host", 1))
    assert set_budget(agents, 1000, None) == ("agent", "reviewer", "r1", 99)
    assert set_budget(Ledger(line("host", "host", 1)), 1000, {}) == ("bottle", "one", "r1", 99)
    with pytest.raises(BadInput, match="which provider's budget is meant"):
        set_budget(Ledger(), 0, None, provider="")


def test_spent_are_the_budgets_that_decide_and_have_nothing_left() -> None:
    lines = line("bottle", "one"), line("host", "host", governs=False), line("ceiling", "host", 39)
    unlimited = line("bottle", "one", governs=False) | {"tokens": None}
    found = asyncio.run(LedgerLink(Ledger(*lines, unlimited)).spent(16))  # type: ignore[arg-type]
    assert found == [lines[0]]
