"""What is asked before something that looks like a secret may leave, and what can be answered. Pure.

edge ─ Proposal ─▶ Ask (approvals.py: ledger's queue; without one: nobody) ─ Decision ─▶ edge: forward, or 403
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Decision(enum.Enum):
    """Everything but APPROVED refuses, each with its own reason in events and in the 403."""

    APPROVED = "approved"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    NOBODY = "nobody"  # nobody can answer: no queue
    FULL = "full"  # too many proposals wait already
    UNAVAILABLE = "unavailable"  # ledger or daemon away
    MALFORMED = "malformed"  # an answer that is none
    GONE = "gone"  # nobody waits any more: the client left, or the bottle was cut


@dataclass(frozen=True, slots=True)
class Proposal:
    """One finding that an operator is asked about; the value is not in it.

    `where`: "body", "header x-note", "query q", "path", "host", "message". `context`: what stands around it, redacted.
    `digest`: keyed (BLAKE2b, 32 bytes; the key is the run's own), the same for the same value in every form and
    request of one run: what an approval is remembered by.
    """

    slot: int
    run: str
    host: str
    method: str
    path: str
    detector: str  # the rule's id, or "exact:NAME" for a value that agentmon knows
    where: str
    context: str
    digest: bytes


class Ask(Protocol):
    """Wait for the decision on one finding. Asked for each digest of a request in turn: what was approved before is
    answered at once.

    `wanted()` turns False when nobody waits for the answer any more (looked at every second or so): withdraw then.
    Never raises; may be cancelled.
    """

    async def __call__(self, proposal: Proposal, wanted: Callable[[], bool]) -> Decision: ...


async def nobody(proposal: Proposal, wanted: Callable[[], bool]) -> Decision:
    """An Ask without anybody behind it."""
    return Decision.NOBODY
