"""Proposals and how they ended: two append-only tables, written for the daemon alone. Pure, as the rest of the book.

A proposal is decided once. What a bottle leaves undecided is withdrawn when its run is closed.
"""

from __future__ import annotations

from typing import Protocol

from agentmon import wire
from agentmon.ledger.state import Changes, Now

STATES = frozenset({"approved", "rejected", "expired", "withdrawn"})
_TEXT = 1024  # characters of each text that are kept


class Asked(Protocol):
    """What the file knows of proposals: state.Lookup has it."""

    def last_approval(self) -> int: ...
    def approval_state(self, number: int) -> str | None: ...
    def undecided(self, run: str) -> tuple[int, ...]: ...


class Proposals:
    """Of one batch: numbers given and decisions made in it are not in the file yet."""

    def __init__(self, lookup: Asked) -> None:
        self._lookup = lookup
        self._last = 0  # 0: not asked yet
        self._new: dict[int, str] = {}  # number → run, of those that the file does not have
        self._decided: dict[int, str] = {}

    def begin(self) -> None:
        """Another batch: everything of the last one is in the file."""
        self._new.clear()
        self._decided.clear()

    def propose(self, m: wire.Proposed, now: Now, changes: Changes) -> wire.Message:
        self._last = (self._last or self._lookup.last_approval()) + 1
        texts = (m.bottle, m.run, m.kind, m.host, m.method, m.path, m.detector, m.where, m.context)
        changes.statements.append(("approval", (self._last, now.wall_ns, *(text[:_TEXT] for text in texts))))
        self._new[self._last] = m.run
        return wire.Done(m.id, self._last)

    def decide(self, m: wire.Decide, now: Now, changes: Changes) -> wire.Message:
        if m.state not in STATES:
            return wire.Failed(m.id, "BadInput", f"state {m.state[:80]!r} is not one of {', '.join(sorted(STATES))}")
        state = self._state(m.number)
        if state is None:
            return wire.Failed(m.id, "BadInput", f"there is no proposal {m.number}", "agentmon approvals list")
        if state != "waiting":
            what = f"proposal {m.number} is {state} already"
            return wire.Failed(m.id, "Refused", what, "agentmon approvals list --ended")
        self._end(m.number, m.state, m.uid, m.reason, now, changes)
        return wire.Done(m.id)

    def withdraw(self, run: str, reason: str, now: Now, changes: Changes) -> None:
        """Everything that waits of a run."""
        numbers = {*self._lookup.undecided(run), *(n for n, of in self._new.items() if of == run)}
        for number in sorted(numbers - self._decided.keys()):
            self._end(number, "withdrawn", None, reason, now, changes)

    def _state(self, number: int) -> str | None:
        if number in self._decided:
            return self._decided[number]
        return "waiting" if number in self._new else self._lookup.approval_state(number)

    def _end(self, number: int, state: str, uid: int | None, reason: str, now: Now, changes: Changes) -> None:
        changes.statements.append(("decision", (number, now.wall_ns, state, uid, reason[:_TEXT])))
        self._decided[number] = state
