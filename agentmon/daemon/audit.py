"""The audit trail: who asked for what that changes something, when, and how it ended; also what was refused.

A row that the ledger cannot take now is kept, with the time it was asked at, and written when the ledger is back.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agentmon import wire
from agentmon.errors import AgentmonError
from agentmon.events import Event, now_ns, rfc3339

READING = frozenset(  # requests that change nothing
    {"ps", "status", "events", "budget_show", "explain", "reattach", "signal", "approvals"}
)
_KEPT = 10_000
_REFUSED, _WINDOW_S = 30, 60.0  # refusals of one user that are recorded in a window: rows stay for ever
_WORD = 64  # characters of what a request called itself

Record = Callable[[int, str, str, dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Row:
    uid: int
    action: str
    target: str
    detail: dict[str, Any]
    asked_ns: int


class AuditTrail:
    """For one daemon.

    :param record: writes one row; raises AgentmonError when it cannot. :param emit: an event.
    """

    def __init__(
        self, record: Record, emit: Callable[[Event], object], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._record = record
        self._emit = emit
        self._clock_s = clock_s
        self._waiting: deque[_Row] = deque()
        self._refused: Counter[int] = Counter()  # by uid, in this window
        self._began_s = 0.0
        self._dropped = 0

    async def done(self, uid: int, action: str, target: str, detail: dict[str, Any]) -> None:
        """Record what was done, or how it failed."""
        await self._put(_Row(uid, action, target, detail, now_ns()))

    async def refused(self, uid: int, request: wire.Request, error: AgentmonError) -> None:
        """Record a request that was turned down before anything was done; one that only looks is left out."""
        if request.op in READING or not self._room(uid):
            return
        result = f"{error.kind}: {error.message}"
        await self._put(_Row(uid, request.op[:_WORD], _target(request.args), {"result": result[:500]}, now_ns()))

    def _room(self, uid: int) -> bool:
        if self._clock_s() - self._began_s > _WINDOW_S:
            for user, count in self._refused.items():
                if count > _REFUSED and user != 0:
                    what = f"{count - _REFUSED} more refused requests of uid {user} are not in the audit"
                    self._emit(Event("lost", "refused", layer="daemon", uid=user, reason=what, count=count - _REFUSED))
            self._refused.clear()
            self._began_s = self._clock_s()
        self._refused[uid] += 1
        return uid == 0 or self._refused[uid] <= _REFUSED

    async def _put(self, row: _Row) -> None:
        if self._waiting:
            self._keep(row)
            await self.flush()
            return
        try:
            await self._write(row)
        except AgentmonError as error:
            self._keep(row)
            what = f"audit: {row.action} {row.target} by uid {row.uid} is written when the ledger is back"
            print(f"warning: {what}: {error}", file=sys.stderr, flush=True)

    async def _write(self, row: _Row, late: dict[str, Any] | None = None) -> None:
        await self._record(row.uid, row.action, row.target, row.detail | (late or {}))

    def _keep(self, row: _Row) -> None:
        if len(self._waiting) >= _KEPT:
            self._dropped += 1
            what = f"{self._dropped} changes are in no audit: the ledger has been away for too long"
            self._emit(Event("lost", "refused", layer="daemon", uid=row.uid, reason=what, count=self._dropped))
            return
        self._waiting.append(row)

    async def flush(self) -> None:
        """Write what waits, oldest first; what cannot be written goes on waiting."""
        while self._waiting:
            row = self._waiting.popleft()
            try:
                await self._write(row, {"asked": rfc3339(row.asked_ns)})
            except AgentmonError:
                self._waiting.appendleft(row)
                return


def _target(args: dict[str, Any]) -> str:
    """What a request was about, as far as it says so."""
    if args.get("all"):
        return "all"
    if "scope" in args:
        return f"{args['scope']}:{args.get('name', '')}"[: 2 * _WORD]
    return str(args.get("bottle") or args.get("name") or args.get("id") or "")[:_WORD]
