"""Runs, scopes and budgets, and the accounts made of them: the part of the book that changes rarely.

An Account is computed once per (run, provider) and window, and then moved by each row: totals of every scope for
{provider, "*"} and {run, hour, day, week, month}, whether or not a budget is defined there: one defined later finds
true sums.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from agentmon import wire
from agentmon.ledger import budget
from agentmon.ledger.admission import Queue
from agentmon.ledger.approvals import Proposals
from agentmon.ledger.sizes import Learned
from agentmon.ledger.state import (
    Account,
    Changes,
    Defined,
    Gauge,
    Hold,
    Lookup,
    Now,
    Owner,
    Place,
    Pool,
    PoolKey,
    Row,
    Run,
    Snapshot,
    Total,
    TotalKey,
)

_MINUTE_NS = 60 * 1_000_000_000
_MAX_WEIGHT = 1_000_000
_RUN_SCOPES = frozenset({"agent", "bottle"})  # their budgets belong to one run; the others are shared


class Terms:
    """State and its bookkeeping.

    :param hold_ns: how long a hold lives without a sign of life.
    """

    def __init__(self, snapshot: Snapshot, lookup: Lookup, *, hold_ns: int) -> None:
        self.lookup = lookup
        self.hold_ns = hold_ns
        self.now = Now(0, 0)
        self.slots: dict[int, Run] = {run.slot: run for run in snapshot.runs}
        self.budgets: dict[Place, dict[str, Defined]] = dict(snapshot.budgets)
        self.holds: dict[int, Hold] = {}
        self.keys: dict[tuple[Owner, int, str], Hold] = {}  # by owner, run id, key
        self.next_run = snapshot.next_run
        self.next_hold = snapshot.next_hold
        self.changes = Changes()
        self.crossed: list[wire.Crossed] = []
        self.settled_requests: dict[tuple[str, str], Row] = {}  # of this batch; older ones are asked from the file
        self.settled_holds: dict[int, Row] = {}
        self._windows: dict[str, str] = {}
        self._accounts: dict[tuple[int, str], Account] = {}
        self._totals: dict[TotalKey, Total] = {}
        self._pools: dict[PoolKey, Pool] = {}
        self.learned = Learned(snapshot.sizes)
        self.queue = Queue()
        self.proposals = Proposals(lookup)
        for hold in snapshot.holds:
            self.put_hold(hold)

    def begin(self, now: Now) -> None:
        """Start a batch at `now`. Windows are looked at once a minute: they begin, and zones change, on minutes."""
        if now.wall_ns // _MINUTE_NS != self.now.wall_ns // _MINUTE_NS:
            self._windows = budget.windows(now.wall_ns)
            self._forget_accounts()
            self._totals.clear()
        self.now = now
        self.proposals.begin()

    def take(self) -> tuple[Changes, list[wire.Crossed]]:
        """The batch's changes and crossings; the next batch starts with none."""
        self.changes.sizes = self.learned.take()
        out = self.changes, self.crossed
        self.changes, self.crossed = Changes(), []
        self.settled_requests.clear()
        self.settled_holds.clear()
        return out

    # ── accounts ─────────────────────────────────────────────────────────────

    def account(self, run: Run, provider: str) -> Account:
        """What a row of `run` and `provider` moves now."""
        found = self._accounts.get((run.id, provider))
        if found is None:
            found = self._account(run, provider)
            self._accounts[run.id, provider] = found
            run.providers.add(provider)
        return found

    def _account(self, run: Run, provider: str) -> Account:
        names = (provider, budget.ANY)
        totals = tuple(
            self._total((scope, name, who, per, self._window(run, per)))
            for scope, name in run.scopes for who in names for per in budget.PERIODS
        )  # fmt: skip
        pools = tuple(
            self._pool((scope, name, who, which))
            for scope, name in run.scopes for who in names for which in (run.run, "")
        )  # fmt: skip
        gauges = tuple(
            self._gauge(scope, name, place_run, b, run)
            for scope, name in run.scopes
            for place_run, b in self._defined_at(scope, name)
            if budget.matches(b, provider) and (b.per != "run" or place_run in ("", run.run))
        )
        return Account(totals, pools, gauges, tuple(self.governing(run, provider)))

    def governing(self, run: Run, provider: str) -> list[Gauge]:
        """The gauges that admit or deny a request of `run` to `provider`."""
        scopes = [(scope, name, self.budgets_of(run, scope, name)) for scope, name in run.scopes]
        return [
            self._gauge(scope, name, _place_run(scope, run), b, run)
            for scope, name, b in budget.governing(scopes, provider)
        ]

    def budgets_of(self, run: Run, scope: str, name: str) -> list[wire.BudgetDef]:
        defined = self.budgets.get((scope, name, _place_run(scope, run)), {})
        return [b for d in defined.values() for b in d.budgets]

    def _defined_at(self, scope: str, name: str) -> list[tuple[str, wire.BudgetDef]]:
        """Budgets of this scope and name with the run they belong to; an agent's name may be in several runs."""
        runs = {""} if scope not in _RUN_SCOPES else {r.run for r in self.slots.values() if (scope, name) in r.scopes}
        return [
            (run, b)
            for run in sorted(runs) for d in self.budgets.get((scope, name, run), {}).values() for b in d.budgets
        ]  # fmt: skip

    def _gauge(self, scope: str, name: str, place_run: str, b: wire.BudgetDef, run: Run) -> Gauge:
        total = self._total((scope, name, b.provider, b.per, self._window(run, b.per)))
        pool = self._pool((scope, name, b.provider, run.run if b.per == "run" else ""))
        return Gauge(scope, name, place_run, b, total, pool)

    def _window(self, run: Run, per: str) -> str:
        return run.run if per == "run" else self._windows[per]

    def _total(self, key: TotalKey) -> Total:
        found = self._totals.get(key)
        if found is None:
            found = self._totals[key] = Total(key, self.lookup.total(key))
        return found

    def _pool(self, key: PoolKey) -> Pool:
        return self._pools.setdefault(key, Pool())

    def _forget_accounts(self) -> None:
        self._accounts.clear()
        self._pools = {key: pool for key, pool in self._pools.items() if pool.held or pool.progress}

    def put_hold(self, hold: Hold) -> None:
        self.holds[hold.id] = hold
        self.keys[hold.owner, hold.run.id, hold.key] = hold
        hold.run.providers.add(hold.provider)
        for pool in self._pools_of(hold):
            pool.held += hold.held
            pool.progress += hold.progress
            pool.exposed += hold.exposed

    def forget_hold(self, hold: Hold) -> None:
        del self.holds[hold.id]
        self.keys.pop((hold.owner, hold.run.id, hold.key), None)
        for pool in self._pools_of(hold):
            pool.held -= hold.held
            pool.progress -= hold.progress
            pool.exposed -= hold.exposed

    def _pools_of(self, hold: Hold) -> Iterable[Pool]:
        found = self._accounts.get((hold.run.id, hold.provider))
        if found is not None:
            return found.pools
        names = (hold.provider, budget.ANY)
        return [
            self._pool((scope, name, who, which))
            for scope, name in hold.run.scopes for who in names for which in (hold.run.run, "")
        ]  # fmt: skip

    def run_of(self, run_id: int) -> Run:
        """A run, also a closed one."""
        return next((r for r in self.slots.values() if r.id == run_id), None) or self.lookup.run(run_id)

    # ── crossings ────────────────────────────────────────────────────────────

    def crossed_of(self, gauge: Gauge, provider: str, threshold: int) -> wire.Crossed:
        """The message for a gauge, with the slots of all running bottles that it governs."""
        b = gauge.budget
        slots = sorted(
            run.slot for run in self._charged(gauge)
            if any(self._same(gauge, other) for p in {provider, b.provider} for other in self.governing(run, p))
        )  # fmt: skip
        return wire.Crossed(tuple(slots), gauge.scope, gauge.name, b.provider, b.per, b.tokens, gauge.level, threshold)

    def charged_to(self, gauge: Gauge) -> tuple[int, ...]:
        """Slots of all running bottles whose usage counts there, whether or not it governs them."""
        return tuple(sorted(run.slot for run in self._charged(gauge)))

    def _charged(self, gauge: Gauge) -> Iterable[Run]:
        per_run = gauge.total.key[4] if gauge.budget.per == "run" else ""
        for run in self.slots.values():
            if (gauge.scope, gauge.name) in run.scopes and per_run in ("", run.run) and gauge.run in ("", run.run):
                yield run

    @staticmethod
    def _same(a: Gauge, b: Gauge) -> bool:
        return (a.scope, a.name, a.run, a.budget) == (b.scope, b.name, b.run, b.budget)

    def spent(self, run: Run | None = None) -> list[wire.Crossed]:
        """A Crossed for every spent budget that governs a running bottle (or just `run`)."""
        found: dict[tuple[Any, ...], wire.Crossed] = {}
        for each in [run] if run else self.slots.values():
            providers = {b.provider for scope, name in each.scopes for b in self.budgets_of(each, scope, name)}
            for provider in sorted(providers):
                for gauge in self.governing(each, provider):
                    if gauge.spent:
                        found[gauge.total.key] = self.crossed_of(gauge, provider, 100)
        return list(found.values())

    def shadow_row(self, run: Run, gauge: Gauge) -> None:
        """What a shadow budget would have done."""
        by = f"{gauge.scope}:{gauge.name}"
        self._enforcement(run.bottle, run.run, "shadow", "budget", by, 0, "would have been cut")

    def _enforcement(self, *values: object) -> None:
        self.changes.statements.append(("enforcement", (self.now.wall_ns, *values)))

    def _audit(self, uid: int, action: str, target: str, detail: object) -> None:
        row = (self.now.wall_ns, uid, action, target, json.dumps(detail, sort_keys=True))
        self.changes.statements.append(("audit", row))

    # ── runs and budgets ─────────────────────────────────────────────────────

    def check_run(self, m: wire.OpenRun) -> wire.Failed | None:
        for definition in m.scopes:
            if definition.scope not in budget.SCOPES or not definition.name:
                what = f"scope {definition.scope!r} {definition.name!r}"
                return _bad(m.id, what, f"use one of {', '.join(budget.SCOPES)}")
            for b in definition.budgets:
                if wrong := budget.problem(b):
                    return _bad(m.id, f"budget of {definition.scope} {definition.name}: {wrong}")
        if not m.run or any(not 0 <= n <= _MAX_WEIGHT for n in m.weights.values()):
            return _bad(m.id, f"run {m.run!r} with weights {m.weights!r}", "weights are per mille, 0 to 1000000")
        return None

    def open_run(self, m: wire.OpenRun) -> wire.Message:
        """Open, or open again after a restart of the daemon: an operator's amounts stay then."""
        named = [(d.scope, d.name) for d in m.scopes]
        named += [own for own in (("bottle", m.bottle), ("host", "host")) if own[0] not in dict(named)]
        scopes, weights = tuple(dict.fromkeys(named)), budget.Weights.of(m.weights)
        run = Run(self.next_run, m.run, m.slot, m.bottle, m.agent, scopes, weights)
        known = next((r for r in self.slots.values() if r.run == m.run), None) or self.lookup.run_named(m.run)
        if known is not None:
            for slot in [s for s, r in self.slots.items() if r.run == m.run and s != m.slot]:
                del self.slots[slot]
            run = replace(known, slot=m.slot)
            self.changes.statements.append(("run_reopen", (m.slot, run.id)))
            for hold in self.holds.values():
                if hold.run.id == run.id:
                    hold.run = run
        else:
            self.next_run += 1
            text = json.dumps({n: getattr(weights, n) for n in budget.DEFAULT_WEIGHTS})
            row = (run.id, run.run, run.slot, run.bottle, run.agent, text, self.now.wall_ns)
            self.changes.statements.append(("run_open", row))
            for position, (scope, name) in enumerate(run.scopes):
                self.changes.statements.append(("run_scope", (run.id, position, scope, name)))
        self.slots[m.slot] = run
        given = {(d.scope, d.name): d.budgets for d in m.scopes}
        for scope, name in run.scopes:
            self._declare((scope, name, _place_run(scope, run)), given.get((scope, name), ()))
        self._forget_accounts()
        self.crossed += self.spent(run)
        return wire.Done(m.id)

    def close_run(self, run: Run) -> None:
        del self.slots[run.slot]
        for scope, name in run.scopes:
            if scope in _RUN_SCOPES:
                self.budgets.pop((scope, name, run.run), None)
        self.changes.statements.append(("run_close", (self.now.wall_ns, run.id)))
        self.proposals.withdraw(run.run, "the bottle has ended", self.now, self.changes)
        self._forget_accounts()

    def _declare(self, place: Place, budgets: Iterable[wire.BudgetDef]) -> None:
        """The policy's word on a place. Where it has not changed since an operator's, the operator's stands."""
        given: dict[str, list[wire.BudgetDef]] = {}
        for b in budgets:
            given.setdefault(b.provider, []).append(b)
        here = self.budgets.setdefault(place, {})
        for provider in sorted({*here, *given}):
            new = tuple(sorted(given.get(provider, []), key=lambda b: b.per))
            declared = msgspec.json.encode(new).decode() if new else ""
            old = here.get(provider)
            if old is not None and old.declared == declared and (old.origin == "operator" or old.budgets == new):
                continue
            self._put(place, provider, Defined(new, "policy", declared))

    def _put(self, place: Place, provider: str, defined: Defined) -> None:
        self.changes.statements.append(("budget_clear", (*place, provider)))
        for b in defined.budgets:
            row = (*place, provider, b.per, b.tokens, b.shadow, defined.origin, defined.declared)
            self.changes.statements.append(("budget_put", row))
        if defined.budgets:
            self.budgets.setdefault(place, {})[provider] = defined
        else:
            self.budgets.get(place, {}).pop(provider, None)

    def set_budget(self, m: wire.SetBudget) -> wire.Message:
        if m.scope not in budget.SCOPES or not m.name or budget.problem(m.budget):
            wrong = budget.problem(m.budget) or f"scope {m.scope!r} {m.name!r}"
            return _bad(m.id, f"budget: {wrong}", f"scopes are {', '.join(budget.SCOPES)}")
        runs = [r for r in self.slots.values() if m.run in ("", r.run) and (m.scope, m.name) in r.scopes]
        places: set[Place] = {(m.scope, m.name, _place_run(m.scope, r)) for r in runs}
        if m.scope == "host":
            places.add((m.scope, m.name, ""))
        if not places:
            return _bad(m.id, f"no running bottle is charged to {m.scope} {m.name!r}", "agentmon ps shows what runs")
        for place in sorted(places):
            old = self.budgets.get(place, {}).get(m.budget.provider)
            self._put(place, m.budget.provider, Defined((m.budget,), "operator", old.declared if old else ""))
        detail = {"provider": m.budget.provider, "tokens": m.budget.tokens, "per": m.budget.per, "run": m.run}
        self._audit(m.uid, "budget", f"{m.scope}:{m.name}", detail)
        self._forget_accounts()
        this = (m.scope, m.name, m.budget.provider)
        self.crossed += [c for c in self.spent() if (c.scope, c.name, c.provider) == this]
        return wire.Done(m.id)

    # ── questions and records of the daemon ──────────────────────────────────

    def ask_terms(self, message: Any) -> wire.Message | None:
        match message:
            case wire.SetBudget():
                return self.set_budget(message)
            case wire.Totals():
                return self._totals_of(message)
            case wire.Enforced():
                m = message
                self._enforcement(m.bottle, m.run, m.policy, m.trigger, m.by, m.latency_ns, m.result)
                return wire.Done(m.id)
            case wire.Audit():
                self._audit(message.uid, message.action, message.target, message.detail)
                return wire.Done(message.id)
            case wire.Proposed():
                return self.proposals.propose(message, self.now, self.changes)
            case wire.Decide():
                return self.proposals.decide(message, self.now, self.changes)
            case wire.Undecided():
                self.proposals.withdraw(message.run, message.reason, self.now, self.changes)
                return wire.Done(message.id)
        return None

    def _totals_of(self, m: wire.Totals) -> wire.Message:
        """Every budget of the run's scopes, then the bottle's use of providers that have none there (tokens null)."""
        run = self.slots.get(m.slot)
        if run is None:
            return wire.Failed(m.id, "Refused", f"slot {m.slot} has no open run", "agentmon ps shows what runs")
        lines: list[dict[str, Any]] = []
        scopes = [(scope, name, self.budgets_of(run, scope, name)) for scope, name in run.scopes]
        for scope, name, budgets in scopes:
            for b in budgets:
                gauge = self._gauge(scope, name, _place_run(scope, run), b, run)
                governs = any(self._same(gauge, g) for g in self.governing(run, b.provider))
                why = budget.why(scopes, scope, name, b)
                lines.append(_line(gauge, b.tokens) | {"shadow": b.shadow, "governs": governs, "why": why})
        limited = {line["provider"] for line in lines if line["scope"] == "bottle"}
        for provider in sorted(run.providers - limited):
            gauge = self._gauge("bottle", run.bottle, run.run, wire.BudgetDef(provider, 0), run)
            why = f"used; this bottle has no budget of its own for {provider}"
            lines.append(_line(gauge, None) | {"shadow": False, "governs": False, "why": why})
        return wire.Done(m.id, lines)


def _line(gauge: Gauge, tokens: int | None) -> dict[str, Any]:
    used, held = gauge.total.used, gauge.pool.held
    return {
        "scope": gauge.scope, "name": gauge.name, "provider": gauge.budget.provider, "per": gauge.budget.per,
        "tokens": tokens, "used": used, "held": held,
        "remaining": None if tokens is None else budget.room(tokens, used, held),
    }  # fmt: skip


def _place_run(scope: str, run: Run) -> str:
    return run.run if scope in _RUN_SCOPES else ""


def _bad(id: int, what: str, hint: str = "") -> wire.Failed:
    return wire.Failed(id, "BadInput", what, hint)
