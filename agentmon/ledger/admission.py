"""How much of a budget a request takes while it is in flight: pure rules.

    full = by its own bound      likely = by the size that 99 of 100 answers of the model stayed below; else full
    room for likely, and all in flight at their full sizes overspend by SLACK at most,
    or would without this one not overspend at all                                    → likely
    otherwise, and nothing is in flight                                               → what is left
    otherwise                                                                         → not now: wait for settlements

So however many are in flight, a budget is overspent by SLACK or one last request, and what answers exceed estimates.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from agentmon.ledger.state import Gauge

SLACK_PERMILLE = 100
GONE_NS = 2_000_000_000  # four times the longest that exchange.py lets pass between two askings


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
    short = [g for g in gauges if g.room < likely or (g.worst + full > _most(g) and g.worst > g.budget.tokens)]
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
