"""The ledger's decisions, pure: a message and the state in, an answer, crossings and changes out.

    Reserve ─▶ governing budgets have room? ─▶ Hold (admission.py: its size) ─▶ Granted │ Denied
    Progress ─▶ level rises ─────────────────▶ crossed?                  ─▶ Done, Crossed
    Settle ─▶ seen before? ─▶ row, totals of all scopes, hold gone ─▶ crossed? ─▶ Settled, Crossed

Rows that settle a hold nobody settled (owner dead, expired, run closed) are estimates; when the true usage still
arrives, a second row corrects the first by the difference. Runs and budgets are in terms.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from agentmon import wire
from agentmon.ledger import budget
from agentmon.ledger.admission import Full, admit
from agentmon.ledger.state import Account, Gauge, Hold, Owner, Row, Run
from agentmon.ledger.terms import Terms

_COUNTS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")
_SOURCES = frozenset({"wire", "estimate", "reconciled"})
_TEXT = 256  # characters of a model, key or request id that are kept
_RAW_BYTES = 1 << 16
HOLD_BLOCK = 1 << 20  # hold ids are taken from the file in blocks: never used twice, also after a crash


@dataclass(frozen=True, slots=True)
class Sweep:
    """Settle the holds of these owners, and those that have expired."""

    dead: frozenset[Owner]


@dataclass(frozen=True, slots=True)
class Spent:
    """Ask for the Crossed of every budget that is spent now: for a daemon that was away when it happened."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """Another host has changed something; of use to a store that hosts share (postgres_store.py)."""


Asked = (
    wire.Reserve | wire.Settle | wire.Progress | wire.Release | wire.OpenRun | wire.CloseRun | wire.SetBudget
    | wire.Enforced | wire.Audit | wire.Proposed | wire.Decide | wire.Undecided | wire.Totals | Sweep | Spent
    | Refresh
)  # fmt: skip


class Book(Terms):
    """All open runs, budgets and holds. begin() before each batch, take() after it."""

    def ask(self, message: Asked, owner: Owner) -> wire.Message | None:
        """The answer to one message; `crossed` and `changes` grow. Never raises for what a peer says."""
        if isinstance(message, wire.Reserve):
            return self._reserve(message, owner)
        handler = self._HANDLERS.get(type(message))
        return handler(self, message) if handler else self.ask_terms(message)

    def owners(self) -> set[Owner]:
        return {hold.owner for hold in self.holds.values()}

    # ── holds ────────────────────────────────────────────────────────────────

    def _reserve(self, m: wire.Reserve, owner: Owner) -> wire.Message:
        run = self.slots.get(m.slot)
        if run is None:
            return wire.Failed(m.id, "Refused", f"slot {m.slot} has no open run", "agentmon ps shows what runs")
        if m.input < 0 or m.output < 0 or not budget.is_provider(m.provider):
            what = f"reserve of {m.input} + {m.output} tokens for provider {m.provider[:80]!r}"
            return wire.Failed(m.id, "BadInput", what)
        key = (owner, run.id, m.key)
        if (known := self.keys.get(key)) is not None:
            return wire.Granted(m.id, known.id, known.tokens)
        model, input, output = m.model[:_TEXT], min(m.input, budget.MAX_TOKENS), min(m.output, budget.MAX_TOKENS)
        full = run.weights.hold(input, output)
        likely = run.weights.hold(input, self.learned.likely(m.provider, model, output))
        gauges = self.account(run, m.provider).governing
        tokens = self.queue.behind(key, gauges, self.now.boot_ns) or admit(gauges, full, likely)
        self.queue.note(key, tokens, self.now.boot_ns)
        if isinstance(tokens, Full):
            g, b = tokens.gauge, tokens.gauge.budget
            return wire.Denied(
                m.id, g.scope, g.name, b.provider, b.tokens, g.total.used, g.pool.held, b.per, not tokens.spent
            )
        input, output = run.weights.shrink(input, output, tokens)
        hold = Hold(
            self._hold_id(), m.key, run, m.provider, model, input, output, tokens, owner,
            self.now.boot_ns + self.hold_ns, full=full,
        )  # fmt: skip
        self.put_hold(hold)
        self.changes.new_holds[hold.id] = hold
        return wire.Granted(m.id, hold.id, tokens)

    def _release(self, m: wire.Release) -> wire.Message:
        hold = self.holds.get(m.hold)
        if m.key:
            hold = next((h for h in self.holds.values() if (h.run.slot, h.key) == (m.slot, m.key)), None)
        if hold is not None:
            self._drop(hold)
        return wire.Done(m.id)

    def _progress(self, m: wire.Progress) -> wire.Message:
        hold = self.holds.get(m.hold)
        if hold is None:
            return wire.Done(m.id, False)
        if wrong := _wrong(m.usage):
            return wire.Failed(m.id, "BadInput", f"progress of hold {m.hold}: {wrong}")
        account = self.account(hold.run, hold.provider)
        before = _levels(account)
        weighted = hold.run.weights.weigh(m.usage)
        held, exposed = hold.held, hold.exposed
        moved, hold.progress, hold.usage = weighted - hold.progress, weighted, m.usage
        hold.expires_ns = self.now.boot_ns + self.hold_ns
        for pool in account.pools:
            pool.progress += moved
            pool.held += hold.held - held
            pool.exposed += hold.exposed - exposed
        self._crossings(hold.run, hold.provider, before)
        return wire.Done(m.id, any(g.spent for g in account.governing))

    def _hold_id(self) -> int:
        if self.next_hold % HOLD_BLOCK == 0:
            self.changes.next_hold = self.next_hold + HOLD_BLOCK
        self.next_hold += 1
        return self.next_hold - 1

    def _drop(self, hold: Hold) -> None:
        self.forget_hold(hold)
        if self.changes.new_holds.pop(hold.id, None) is None:
            self.changes.gone_holds.append(hold.id)

    # ── rows ─────────────────────────────────────────────────────────────────

    def _settle(self, m: wire.Settle) -> wire.Message:
        if wrong := _wrong(m.usage):
            return wire.Failed(m.id, "BadInput", f"settlement of hold {m.hold}: {wrong}")
        hold = self.holds.get(m.hold)
        if hold is None:
            return self._settle_late(m)
        request = request_of(m, hold)
        if (known := self._row_of(hold.provider, request)) is not None:
            if not _is_another(known.usage, m.usage):
                self._drop(hold)
                return wire.Settled(m.id, duplicate=True, crossed=self._is_spent(hold.run, hold.provider))
            request = f"{request}#{hold.id}"
        self._charge(hold, m.usage, request)
        return wire.Settled(m.id, crossed=self._is_spent(hold.run, hold.provider))

    def _settle_late(self, m: wire.Settle) -> wire.Message:
        """The hold is gone: a replay, or the truth about a row that was estimated."""
        row = self.settled_holds.get(m.hold) or self.lookup.by_hold(m.hold)
        if row is None:
            return wire.Failed(m.id, "BadInput", f"hold {m.hold} is not known: released, or never granted")
        run = self.run_of(row.run_id)
        provider = row.usage.provider
        request = request_id_of(m.usage) or f"late#{m.hold}"
        if (
            row.usage.source != "estimate"
            or m.usage.source == "estimate"
            or row.request_id == request
            or self._row_of(provider, request) is not None
        ):
            return wire.Settled(m.id, duplicate=True, crossed=self._is_spent(run, provider))
        before = _levels(self.account(run, provider))
        weighted = run.weights.weigh(m.usage) - run.weights.weigh(row.usage)
        truth = {name: getattr(m.usage, name) - getattr(row.usage, name) for name in _COUNTS}
        correction = wire.Usage(
            provider, m.usage.model[:_TEXT] or row.usage.model, request, **truth,
            source="reconciled", complete=m.usage.complete, raw=m.usage.raw,
        )  # fmt: skip
        self._append(run, correction, weighted, None)
        self._crossings(run, provider, before)
        return wire.Settled(m.id, crossed=self._is_spent(run, provider))

    def _charge(self, hold: Hold, usage: wire.Usage, request: str) -> None:
        """The row of a hold: totals rise, the hold goes, in one step, so that no level is seen in between."""
        before = _levels(self.account(hold.run, hold.provider))
        self._drop(hold)
        row = wire.Usage(
            hold.provider, usage.model[:_TEXT] or hold.model, request, usage.input, usage.cache_read,
            usage.cache_write_5m, usage.cache_write_1h, usage.output, usage.reasoning, usage.source, usage.complete,
            usage.raw,
        )  # fmt: skip
        self._append(hold.run, row, hold.run.weights.weigh(row), hold)
        if row.complete and row.source == "wire":
            self.learned.add(hold.provider, hold.model, row.output)
        self._crossings(hold.run, hold.provider, before)

    def _charge_estimate(self, hold: Hold) -> None:
        """Nobody will settle it: what the stream had reported, at least the estimated output."""
        seen = hold.usage or wire.Usage(hold.provider)
        told_input = seen.input or seen.cache_read or seen.cache_write_5m or seen.cache_write_1h
        input = seen.input if told_input else hold.input
        estimate = wire.Usage(
            hold.provider, seen.model, "", input, seen.cache_read, seen.cache_write_5m, seen.cache_write_1h,
            max(seen.output, hold.output), seen.reasoning, "estimate", False, seen.raw,
        )  # fmt: skip
        self._charge(hold, estimate, f"{hold.key[:_TEXT]}#{hold.id}")

    def _append(self, run: Run, row: wire.Usage, weighted: int, settled: Hold | None) -> None:
        hold, estimated = (settled.id, settled.input) if settled else (0, None)
        account = self.account(run, row.provider)
        for total in account.totals:
            total.used += weighted
        changes = self.changes
        changes.accounts[id(account)] = account
        changes.usage.append((
            self.now.wall_ns, run.id, hold or None, row.provider, row.model, row.request_id, row.input, row.cache_read,
            row.cache_write_5m, row.cache_write_1h, row.output, row.reasoning, weighted, row.source, row.complete,
            row.raw[:_RAW_BYTES], estimated,
        ))  # fmt: skip
        known = Row(run.id, row.request_id, hold, row)
        self.settled_requests[row.provider, row.request_id] = known
        if hold:
            self.settled_holds[hold] = known

    def _row_of(self, provider: str, request: str) -> Row | None:
        return self.settled_requests.get((provider, request)) or self.lookup.by_request(provider, request)

    # ── ends ─────────────────────────────────────────────────────────────────

    def _open(self, m: wire.OpenRun) -> wire.Message:
        if (wrong := self.check_run(m)) is not None:
            return wrong
        if (old := self.slots.get(m.slot)) is not None and old.run != m.run:
            self._end(old)
        return self.open_run(m)

    def _close(self, m: wire.CloseRun) -> wire.Message:
        run = self.slots.get(m.slot)
        if run is not None and run.run == m.run:
            self._end(run)
        return wire.Done(m.id)

    def _end(self, run: Run) -> None:
        for hold in [h for h in self.holds.values() if h.run is run]:
            self._charge_estimate(hold)
        self.close_run(run)

    def _sweep(self, m: Sweep) -> wire.Message | None:
        for hold in list(self.holds.values()):
            if hold.owner in m.dead or hold.expires_ns <= self.now.boot_ns:
                self._charge_estimate(hold)
        return None

    def _tell_spent(self, _m: Spent) -> wire.Message | None:
        return wire.Done(0, self.spent())

    # ── crossings ────────────────────────────────────────────────────────────

    def _is_spent(self, run: Run, provider: str) -> bool:
        return any(g.spent for g in self.account(run, provider).governing)

    def _crossings(self, run: Run, provider: str, before: Iterable[int]) -> None:
        for gauge, was in zip(self.account(run, provider).gauges, before, strict=True):
            if (crossed := self.crossing(gauge, provider, was)) is not None:
                self.crossed.append(crossed)
                if gauge.budget.shadow and crossed.threshold == budget.CUTS:
                    self.shadow_row(run, gauge)

    def crossing(self, gauge: Gauge, provider: str, was: int) -> wire.Crossed | None:
        """What to tell of a gauge whose level was `was`; None: nothing, or nobody here is concerned."""
        reached = budget.threshold(gauge.budget.tokens, was, gauge.level) if gauge.level != was else 0
        if not reached:
            return None
        crossed = self.crossed_of(gauge, provider, reached)
        if gauge.budget.shadow:
            return msgspec.structs.replace(crossed, slots=(), shadow=self.charged_to(gauge))
        return crossed if crossed.slots else None

    _HANDLERS: ClassVar[dict[type, Callable[[Book, Any], wire.Message | None]]] = {
        wire.Settle: _settle, wire.Progress: _progress, wire.Release: _release, wire.OpenRun: _open,
        wire.CloseRun: _close, Sweep: _sweep, Spent: _tell_spent,
    }  # fmt: skip


def _levels(account: Account) -> list[int]:
    return [gauge.level for gauge in account.gauges]


def _wrong(usage: wire.Usage) -> str:
    for name in _COUNTS:
        count = getattr(usage, name)
        if not 0 <= count <= budget.MAX_TOKENS:
            return f"{name} is {count}, not a count of tokens"
    if usage.source not in _SOURCES:
        return f"source {usage.source[:80]!r} is not one of {', '.join(sorted(_SOURCES))}"
    return ""


def _is_another(known: wire.Usage, told: wire.Usage) -> bool:
    """Whether two answers with one id are two: both told completely, and not the same.

    A replay has the same counts. Ollama's ids are one of 999 numbers: all but the first answers would be free.
    """
    whole = all(usage.complete and usage.source == "wire" for usage in (known, told))
    return whole and any(getattr(known, name) != getattr(told, name) for name in _COUNTS)


def request_of(m: wire.Settle, hold: Hold) -> str:
    """The request id of the row that the message makes of the hold."""
    return request_id_of(m.usage) or f"{hold.key[:_TEXT]}#{hold.id}"


def request_id_of(usage: wire.Usage) -> str:
    """The provider's id; an overlong one by its digest, so that two of them stay two."""
    if len(usage.request_id) <= _TEXT:
        return usage.request_id
    return "sha256:" + hashlib.sha256(usage.request_id.encode()).hexdigest()
