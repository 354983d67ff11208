"""What others do to a bottle's rules, routes and devices: put back, told as `tamper`; else the bottle is ended.

Whoever does it again and again must not eat the processor: each round waits longer, up to PAUSE_MAX_S; the tables stay
as they were left meanwhile, and without them the routing backstop forwards nothing. It is told once, with a count.

A round that fails in a way nobody thought of is told too, and the next one looks at everything anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
_LAYERS = {Place.HOST: "host-nft", Place.BOTTLE: "bottle-nft"}

InKernel = Callable[..., Awaitable[Any]]


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
        self._again: list[Change] = []  # what could not be put back yet
        self._at_once = False  # nothing is waited for
        self._row = 0  # rounds without a quiet time between them
        self._last_s = 0.0  # when the last of them was
        self._untold = 0  # changes in the rounds that were not told

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

    def look_at_everything(self) -> None:
        """The next round compares all there is with what is wanted, whatever was told of."""
        every = [(None, Place.HOST), *((slot, Place.BOTTLE) for slot in self._bottles())]
        self._again = [Change(slot, place, Kind.UNKNOWN, "everything is looked at") for slot, place in every]
        self._at_once = True

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if not self._at_once:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._told(), PAUSE_MAX_S if self._again else QUIET_S)
                if self._row and time.monotonic() - self._last_s > QUIET_S:
                    self._quiet()
                self._at_once = False
                await self._round()
            except Exception as error:  # noqa: BLE001 - a bug of ours must not leave bottles that nobody watches
                self._failed(error)
            await asyncio.sleep(self._pause_s())

    def _failed(self, error: Exception) -> None:
        """A round ended as it never should."""
        self._once_more()
        self.look_at_everything()
        if self._row > ALOUD:
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
        began_ns = time.monotonic_ns()
        changes = [c for c in (*self._again, *self._changes.changes()) if self._concerns(c)]
        self._again = []
        if not changes:
            return
        try:
            found: list[Difference] = await self._in_kernel(self._nft.restore, changes)
        except (OSError, AgentmonError) as error:
            self._again = list(dict.fromkeys(changes))
            self._once_more()
            self._tell(None, changes, {"error": str(error)})
            return
        if not found:
            return
        self._once_more()
        took_ms = round((time.monotonic_ns() - began_ns) / 1e6, 3)
        for slot in dict.fromkeys(d.slot for d in found):
            mine = [d for d in found if d.slot == slot]
            self._tell(slot, mine, {"restored_ms": took_ms} if not any(d.lost for d in mine) else {"lost": True})
            if slot is not None and any(d.lost for d in mine):
                self._end(slot, told(d.what for d in mine if d.lost))
        if any(d.slot is None and d.kind is Kind.RULES for d in found):
            await self._cut_again()

    def _once_more(self) -> None:
        self._row += 1
        self._last_s = time.monotonic()

    async def _cut_again(self) -> None:
        """A cut that met no table holds by the rules that are back; the flows that it was to end may still be there."""
        for slot, bottle in tuple(self._bottles().items()):
            if bottle.phase in {Phase.CUT, Phase.FROZEN}:
                with contextlib.suppress(OSError, AgentmonError):  # it has ended meanwhile
                    await self._in_kernel(self._nft.end_refused, slot)

    def _concerns(self, change: Change) -> bool:
        bottle = None if change.slot is None else self._bottles().get(change.slot)
        return change.slot is None or (bottle is not None and bottle.phase is not Phase.STOPPING)

    def _pause_s(self) -> float:
        return min(PAUSE_MAX_S, PAUSE_S * 2 ** (self._row - AT_ONCE)) if self._row > AT_ONCE else 0.0

    def _quiet(self) -> None:
        if self._untold:
            what = "others changed rules, routes or devices again and again; it is quiet now"
            self._emit(Event("tamper", "observed", layer="daemon", reason=what, count=self._untold))
        self._row = self._untold = 0

    def _tell(self, slot: int | None, differences: Sequence[Difference], detail: dict[str, Any]) -> None:
        lost = "lost" in detail
        if self._row > ALOUD and not lost:
            self._untold += len(differences)
            return
        first = next((d for d in differences if isinstance(d, Change) and d.pid), differences[0])
        bottle = None if slot is None else self._bottles().get(slot)
        reason = told(d.what for d in differences)
        if self._row == ALOUD:
            reason += f"; again and again: from now on it is put back every {PAUSE_MAX_S:g} s at the latest, and closed"
        detail = {"part": told(d.kind.value for d in differences), "place": first.place.value, **detail}
        self._emit(
            Event(
                "tamper", "refused" if lost else "observed", bottle="" if bottle is None else bottle.name,
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
