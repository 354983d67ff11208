"""What others do to a bottle's rules, routes and devices: put back, told as `tamper`; else the bottle is ended.

Whoever does it again and again must not eat the processor: each round waits longer, up to PAUSE_MAX_S; the tables stay
as they were left meanwhile, and without them the routing backstop forwards nothing. It is told once, with a count.
The host and each bottle are a place of their own: what root does in one bottle delays nobody else's mending.

A round that fails in a way nobody thought of is told too, and the next one looks at everything anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentmon.addresses import Pool
from agentmon.control.state import Bottle, Phase
from agentmon.daemon import whose
from agentmon.errors import AgentmonError
from agentmon.events import Event
from netfilter.blockers import Blocker
from netfilter.changes import Change, Changes, Difference, Kind, Place, SelfHealing, told

AT_ONCE = 3  # rounds in a row without a pause
ALOUD = 5  # rounds in a row that are told one by one
PAUSE_S = 0.02  # the first one; each is twice as long as the one before
PAUSE_MAX_S = 2.0
QUIET_S = 5.0  # without a change: the row is over
LOOK_S = 0.02  # between two looks at what the kernel tells, while somebody makes it tell again and again
MOST = 256  # changes of one place that wait: only the kinds of more are of interest
_LAYERS = {Place.HOST: "host-nft", Place.BOTTLE: "bottle-nft"}

InKernel = Callable[..., Awaitable[Any]]


@dataclass(slots=True)
class _Place:
    """The host, or one bottle."""

    waiting: list[Change] = field(default_factory=list)
    due_s: float = 0.0  # not before
    row: int = 0  # rounds without a quiet time between them
    last_s: float = 0.0  # when the last of them was
    untold: int = 0  # changes in the rounds that were not told

    def wait(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if len(self.waiting) < MOST or change.kind not in {c.kind for c in self.waiting}:
                self.waiting.append(change)

    def once_more(self) -> None:
        self.row += 1
        self.last_s = time.monotonic()
        if self.row > AT_ONCE:
            self.due_s = self.last_s + min(PAUSE_MAX_S, PAUSE_S * 2 ** min(self.row - AT_ONCE, 16))


class Healing:
    """One per daemon.

    :param in_kernel: runs a call in the kernel thread.
    :param bottles: the current bottles by slot.
    :param end: ends a bottle that has lost something, with the reason.
    """

    def __init__(
        self,
        nft: SelfHealing,
        in_kernel: InKernel,
        bottles: Callable[[], Mapping[int, Bottle]],
        emit: Callable[[Event], object],
        end: Callable[[int, str], object],
    ) -> None:
        self._nft = nft
        self._in_kernel = in_kernel
        self._bottles = bottles
        self._emit = emit
        self._end = end
        self._changes: Changes | None = None
        self._places: dict[int | None, _Place] = {}
        self._failures = _Place()  # of rounds themselves
        self._looked_s = 0.0  # how long reading what the kernel told took: the processor has as long for others

    async def open(self) -> None:
        """From now on nothing is missed. :raises OSError: the kernel refused."""
        self._changes = await self._in_kernel(self._nft.watch)

    async def blocked(self, pool: Pool) -> tuple[str, str]:
        """Why a bottle may have failed its own test, and what helps: another firewall's drop, where there is one."""
        hint = "traffic stayed refused; see agentmon events --kind daemon and docs/operations/firewalls.md"
        try:
            found: list[Blocker] = await self._in_kernel(self._nft.blockers)
        except (OSError, AgentmonError):
            return "", hint
        if not found:
            return "", hint
        pools = [str(network) for network in (pool.v4, pool.v6) if network is not None]
        remedies = dict.fromkeys(blocker.remedy(pools) for blocker in found)
        return f"; {'; '.join(blocker.describe() for blocker in found)}", "; ".join(remedies)

    def _place(self, slot: int | None) -> _Place:
        return self._places.setdefault(slot, _Place())

    async def differences(self, slot: int | None) -> list[str]:
        """What of the host (None) or of a bottle is not as it would be written now; looked up, nothing is put back.

        :raises OSError, AgentmonError: the kernel does not say.
        """
        return [found.what for found in await self._in_kernel(self._nft.check, slot)]

    def look_at_everything(self) -> None:
        """The next round compares all there is with what is wanted, whatever was told of."""
        for slot, place in [(None, Place.HOST), *((slot, Place.BOTTLE) for slot in self._bottles())]:
            self._place(slot).wait([Change(slot, place, Kind.UNKNOWN, "everything is looked at")])

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._told(), self._until_due_s())
                self._forget_the_quiet()
                await self._round()
                await asyncio.sleep(max(self._looked_s, LOOK_S if self._rows() else 0))
            except Exception as error:  # noqa: BLE001 - a bug of ours must not leave bottles that nobody watches
                self._failed(error)
                await asyncio.sleep(max(0.0, self._failures.due_s - time.monotonic()))

    def _rows(self) -> bool:
        return any(place.row > AT_ONCE for place in self._places.values())

    def _until_due_s(self) -> float:
        due = min((place.due_s for place in self._places.values() if place.waiting), default=None)
        return QUIET_S if due is None else min(QUIET_S, max(0.0, due - time.monotonic()))

    def _failed(self, error: Exception) -> None:
        """A round ended as it never should."""
        self._failures.once_more()
        self.look_at_everything()
        if self._failures.row > ALOUD:
            return
        why = f"watching over rules and devices failed ({type(error).__name__}: {error}); everything is looked at anew"
        print(f"warning: {why}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):  # it may be the log that failed
            self._emit(Event("daemon", "observed", layer="daemon", reason=why))

    async def _told(self) -> None:
        assert self._changes is not None
        loop, fd, ready = asyncio.get_running_loop(), self._changes.fileno(), asyncio.Event()
        loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)

    async def _round(self) -> None:
        assert self._changes is not None
        began = time.monotonic()
        for change in await asyncio.to_thread(self._changes.changes):  # a flood of them must not hold up the loop
            if self._concerns(change):
                self._place(change.slot).wait([change])
        now = time.monotonic()
        self._looked_s = now - began
        due = [slot for slot, place in self._places.items() if place.waiting and place.due_s <= now]
        again = [slot for slot in due if slot is not None and self._places[slot].row > AT_ONCE]
        for slot in sorted(set(due) - set(again), key=lambda s: (s is not None, s or 0)):  # what all share comes first
            await self._mend(slot, self._places[slot])
        if again:  # one of those, then another look: who is disturbed for the first time does not wait for all of them
            slot = min(again, key=lambda s: self._places[s].due_s)
            await self._mend(slot, self._places[slot])

    async def _mend(self, slot: int | None, place: _Place) -> None:
        began_ns = time.monotonic_ns()
        changes = [c for c in dict.fromkeys(place.waiting) if self._concerns(c)]
        place.waiting = []
        if not changes:
            return
        try:
            found: list[Difference] = await self._in_kernel(self._nft.restore, changes)
        except (OSError, AgentmonError) as error:
            place.once_more()
            place.due_s = max(place.due_s, place.last_s + PAUSE_S)
            place.wait(changes)
            self._tell(slot, changes, {"error": str(error)})
            return
        if found or any(c.kind is Kind.UNKNOWN for c in changes):  # looking at everything costs, whatever is found
            place.once_more()
        if not found:
            return
        took_ms = round((time.monotonic_ns() - began_ns) / 1e6, 3)
        lost = any(d.lost for d in found)
        self._tell(slot, found, {"lost": True} if lost else {"restored_ms": took_ms})
        if slot is not None and lost:
            self._end(slot, told(d.what for d in found if d.lost))
        if slot is None and any(d.kind is Kind.RULES for d in found):
            await self._cut_again()

    async def _cut_again(self) -> None:
        """A cut that met no table holds by the rules that are back; the flows that it was to end may still be there."""
        for slot, bottle in tuple(self._bottles().items()):
            if bottle.phase in {Phase.CUT, Phase.FROZEN}:
                with contextlib.suppress(OSError, AgentmonError):  # it has ended meanwhile
                    await self._in_kernel(self._nft.end_refused, slot)

    def _concerns(self, change: Change) -> bool:
        bottle = None if change.slot is None else self._bottles().get(change.slot)
        return change.slot is None or (bottle is not None and bottle.phase is not Phase.STOPPING)

    def _forget_the_quiet(self) -> None:
        now = time.monotonic()
        for slot, place in list(self._places.items()):
            if place.waiting or now - place.last_s <= QUIET_S:
                continue
            if place.untold:
                what = "others changed rules, routes or devices again and again; it is quiet now"
                bottle = self._name(slot)
                self._emit(Event("tamper", "observed", bottle, layer="daemon", reason=what, count=place.untold))
            del self._places[slot]
        if now - self._failures.last_s > QUIET_S:
            self._failures = _Place()

    def _name(self, slot: int | None) -> str:
        bottle = None if slot is None else self._bottles().get(slot)
        return "" if bottle is None else bottle.name

    def _tell(self, slot: int | None, differences: Sequence[Difference], detail: dict[str, Any]) -> None:
        place, lost = self._place(slot), "lost" in detail
        if place.row > ALOUD and not lost:
            place.untold += len(differences)
            return
        first = next((d for d in differences if isinstance(d, Change) and d.pid), differences[0])
        reason = told(d.what for d in differences)
        if place.row == ALOUD:
            reason += f"; again and again: from now on it is put back every {PAUSE_MAX_S:g} s at the latest, and closed"
        detail = {"part": told(d.kind.value for d in differences), "place": first.place.value, **detail}
        self._emit(
            Event(
                "tamper", "refused" if lost else "observed", bottle=self._name(slot),
                layer=_LAYERS[first.place], reason=reason, count=len(differences), detail=detail, **_culprit(first),
            )
        )  # fmt: skip


def _culprit(difference: Difference) -> dict[str, Any]:
    """The process as the kernel named it, and more of it while it lives under that name."""
    if not isinstance(difference, Change) or not difference.pid:
        return {}
    known = whose.describe(difference.pid)
    if known.get("comm") == difference.comm:
        return known
    return {"pid": difference.pid, "comm": difference.comm}
