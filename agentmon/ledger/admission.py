"""How much of a budget a request takes while it is in flight: pure rules, and the sizes that answers have had so far.

    full = by its own bound      likely = by the size that 99 of 100 answers of the model stayed below; else full
    room for likely, and all in flight at their full sizes overspend by SLACK at most → likely
    otherwise, and nothing is in flight                                               → what is left
    otherwise                                                                         → not now: wait for settlements

So however many are in flight, a budget is overspent by SLACK or one last request, and what answers exceed estimates.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from agentmon.ledger.state import Gauge

SLACK_PERMILLE = 100
GONE_NS = 2_000_000_000  # four times the longest that exchange.py lets pass between two askings
_MODELS = 256  # kept; a job may name any number of them
_ENOUGH = 50  # answers, before their sizes say something
_FADE = 1000  # answers, after which the older half counts half
_STEPS = 4  # sizes a doubling: a bound is at most a quarter too large


@dataclass(frozen=True, slots=True)
class Full:
    """`gauge` has less room than the request may need. `spent`: for good; else until requests in flight are settled."""

    gauge: Gauge
    spent: bool


def admit(gauges: Sequence[Gauge], full: int, likely: int) -> int | Full:
    """Weighted tokens to hold for a request that is checked against `gauges`.

    :param full: what it may cost by its own bound. :param likely: at most `full`.
    """
    for gauge in gauges:  # a spent budget explains more than one that is full of holds
        if gauge.spent:
            return Full(gauge, spent=True)
    short = [g for g in gauges if g.room < likely or g.worst + full > _most(g)]
    for gauge in short:
        if gauge.pool.held:
            return Full(gauge, spent=False)
    return min(g.room for g in gauges) if short else likely


def _most(gauge: Gauge) -> int:
    return gauge.budget.tokens * (1000 + SLACK_PERMILLE) // 1000


class Queue:
    """Who was told to wait, in the order of their first asking, so that who settles does not always come first again.

    A waiter that has not asked for GONE_NS has given up.
    """

    def __init__(self) -> None:
        self._waiters: dict[Hashable, tuple[Gauge, int]] = {}

    def behind(self, who: Hashable, gauges: Sequence[Gauge], now_ns: int) -> Full | None:
        """What `who` has to wait for because somebody else has waited for it longer."""
        if not self._waiters:
            return None
        for other in [w for w, (_, asked_ns) in self._waiters.items() if now_ns - asked_ns > GONE_NS]:
            del self._waiters[other]
        pools = {id(gauge.pool): gauge for gauge in gauges}
        for other, (gauge, _) in self._waiters.items():
            if other == who:
                return None
            mine = pools.get(id(gauge.pool))
            if mine is not None and not mine.spent:
                return Full(mine, spent=False)
        return None

    def note(self, who: Hashable, decided: int | Full, now_ns: int) -> None:
        """Keep who waits; forget who was admitted or refused."""
        if isinstance(decided, Full) and not decided.spent:
            self._waiters[who] = decided.gauge, now_ns
        elif self._waiters:
            self._waiters.pop(who, None)


@dataclass(slots=True)
class _Sizes:
    """A histogram: how many answers had a size of each step."""

    steps: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, tokens: int) -> None:
        step = _step(tokens)
        self.steps[step] = self.steps.get(step, 0) + 1
        self.count += 1
        if self.count >= _FADE:
            self.steps = {at: n // 2 for at, n in self.steps.items() if n > 1}
            self.count = sum(self.steps.values())

    def bound(self) -> int | None:
        if self.count < _ENOUGH:
            return None
        above = self.count // 100
        for step in sorted(self.steps, reverse=True):
            above -= self.steps[step]
            if above < 0:
                return _top(step)
        return None


class Learned:
    """Sizes of output by (provider, model). Memory only: a new ledger process holds full sizes at first."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], _Sizes] = {}

    def add(self, provider: str, model: str, output: int) -> None:
        """An answer of `output` tokens that the provider told completely."""
        sizes = self._models.pop((provider, model), None) or _Sizes()
        self._models[provider, model] = sizes  # the one that was not seen for longest goes first
        if len(self._models) > _MODELS:
            del self._models[next(iter(self._models))]
        sizes.add(output)

    def likely(self, provider: str, model: str, output: int) -> int:
        """Tokens that an answer will hardly exceed; at most `output`, which is the request's own bound."""
        sizes = self._models.get((provider, model))
        bound = sizes.bound() if sizes is not None else None
        return output if bound is None else min(bound, output)


def _step(tokens: int) -> int:
    """The number of the step that `tokens` lies in: _STEPS to each doubling."""
    doubling = max(tokens, _STEPS).bit_length() - _STEPS.bit_length()
    return doubling * _STEPS + (max(tokens, 0) >> doubling)


def _top(step: int) -> int:
    """The largest number of tokens in a step."""
    if step < _STEPS:
        return step
    doubling, part = divmod(step, _STEPS)
    return ((part + _STEPS + 1) << (doubling - 1)) - 1
