"""FakeHealing: FakeNetfilter whose tables others can change, as far as a daemon sees it: told, closed, put back."""

from __future__ import annotations

import os
from collections.abc import Iterable

from netfilter.blockers import Blocker
from netfilter.changes import Change, Difference, Kind, Place
from netfilter.fake import FakeNetfilter
from netfilter.spec import Address, Proto
from netfilter.verdict import Verdict


class FakeChanges:
    """Changes that a test made, behind an eventfd."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._told: list[Change] = []

    def fileno(self) -> int:
        return self._fd

    def tell(self, change: Change) -> None:
        self._told.append(change)
        os.eventfd_write(self._fd, 1)

    def changes(self) -> list[Change]:
        if self._told:
            os.eventfd_read(self._fd)
        found, self._told = self._told, []
        return found

    def close(self) -> None:
        os.close(self._fd)


class FakeHealing(FakeNetfilter):
    """Keeps netfilter.changes.SelfHealing."""

    broken: frozenset[Difference] = frozenset()
    _changes: FakeChanges | None = None

    def watch(self) -> FakeChanges:
        if self._changes is None:
            self._changes = FakeChanges()
        return self._changes

    def check(self, slot: int | None) -> list[Difference]:
        return [d for d in self.broken if d.slot == slot]

    def restore(self, differences: Iterable[Difference]) -> list[Difference]:
        asked = {(d.slot, d.kind) for d in differences}
        found = [d for d in self.broken if (d.slot, d.kind) in asked]
        self.broken = frozenset(d for d in self.broken if d not in found or d.lost)
        return found

    def blockers(self) -> list[Blocker]:
        return []

    def close_host(self) -> None:
        super().close_host()
        if self._changes is not None:
            self._changes.close()
            self._changes = None

    # ── what a test does with it ──

    def tamper(self, slot: int | None, kind: Kind, what: str, *, lost: bool = False) -> None:
        """Somebody else changes something: until it is put back, nothing of those concerned passes."""
        place = Place.HOST if slot is None else Place.BOTTLE
        self.broken |= {Difference(slot, place, kind, what, lost)}
        self.watch().tell(Change(slot, place, kind, what, lost, pid=1, comm="nft"))

    def packet(self, slot: int, destination: Address, proto: Proto, port: int) -> Verdict:
        held = any(d.slot in {None, slot} for d in self.broken)
        return Verdict.CLOSED if held else super().packet(slot, destination, proto, port)
