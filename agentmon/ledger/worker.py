"""The thread that owns the store: takes what is queued, commits it as one batch, hands the outcome to the event loop.

While a commit waits for the disk the next batch gathers: the more callers, the more rows share an fsync.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from agentmon import wire
from agentmon.errors import AgentmonError
from agentmon.ledger import retention
from agentmon.ledger.book import Asked, Sweep
from agentmon.ledger.keeper import Keeper
from agentmon.ledger.owner import alive, owner_of
from agentmon.ledger.state import Now, Owner
from agentmon.ledger.store import LedgerTrouble, Outcome

_BATCH = 2048  # questions; bounds how long the first one of a batch waits
_SWEEP_S = 1.0
_RETRY_S = 0.1  # between attempts to open a file that cannot be opened
_FOLD_S = 600.0  # between looks for usage that has become old
_FOLD_SHARE = 10  # pauses between two folds are this many times as long as the fold

Parcel = tuple[Any, Owner, list[Asked]]  # whose, on behalf of which process, what
Deliver = Callable[[list[tuple[Any, list[wire.Message | None]]], list[wire.Crossed]], None]


class Worker(threading.Thread):
    """Daemonic: a process that is told to stop calls stop(), which commits what is queued.

    :param deliver: called in this thread after each commit with (whose, answers) in the order of the parcels.
    :param ended: called in this thread at its end, for whatever reason.
    :param usage_age_s: what is older is kept as sums (retention.py); None: rows stay for ever. At least
        retention.LEAST_S.
    """

    def __init__(
        self, store: Keeper, deliver: Deliver, ended: Callable[[], None], *, usage_age_s: int | None = None
    ) -> None:
        super().__init__(name="ledger-writer", daemon=True)
        self._store = store
        self._deliver = deliver
        self._ended = ended
        self._queue: queue.SimpleQueue[Parcel | None] = queue.SimpleQueue()
        self._stopping = False
        self._swept_s = 0.0
        self._trouble: LedgerTrouble | None = None
        self._tried_s = 0.0
        self._usage_age_s = max(usage_age_s, retention.LEAST_S) if usage_age_s is not None else None
        self._fold_at_s = 0.0
        self._self = owner_of(threading.get_native_id())

    def put(self, whose: Any, owner: Owner, asked: list[Asked]) -> None:
        self._queue.put((whose, owner, asked))

    def stop(self) -> None:
        """Commit what is queued, close the file, say that it ended. Returns at once."""
        self._queue.put(None)

    def run(self) -> None:
        try:
            self._serve()
        except AgentmonError as e:  # a newer agentmon has changed a shared ledger
            print(f"error: ledger: {e.message}\nhint: {e.hint}", file=sys.stderr, flush=True)
        finally:  # also by an error nobody foresaw: a ledger without its writer must not look alive
            self._ended()

    def _serve(self) -> None:
        while not self._stopping:
            parcels = self._gather()
            self._sweep()
            if parcels:
                answers, crossed = self._work([(a, owner) for _, owner, asked in parcels for a in asked])
                at = 0
                out: list[tuple[Any, list[wire.Message | None]]] = []
                for whose, _, asked in parcels:
                    out.append((whose, answers[at : at + len(asked)]))
                    at += len(asked)
                self._deliver(out, crossed)
            self._fold()
        self._store.close()

    def _gather(self) -> list[Parcel]:
        """What is queued; waits for the first, but no longer than until the next sweep while anything is held, or the
        next fold."""
        waits = [] if self._store.quiet() and self._trouble is None else [_SWEEP_S]
        if self._usage_age_s is not None:
            waits.append(max(0.0, self._fold_at_s - time.monotonic()))
        parcels: list[Parcel] = []
        count = 0
        try:
            item = self._queue.get(timeout=min(waits, default=None))
            while item is not None:
                parcels.append(item)
                count += len(item[2])
                if count >= _BATCH:
                    break
                item = self._queue.get_nowait()
            else:
                self._stopping = True
        except queue.Empty:
            pass
        return parcels

    def _sweep(self) -> None:
        now_s = time.monotonic()
        if now_s - self._swept_s < _SWEEP_S:
            return
        self._swept_s = now_s
        if self._trouble is not None or not self._store.quiet():
            dead = frozenset(owner for owner in self._store.owners() if not alive(owner))
            _, crossed = self._work([(Sweep(dead), self._self)])
            if crossed:
                self._deliver([], crossed)

    def _fold(self) -> None:
        """One small transaction, so that settlements that come meanwhile do not wait for long."""
        began_s = time.monotonic()
        if self._usage_age_s is None or self._stopping or began_s < self._fold_at_s:
            return
        try:
            folded = self._store.fold(retention.before(time.time_ns(), self._usage_age_s))
        except LedgerTrouble:
            folded = 0  # told when somebody asks for something; the rows are all there
        pause_s = _FOLD_SHARE * (time.monotonic() - began_s) if folded else _FOLD_S
        self._fold_at_s = time.monotonic() + pause_s

    def _work(self, asked: list[tuple[Asked, Owner]]) -> tuple[list[wire.Message | None], list[wire.Crossed]]:
        if self._trouble is not None and time.monotonic() - self._tried_s < _RETRY_S:
            return _failed(asked, self._trouble), []
        self._tried_s = time.monotonic()
        now = Now(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        try:
            outcome: Outcome = self._store.run(asked, now)
        except LedgerTrouble as e:
            if self._trouble is None or self._trouble.message != e.message:
                print(f"error: ledger: {e.message}\nhint: {e.hint}", file=sys.stderr, flush=True)
            self._trouble = e
            return _failed(asked, e), []
        if self._trouble is not None:
            print("ledger: recording again", file=sys.stderr, flush=True)
            self._trouble = None
        return outcome.answers, outcome.crossed


def _failed(asked: list[tuple[Asked, Owner]], e: LedgerTrouble) -> list[wire.Message | None]:
    return [wire.Failed(getattr(question, "id", 0), "unavailable", e.message, e.hint) for question, _ in asked]
