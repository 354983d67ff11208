"""What waits for an operator: proposals of the proxy, until somebody decides, time is up, or nobody waits any more.

    Propose ─▶ approved before? room? ─▶ ledger: a row ─▶ event, hook ─▶ approve | reject | timeout | withdrawn
       ▲                                                                        │ ledger: how it ended, first
       └──────────────────────────── Decided ◀─────────────────────────────────┘
Fail closed: without the ledger nothing is asked, and nothing is approved. What was approved is remembered by host and
digest, in memory only, until the bottle ends; a worker is told all of it when it comes back.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from agentmon import wire
from agentmon.channel import Channel
from agentmon.control.state import Bottle, Phase
from agentmon.daemon.hook import Hook
from agentmon.daemon.ledger_link import LedgerLink
from agentmon.daemon.proposals import Key, Pending, bounded, checked_reason
from agentmon.errors import AgentmonError, BadInput, Refused
from agentmon.events import Event, now_ns
from agentmon.policy.settings import Settings

PER_BOTTLE = 16  # proposals that wait
IN_ALL = 256
SHARING = 64  # requests that wait for the same answer
REMEMBERED = 4096  # values of one bottle
_KEEP_S = 0.5  # between attempts to record an end that the ledger did not take


class Approvals:
    """The queue of one daemon.

    :param settings: as they are now. :param emit: takes an event. :param spawn: runs work for as long as the daemon
        lives. :param hook: told of every proposal.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        bottles: Callable[[], Mapping[int, Bottle]],
        ledger: Callable[[], LedgerLink],
        emit: Callable[[Event], object],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        hook: Hook,
    ) -> None:
        self._settings = settings
        self._bottles = bottles
        self._ledger = ledger
        self._emit = emit
        self._spawn = spawn
        self._hook = hook
        self._pending: dict[Key, Pending] = {}
        self._approved: dict[str, dict[tuple[str, bytes], None]] = {}  # run → what may leave
        self._given: dict[str, int] = {}  # run → the time to wait that its worker was told

    # ── the proxy ──

    def told(self, bottle: Bottle, id: int) -> wire.SetApprovals:
        """What a worker has to know of a bottle."""
        known = tuple(self._approved.get(bottle.run, ()))
        self._given[bottle.run] = self._settings().approvals_timeout_s
        return wire.SetApprovals(id, bottle.slot, bottle.run, known, self._settings().approvals_timeout_s)

    def lacks(self, bottle: Bottle) -> bool:
        """Whether the worker was not told of this run yet, or of another time to wait."""
        return self._given.get(bottle.run) != self._settings().approvals_timeout_s

    def propose(self, channel: Channel, m: wire.Propose) -> None:
        """Answer at once, or put it into the queue."""
        bottle = self._bottles().get(m.slot)
        if bottle is None or bottle.run != m.run or bottle.phase is not Phase.RUNNING:
            answer = "gone"
        elif (m.host, m.digest) in self._approved.get(m.run, ()):
            answer = "approved"
        elif not self._settings().approvals_operator:
            answer = "nobody"
        elif (shared := self._pending.get((m.run, m.host, m.digest))) is not None:
            if len(shared.waiters) < SHARING:
                shared.waiters.append((channel, m.id))
                return
            answer = "full"
        elif len(self._pending) >= IN_ALL or self._count(m.slot) >= PER_BOTTLE:
            answer = "full"
        else:
            wait_s = self._settings().approvals_timeout_s
            one = Pending(bounded(m), bottle.name, [(channel, m.id)], now_ns() + wait_s * 1_000_000_000)
            self._pending[one.key] = one
            self._spawn(self._queue(one, bottle, wait_s), "proposal")
            return
        channel.send(wire.Decided(m.id, answer))

    async def _queue(self, one: Pending, bottle: Bottle, wait_s: int) -> None:
        try:
            one.number = await self._ledger().proposed(bottle, one.asked)
        except AgentmonError as error:
            why = f"not asked, refused: {error.message}"
            self._emit(Event("approval", "refused", bottle=bottle.name, layer="daemon", host=one.asked.host,
                             reason=why, hint=error.hint))  # fmt: skip
            self._end(one, "unavailable")
            return
        if one.ended or not one.waiters:  # nobody waits any more
            self._end(one, "gone")
            self._record(one, "withdrawn", "nobody waited for the answer any more")
            return
        one.timer = asyncio.get_running_loop().call_later(wait_s, self._expire, one)
        hint = f"agentmon approvals approve {one.number} --reason WHY"
        self._tell(one, "observed", "waiting", {}, hint)
        self._hook.tell(one.shown())

    def withdraw(self, channel: Channel, id: int) -> None:
        """One request does not wait any more."""
        for one in tuple(self._pending.values()):
            if (channel, id) in one.waiters:
                one.waiters.remove((channel, id))
                self._if_alone(one)

    def lost(self) -> None:
        """A worker is gone, and its requests with it; the next one is told all."""
        self._given.clear()
        for one in tuple(self._pending.values()):
            one.waiters = [waiter for waiter in one.waiters if not waiter[0].closed]
            self._if_alone(one)

    def _if_alone(self, one: Pending) -> None:
        if not one.waiters and one.number and not one.deciding:
            self._withdrawn(one, "the client went away")

    # ── bottles ──

    async def adopted(self, bottle: Bottle) -> None:
        """What an earlier daemon had asked of it was refused when that one ended."""
        try:
            await self._ledger().undecided(bottle.run, "the daemon was restarted")
        except AgentmonError as error:  # they are withdrawn with the run
            print(f"warning: proposals of {bottle.name}: {error}, ignoring", file=sys.stderr)

    def stop(self, slot: int, why: str) -> None:
        """The bottle was cut: nothing of it waits any more."""
        for one in [p for p in self._pending.values() if p.asked.slot == slot]:
            self._withdrawn(one, why)

    def forget(self, slot: int, run: str) -> None:
        """The bottle has ended."""
        self.stop(slot, "the bottle has ended")
        self._approved.pop(run, None)
        self._given.pop(run, None)

    def close(self) -> None:
        """The daemon ends: who still waits is refused by its absence; the next daemon records it."""
        for one in self._pending.values():
            if one.timer is not None:
                one.timer.cancel()
        self._pending.clear()

    # ── operators ──

    def waiting(self, may_see: Callable[[str], bool]) -> list[dict[str, Any]]:
        """What waits, oldest first. :param may_see: by the bottle's name."""
        found = [one for one in self._pending.values() if one.number and may_see(one.bottle)]
        return [one.shown() for one in sorted(found, key=lambda one: one.number)]

    def bottle_of(self, number: int) -> str:
        """:raises BadInput: no such proposal waits."""
        return self._numbered(number).bottle

    async def decide(self, number: int, verb: str, uid: int, reason: str) -> dict[str, Any]:
        """`approve` or `reject`; recorded before it has an effect. What was decided, as shown.

        :raises BadInput: no such proposal waits; no reason. :raises Refused: somebody else decides it right now.
        :raises AgentmonError: the ledger did not take it: it still waits.
        """
        one, reason = self._numbered(number), checked_reason(reason)
        if one.deciding:
            raise Refused(f"proposal {number} is being decided by somebody else", "agentmon approvals list --ended")
        state, verdict = ("approved", "allowed") if verb == "approve" else ("rejected", "refused")
        one.deciding = True
        try:
            await self._ledger().decide(number, state, uid, reason)
        except AgentmonError:
            one.deciding = False
            if now_ns() >= one.until_ns:
                self._expire(one)
            raise
        shown = one.shown() | {"state": state, "uid": uid, "reason": reason}
        if state == "approved" and any(b.run == one.asked.run for b in self._bottles().values()):
            known = self._approved.setdefault(one.asked.run, {})
            known[one.asked.host, one.asked.digest] = None
            if len(known) > REMEMBERED:
                del known[next(iter(known))]
        self._end(one, state)
        self._tell(one, verdict, state, {"by": f"uid:{uid}", "said": reason})
        return shown

    def _numbered(self, number: int) -> Pending:
        for one in self._pending.values():
            if one.number == number:
                return one
        numbers = ", ".join(str(one.number) for one in self._pending.values() if one.number) or "none"
        raise BadInput(f"no proposal {number} waits", f"waiting: {numbers}; agentmon approvals list --ended")

    # ── ends ──

    def _expire(self, one: Pending) -> None:
        if not one.deciding and not one.ended:
            self._end(one, "timeout")
            self._record(one, "expired", "")
            self._tell(one, "refused", "expired", {})

    def _withdrawn(self, one: Pending, why: str) -> None:
        self._end(one, "gone")
        if one.number and not one.deciding:  # else who decides records it
            self._record(one, "withdrawn", why)
            self._tell(one, "refused", "withdrawn", {"why": why})

    def _end(self, one: Pending, answer: str) -> None:
        """Out of the queue, and whoever waits is answered; the first time counts."""
        one.ended = True
        if self._pending.get(one.key) is one:
            del self._pending[one.key]
        if one.timer is not None:
            one.timer.cancel()
        for channel, id in one.waiters:
            channel.send(wire.Decided(id, answer))
        one.waiters = []

    def _record(self, one: Pending, state: str, why: str) -> None:
        self._spawn(self._recorded(one.number, state, why), "approval")

    async def _recorded(self, number: int, state: str, why: str) -> None:
        """Until the ledger has it; a daemon that ends before leaves it to the next one."""
        while True:
            try:
                await self._ledger().decide(number, state, None, why)
            except (BadInput, Refused):  # it has ended already: with its run
                return
            except AgentmonError:
                await asyncio.sleep(_KEEP_S)
            else:
                return

    def _count(self, slot: int) -> int:
        return sum(one.asked.slot == slot for one in self._pending.values())

    def _tell(self, one: Pending, verdict: str, reason: str, more: dict[str, Any], hint: str = "") -> None:
        m = one.asked
        detail = {"id": one.number, "method": m.method, "path": m.path, "detector": m.detector, "where": m.where}
        detail |= {"context": m.context} if reason == "waiting" else {}
        event = Event("approval", verdict, bottle=one.bottle, reason=reason, layer="daemon", host=m.host, hint=hint,
                      detail=detail | more)  # fmt: skip
        self._emit(event)
