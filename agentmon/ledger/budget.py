"""Pure rules of budgets: windows, weights, which scope governs, how much may be held, what was crossed.

    weighted tokens = floor(sum(count * permille) / 1000)     level = settled + what streams in flight reported
    room = tokens - used - held                             crossed: level < tokens before, ≥ tokens after

The nearest scope that defines a budget for the provider (or for "*") governs; `ceiling` is checked as well. A shadow
budget never governs: it only records what it would have cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from agentmon import wire

PERIODS = ("run", "hour", "day", "week", "month")
SCOPES = ("agent", "bottle", "parent", "host", "ceiling")
ANY = "*"
INFORM = (80, 90, 95, 99)  # per cent
CUTS = 100
DEFAULT_WEIGHTS = {"input": 1000, "cache_write": 1000, "cache_read": 100, "output": 1000}
_NAME = 64  # characters of a provider's name
MAX_TOKENS = 1 << 40  # of one count; more is nonsense from a hostile request or a broken provider


@dataclass(frozen=True, slots=True)
class Weights:
    """Per mille of each kind of token."""

    input: int
    cache_write: int
    cache_read: int
    output: int

    @classmethod
    def of(cls, given: Mapping[str, int]) -> Weights:
        """What is absent from `given` has its documented default."""
        return cls(**{name: given.get(name, default) for name, default in DEFAULT_WEIGHTS.items()})

    def weigh(self, usage: wire.Usage) -> int:
        """Weighted tokens of a row; `reasoning` is part of `output` and not added."""
        return (
            usage.input * self.input
            + (usage.cache_write_5m + usage.cache_write_1h) * self.cache_write
            + usage.cache_read * self.cache_read
            + usage.output * self.output
        ) // 1000

    def hold(self, input: int, output: int) -> int:
        """Weighted tokens to hold for an estimate, at least 1: requests that cost nothing are not metered."""
        return max(1, (input * self.input + output * self.output) // 1000)

    def shrink(self, input: int, output: int, tokens: int) -> tuple[int, int]:
        """The part of an estimate that fits `tokens`: output gives way first. What an unsettled hold is charged."""
        if self.hold(input, output) <= tokens:
            return input, output
        if self.input and input * self.input > tokens * 1000:
            return tokens * 1000 // self.input, 0
        return input, (tokens * 1000 - input * self.input) // self.output


def windows(now_ns: int, zone: tzinfo | None = None) -> dict[str, str]:
    """The keys of the current hour, day, week and month in `zone` (None: the host's).

    hour: UTC time of its start, so that a repeated local hour is two windows. day: 2026-01-31. week: its Monday.
    month: 2026-01. `budget_v` computes the same keys in SQL.
    """
    utc = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
    local = utc.astimezone(zone)
    hour = utc - timedelta(minutes=local.minute)
    monday = local.date() - timedelta(days=local.weekday())
    return {
        "hour": f"{hour:%Y-%m-%dT%H:%M}Z",
        "day": f"{local:%Y-%m-%d}",
        "week": f"{monday:%Y-%m-%d}",
        "month": f"{local:%Y-%m}",
    }


def is_provider(name: str) -> bool:
    return 0 < len(name) <= _NAME and name != ANY


def matches(budget: wire.BudgetDef, provider: str) -> bool:
    return budget.provider in (provider, ANY)


Scopes = Sequence[tuple[str, str, Sequence[wire.BudgetDef]]]


def governing(scopes: Scopes, provider: str) -> list[tuple[str, str, wire.BudgetDef]]:
    """The budgets a request to `provider` is checked against: of the nearest defining scope, then of each ceiling.

    :param scopes: (scope, name, its budgets), most specific first.
    """
    nearest: list[tuple[str, str, wire.BudgetDef]] = []
    above: list[tuple[str, str, wire.BudgetDef]] = []
    for scope, name, budgets in scopes:
        found = [(scope, name, b) for b in budgets if matches(b, provider) and not b.shadow]
        if scope == "ceiling":
            above += found
        elif not nearest:
            nearest = found
    return nearest + above


def why(scopes: Scopes, scope: str, name: str, budget: wire.BudgetDef) -> str:
    """One sentence: whether this budget of a bottle's `scopes` decides, and what makes it so."""
    if budget.shadow:
        return "a shadow budget: recorded, never cuts"
    if scope == "ceiling":
        return "a ceiling: checked whatever narrower scope governs"
    near_scope, near_name, _ = governing(scopes, budget.provider)[0]
    if (near_scope, near_name) != (scope, name):
        return f"does not govern: {near_scope} {near_name} is nearer and has a budget for {budget.provider}"
    others = sorted({b.provider for _, _, budgets in scopes for b in budgets if budget.provider == ANY} - {ANY})
    elsewhere = [
        f"{other} has {at} {of}" for other in others
        for at, of, _ in governing(scopes, other)[:1] if at != "ceiling" and (at, of) != (scope, name)
    ]  # fmt: skip
    return f"governs: the nearest scope with a budget for {budget.provider}" + "".join(f"; but {e}" for e in elsewhere)


def problem(budget: wire.BudgetDef) -> str:
    """What is wrong with a budget, "" for nothing."""
    if budget.per not in PERIODS:
        return f"per: {budget.per!r} is not one of {', '.join(PERIODS)}"
    if not 0 <= budget.tokens < 1 << 62:
        return f"tokens: {budget.tokens} is not a number of tokens"
    if budget.provider != ANY and not is_provider(budget.provider):
        return f"provider: {budget.provider!r} is not a provider's name"
    return ""


def room(tokens: int, used: int, held: int) -> int:
    """What may still be held; never negative. A spent budget has no room whatever is held."""
    return max(0, tokens - used - held)


def threshold(tokens: int, before: int, after: int) -> int:
    """The highest of 80, 90, 95, 99, 100 per cent that was reached by going from `before` to `after`; 0 for none.

    A budget of 0 tokens is crossed by the first token.
    """
    if before < max(tokens, 1) <= after:
        return CUTS
    if after >= tokens:
        return 0
    return max((t for t in INFORM if before * 100 < t * tokens <= after * 100), default=0)
