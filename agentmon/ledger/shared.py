"""A book of one host among several: it decides as every book does, and tells its store what others must learn of it.

    turn taken ─▶ others() what they have changed since ─▶ ask() ─▶ take(): own changes, and touched(): pools that moved

Totals and pools in memory are those of all hosts, as of the last turn that was seen; runs and holds are the host's own.
What others spend may cross a budget of this host: others() finds it, and cuts here. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

from agentmon import wire
from agentmon.ledger import budget
from agentmon.ledger.approvals import Proposals
from agentmon.ledger.book import Book, request_of
from agentmon.ledger.state import (
    Account,
    Defined,
    Gauge,
    Hold,
    Lookup,
    Place,
    Pool,
    PoolKey,
    Run,
    Snapshot,
    Total,
    TotalKey,
)

OWN_SCOPES = frozenset({"agent", "bottle"})  # their budgets belong to one run
PoolLevels = tuple[int, int, int]  # held, progress, exposed
_Watched = tuple[Gauge, str, int]  # with its provider, and the level it had


class SharedLookup(Lookup, Protocol):
    """Many keys in one question: each one costs a way to the server and back."""

    def totals(self, keys: list[TotalKey]) -> dict[TotalKey, int]: ...
    def pools(self, keys: list[PoolKey]) -> dict[PoolKey, PoolLevels]: ...
    def expect(self, requests: list[tuple[str, str]]) -> None: ...


class SharedBook(Book):
    """:param snapshot: runs, budgets of runs and holds of this host; shared budgets of all."""

    lookup: SharedLookup

    def __init__(self, snapshot: Snapshot, lookup: SharedLookup, *, hold_ns: int) -> None:
        self._moved: dict[PoolKey, Pool] = {}
        self._watched: list[tuple[Gauge, str]] | None = None
        self._progressed: dict[int, Hold] = {}
        self._reading = False
        super().__init__(snapshot, lookup, hold_ns=hold_ns)
        self._reading = True
        self.pools_are(lookup.pools(list(self._pools)))
        self._moved.clear()

    # ── what others did ──────────────────────────────────────────────────────

    def watch(self) -> list[_Watched]:
        """Every budget that governs or informs here, with its level now."""
        if self._watched is None:
            places = [
                (run, scope, name, b)
                for run in self.slots.values() for scope, name in run.scopes for b in self.budgets_of(run, scope, name)
            ]  # fmt: skip
            self._know_totals(
                [(scope, name, b.provider, b.per, self._window(run, b.per)) for run, scope, name, b in places]
            )
            self._know((scope, name, b.provider, run.run if b.per == "run" else "") for run, scope, name, b in places)
            found = {}
            for run, scope, name, b in places:
                gauge = self._gauge(scope, name, run.run if scope in OWN_SCOPES else "", b, run)
                found[gauge.total.key, gauge.run, b] = gauge, b.provider
            self._watched = list(found.values())
        return [(gauge, provider, gauge.level) for gauge, provider in self._watched]

    def spent(self, run: Run | None = None) -> list[wire.Crossed]:
        self.watch()
        return super().spent(run)

    def others(self, totals: Iterable[tuple[TotalKey, int]], pools: Iterable[tuple[PoolKey, PoolLevels]]) -> None:
        """Take over what other hosts have changed; what crosses a budget here by it is among take()'s crossings."""
        before = self.watch() if self._windows else []
        for key, used in totals:
            if (total := self._totals.get(key)) is not None:
                total.used = used
        self.pools_are(dict(pools))
        for gauge, provider, was in before:
            if (crossed := self.crossing(gauge, provider, was)) is not None:
                self.crossed.append(crossed)
        self.proposals = Proposals(self.lookup)  # others may have given numbers

    def pools_are(self, found: Mapping[PoolKey, PoolLevels]) -> None:
        for key, levels in found.items():
            if (pool := self._pools.get(key)) is not None:
                pool.held, pool.progress, pool.exposed = levels

    def shared_budgets_are(self, budgets: Mapping[Place, dict[str, Defined]]) -> None:
        """Another host has set one; what is spent by it is cut here."""
        before = {(c.scope, c.name, c.provider, c.per) for c in self.spent()} if self._windows else set()
        own = {place: defined for place, defined in self.budgets.items() if place[2]}
        self.budgets = {**own, **{place: dict(defined) for place, defined in budgets.items()}}
        self._forget_accounts()
        if self._windows:
            self.crossed += [c for c in self.spent() if (c.scope, c.name, c.provider, c.per) not in before]

    def charge_strange(self, holds: Iterable[Hold]) -> None:
        """Charge the holds of a host that has gone: nobody else will. Their pools are in the figures of all hosts."""
        for hold in holds:
            self.holds[hold.id] = hold
            self.keys[hold.owner, hold.run.id, hold.key] = hold
            self._charge_estimate(hold)

    def will_ask(self, asked: Iterable[Any]) -> list[tuple[str, str]]:
        """(provider, request id) of all that a batch is going to look for among the rows."""
        settled = ((m, self.holds.get(m.hold)) for m in asked if isinstance(m, wire.Settle))
        return [(hold.provider, request_of(m, hold)) for m, hold in settled if hold is not None]

    # ── what others must learn ───────────────────────────────────────────────

    def touched(self) -> dict[PoolKey, Pool]:
        """Pools that have moved since it was last asked."""
        moved, self._moved = self._moved, {}
        return moved

    def took_progress(self) -> list[Hold]:
        """Holds whose streams have told something since it was last asked, and that are still there."""
        told, self._progressed = self._progressed, {}
        return [hold for id, hold in told.items() if id in self.holds]

    def put_hold(self, hold: Hold) -> None:
        super().put_hold(hold)
        self._move(hold)

    def forget_hold(self, hold: Hold) -> None:
        super().forget_hold(hold)
        self._move(hold)

    def _tell(self, m: wire.Progress) -> wire.Message:
        answer = self._progress(m)
        if (hold := self.holds.get(m.hold)) is not None:
            self._progressed[hold.id] = hold
            self._move(hold)
        return answer

    def _move(self, hold: Hold) -> None:
        keys = _pool_keys(hold.run, hold.provider)
        self._moved.update(zip(keys, self._pools_of(hold), strict=True))

    # ── many keys at once ────────────────────────────────────────────────────

    def _account(self, run: Run, provider: str) -> Account:
        names = (provider, budget.ANY)
        totals = [
            (scope, name, who, per, self._window(run, per))
            for scope, name in run.scopes for who in names for per in budget.PERIODS
        ]  # fmt: skip
        self._know_totals(totals)
        self._know(_pool_keys(run, provider))
        return super()._account(run, provider)

    def _pools_of(self, hold: Hold) -> Iterable[Pool]:
        self._know(_pool_keys(hold.run, hold.provider))
        return super()._pools_of(hold)

    def _pool(self, key: PoolKey) -> Pool:
        self._know((key,))
        return self._pools[key]

    def _know_totals(self, keys: Iterable[TotalKey]) -> None:
        missing = [key for key in dict.fromkeys(keys) if key not in self._totals]
        if missing:
            found = self.lookup.totals(missing)
            self._totals.update((key, Total(key, found.get(key, 0))) for key in missing)

    def _know(self, keys: Iterable[PoolKey]) -> None:
        missing = [key for key in dict.fromkeys(keys) if key not in self._pools]
        if missing:
            found = self.lookup.pools(missing) if self._reading else {}
            self._pools.update((key, Pool(*found.get(key, (0, 0, 0)))) for key in missing)

    def _forget_accounts(self) -> None:
        """In the middle of a batch pools stay: the database does not have what has moved in them."""
        if self._moved:
            self._accounts.clear()
        else:
            super()._forget_accounts()
        self._watched = None

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], wire.Message | None]]] = {
        **Book._HANDLERS, wire.Progress: _tell,
    }  # fmt: skip


def _pool_keys(run: Run, provider: str) -> list[PoolKey]:
    """In the order of Account.pools."""
    return [
        (scope, name, who, which)
        for scope, name in run.scopes for who in (provider, budget.ANY) for which in (run.run, "")
    ]  # fmt: skip
