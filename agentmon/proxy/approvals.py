"""The Ask of a worker: what was approved before is answered here, the rest by the daemon's queue.

A proposal is withdrawn as soon as nobody waits for it: its request was given up (cancelled, or `wanted` says so), or
its bottle was cut or is gone (end()). An answer that does not come, or is none, refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from agentmon import wire
from agentmon.channel import Channel
from agentmon.proxy.outbound import Decision, Proposal

LOOK_S = 0.5  # between two looks at whether somebody still waits
LATE_S = 15.0  # beside what the daemon waits: its own failures take as long


@dataclass(slots=True)
class _Known:
    """What may leave a bottle in one run, and how long the daemon may take."""

    run: str
    approved: set[tuple[str, bytes]] = field(default_factory=set)  # (host, digest)
    wait_s: int = 300


class Approvals:
    """For one worker. :param daemon: the connection to the daemon, None while it is away."""

    def __init__(self, daemon: Callable[[], Channel | None]) -> None:
        self._daemon = daemon
        self._known: dict[int, _Known] = {}
        self._asked: dict[int, set[asyncio.Future[Any]]] = {}  # slot → what waits

    def give(self, slot: int, run: str, approved: Iterable[tuple[str, bytes]], wait_s: int) -> None:
        """All that was approved in one run; what was known of another run is gone."""
        self._known[slot] = _Known(run, set(approved), wait_s)

    def end(self, slot: int) -> None:
        """The bottle was cut: whoever waits is answered now, and the daemon told."""
        for asked in tuple(self._asked.get(slot, ())):
            asked.cancel()

    def drop(self, slot: int) -> None:
        """The bottle is gone."""
        self.end(slot)
        self._known.pop(slot, None)

    async def __call__(self, proposal: Proposal, wanted: Callable[[], bool]) -> Decision:
        """See outbound.Ask."""
        known = self._known.get(proposal.slot)
        if known is None or known.run != proposal.run:
            return Decision.UNAVAILABLE  # the daemon has not told of it yet: nothing can be remembered
        key = proposal.host, proposal.digest
        if key in known.approved:
            return Decision.APPROVED
        channel = self._daemon()
        if channel is None:
            return Decision.UNAVAILABLE
        decision = await self._ask(channel, proposal, wanted, known.wait_s + LATE_S)
        if decision is Decision.APPROVED and self._known.get(proposal.slot) is known:
            known.approved.add(key)
        return decision

    async def _ask(
        self, channel: Channel, proposal: Proposal, wanted: Callable[[], bool], timeout_s: float
    ) -> Decision:
        p, id = proposal, channel.next_id()
        message = wire.Propose(id, p.slot, p.run, p.host, p.method, p.path, p.detector, p.where, p.context, p.digest)
        call = asyncio.ensure_future(channel.call(message, timeout_s))
        mine = self._asked.setdefault(p.slot, set())
        mine.add(call)
        answered = False
        try:
            while not call.done() and wanted():
                await asyncio.wait({call}, timeout=LOOK_S)
            answered = call.done() and not call.cancelled()
            return _decision(call) if answered else Decision.GONE
        finally:
            mine.discard(call)
            if not mine:
                self._asked.pop(p.slot, None)
            if not answered or call.exception() is not None:
                call.cancel()
                with contextlib.suppress(OSError):
                    channel.send(wire.Withdraw(id))


def _decision(call: asyncio.Future[Any]) -> Decision:
    error = call.exception()
    if error is not None:
        return Decision.TIMEOUT if isinstance(error, TimeoutError) else Decision.UNAVAILABLE
    answer = call.result()
    try:
        return Decision(answer.decision) if isinstance(answer, wire.Decided) else Decision.MALFORMED
    except ValueError:
        return Decision.MALFORMED
