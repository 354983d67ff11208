"""One proposal that waits for an operator: whose it is, who waits for the answer, and what people are shown of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from agentmon import wire
from agentmon.channel import Channel
from agentmon.errors import BadInput
from agentmon.events import now_ns, rfc3339

_TEXT = 512
_REASON = 500

Key = tuple[str, str, bytes]  # run, host, digest
Waiter = tuple[Channel, int]


@dataclass(slots=True, eq=False)
class Pending:
    """One proposal that waits. `number`: the ledger's, 0 until it has it."""

    asked: wire.Propose
    bottle: str
    waiters: list[Waiter]
    until_ns: int  # CLOCK_REALTIME
    asked_ns: int = field(default_factory=now_ns)
    number: int = 0
    timer: asyncio.TimerHandle | None = None
    deciding: bool = False  # an operator's decision is on its way into the ledger
    ended: bool = False

    @property
    def key(self) -> Key:
        return self.asked.run, self.asked.host, self.asked.digest

    def shown(self) -> dict[str, Any]:
        """For people and the hook; without the digest."""
        m = self.asked
        return {
            "id": self.number, "ts": rfc3339(self.asked_ns), "until": rfc3339(self.until_ns), "bottle": self.bottle,
            "kind": "secret", "state": "waiting", "host": m.host, "method": m.method, "path": m.path,
            "detector": m.detector, "place": m.where, "context": m.context, "requests": len(self.waiters),
        }  # fmt: skip


def checked_reason(reason: str) -> str:
    """:raises BadInput: a reason that says nothing, or too much."""
    reason = reason.strip()
    if not reason:
        raise BadInput("a decision needs a reason", 'it is kept in the audit: --reason "our own test key"')
    if len(reason) > _REASON or not reason.isprintable():
        raise BadInput(f"the reason is not one line of at most {_REASON} characters", "write a short sentence")
    return reason


def bounded(m: wire.Propose) -> wire.Propose:
    """The worker reads what strangers send: its texts are one line each, and short. Host and digest stay."""
    return wire.Propose(
        m.id, m.slot, m.run, m.host, _line(m.method)[:32], _line(m.path), _line(m.detector), _line(m.where),
        _line(m.context), m.digest,
    )  # fmt: skip


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_TEXT])
