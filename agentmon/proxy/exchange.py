"""One metered request: hold → forward → settle or release, exactly once, whatever happens on the way.

    reserve() ──granted──▶ held ──finish(sent, status)──▶ settled | released
        ├─held by others──▶ asked again until they are settled, for PATIENCE_S at most; where the provider counts
        │                   beside it, by its count from then on
        └─denied, ledger away──▶ a refusal to answer with

finish() may come at any time, also while reserve() still waits (the client has gone): the hold that then arrives is
given back. What finish() starts runs on as a task of `Accounts`, which a stopping worker waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from agentmon import wire
from agentmon.errors import AgentmonError
from agentmon.events import Event
from agentmon.providers.declaration import Estimate
from agentmon.proxy import bodies
from agentmon.proxy.counted import Count, Counted
from agentmon.proxy.settlement import charge, tells_input

PATIENCE_S = 240.0  # below the 300 s after which clients on Node give up on an answer's head
_ASK_MIN_S, _ASK_MAX_S = 0.02, 0.5


class Ledger(Protocol):
    """What is used of agentmon.ledger.client.LedgerClient. Failures are AgentmonError."""

    async def reserve(
        self, slot: int, provider: str, model: str, *, input: int, output: int, key: str
    ) -> wire.Granted | wire.Denied: ...
    async def settle(self, hold: int, usage: wire.Usage) -> wire.Settled: ...
    async def progress(self, hold: int, usage: wire.Usage) -> bool: ...
    async def release(self, hold: int) -> None: ...
    async def totals(self, slot: int) -> list[dict[str, Any]]: ...


class Accounts:
    """The ledger, where to report, and the calls still under way."""

    def __init__(self, ledger: Ledger, report: Callable[[Event], None]) -> None:
        self.ledger = ledger
        self.report = report
        self._tasks: set[asyncio.Task[None]] = set()

    async def totals(self, slot: int) -> list[dict[str, Any]] | None:
        """The bottle's budgets; None while the ledger is away."""
        try:
            return await self.ledger.totals(slot)
        except AgentmonError:
            return None

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self, timeout_s: float) -> None:
        """Wait for what is under way, at most so long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)


@dataclass(frozen=True, slots=True)
class Whose:
    """Whom a request is charged to, and what events say of it."""

    slot: int
    bottle: str
    provider: str
    host: str
    key: str  # unique per attempt


class Exchange:
    def __init__(self, accounts: Accounts, whose: Whose) -> None:
        self._accounts = accounts
        self._whose = whose
        self._estimate: Estimate | None = None  # ours: what is charged where nothing is known
        self._held: Estimate | None = None  # what the hold was taken for: ours, or with the provider's count
        self._hold: int | None = None
        self._finished = False
        self._next: wire.Usage | None = None  # progress that waits for the call under way
        self._telling = False

    async def reserve(
        self,
        estimate: Estimate,
        wanted: Callable[[], bool],
        patience_s: float = PATIENCE_S,
        count: Count | None = None,
    ) -> tuple[int, bodies.Error] | None:
        """Take the hold; None when it is there, else (status, error) to answer with.

        :param wanted: whether waiting still makes sense: False once the bottle is cut, or its client gone.
        :param count: asks the provider; called once at most, when the estimate has no room beside what others hold.
        """
        w, self._estimate, self._held = self._whose, estimate, estimate
        try:
            answer = await self._ask(wanted, patience_s, Counted(estimate, count))
        except AgentmonError:
            return 503, bodies.ledger_unavailable()
        if isinstance(answer, wire.Denied):
            return 403, bodies.budget_exhausted(bodies.spent_of(answer))
        self._hold = answer.hold
        if self._finished:
            self._accounts.spawn(self._release(answer.hold))
            return 403, bodies.egress_denied("The request was given up.", w.host)
        return None

    async def _ask(self, wanted: Callable[[], bool], patience_s: float, counted: Counted) -> wire.Granted | wire.Denied:
        w, loop = self._whose, asyncio.get_running_loop()
        end, pause = loop.time() + patience_s, _ASK_MIN_S
        try:
            while True:
                self._held = asked = counted.estimate()
                answer = await self._accounts.ledger.reserve(
                    w.slot, w.provider, asked.model, input=asked.input, output=asked.output, key=w.key
                )
                if isinstance(answer, wire.Granted) or not answer.waits or self._finished or not wanted():
                    return answer
                if loop.time() + pause > end:
                    return answer
                counted.begin()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _ASK_MAX_S)
        finally:
            counted.end()

    def progress(self, usage: wire.Usage) -> None:
        """Tell the ledger the cumulative usage; while a call is under way only the latest is kept.

        An estimate (the provider has said nothing yet) has only its output counted: the input is the request's.
        """
        if self._hold is None or self._finished:
            return
        if usage.source == "estimate" and self._held is not None and not tells_input(usage):
            usage = msgspec.structs.replace(usage, input=self._held.input)
        self._next = usage
        if not self._telling:
            self._telling = True
            self._accounts.spawn(self._tell(self._hold))

    def finish(
        self, *, sent: bool, status: int | None, usage: wire.Usage | None, seen: int = 0, unread: str = ""
    ) -> None:
        """The request is over; the first call counts. `seen`: see charge(). `unread`: why its answer was not read."""
        if self._finished:
            return
        self._finished = True
        hold, estimate = self._hold, self._estimate
        if hold is None or estimate is None:
            return
        w = self._whose
        row = charge(estimate, w.provider, w.key, sent=sent, status=status, usage=usage, seen=seen)
        self._accounts.spawn(self._release(hold) if row is None else self._settle(hold, row, unread))

    def unheld(self, usage: wire.Usage | None = None) -> None:
        """The provider has begun it unasked, or done it, and there was no hold to be had: it is in no row, and told."""
        w = self._whose
        told = f" of {usage.input} + {usage.output} tokens" if usage is not None else ""
        reason = f"a response{told} that {w.provider} began by itself could not be held: it is in no row"
        self._accounts.report(
            Event("lost", bottle=w.bottle, layer="proxy", host=w.host, reason=reason, hint="its socket was closed")
        )

    async def _tell(self, hold: int) -> None:
        try:
            while self._next is not None and not self._finished:
                usage, self._next = self._next, None
                with contextlib.suppress(AgentmonError):  # only a hint: the settlement at the end is what counts
                    await self._accounts.ledger.progress(hold, usage)
        finally:
            self._telling = False

    async def _release(self, hold: int) -> None:
        try:
            await self._accounts.ledger.release(hold)
        except AgentmonError as e:
            self._lost("release", e)

    async def _settle(self, hold: int, row: wire.Usage, unread: str) -> None:
        try:
            await self._accounts.ledger.settle(hold, row)
        except AgentmonError as e:
            self._lost("settle", e)
            return
        detail = {
            "provider": row.provider, "model": row.model, "request_id": row.request_id, "input": row.input,
            "cache_read": row.cache_read, "cache_write": row.cache_write_5m + row.cache_write_1h, "output": row.output,
            "reasoning": row.reasoning, "source": row.source, "complete": row.complete,
        }  # fmt: skip
        w = self._whose
        self._accounts.report(
            Event(
                "usage",
                verdict="observed",
                bottle=w.bottle,
                layer="proxy",
                host=w.host,
                port=443,
                detail=detail,
                reason=f"the answer could not be read: {unread}" if unread else "",
            )
        )

    def _lost(self, what: str, error: AgentmonError) -> None:
        """The ledger did not take it: its hold is durable and will be charged as an estimate when it expires."""
        w = self._whose
        reason = f"{what}: {error.message}"
        event = Event("lost", bottle=w.bottle, layer="proxy", host=w.host, reason=reason, hint=error.hint)
        self._accounts.report(event)
