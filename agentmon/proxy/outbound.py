"""What is done with what was found in a request: who is asked, what can be answered, what the agent reads. Pure.

findings ─▶ action_of(route): block ─▶ 403 · redact ─▶ markers, scanned again · supervise ─▶ Proposal ─▶ Ask ─▶ Decision
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agentmon import wire
from agentmon.dlp.scanner import Finding
from agentmon.proxy import bodies, inject


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


class Outcome(enum.Enum):
    """What became of one finding, beside what a Decision says: the reason of its event."""

    BLOCKED = "block"
    REDACTED = "redacted"
    NOT_REDACTABLE = "not-redactable"
    STREAM = "stream"  # found after a part of the body had left
    ENCODING = "encoding"  # cannot be read, so cannot be searched
    SPLIT = "crlf"  # would be read as another header or request


Reason = Decision | Outcome

_SAYS: dict[Reason, str] = {
    Outcome.BLOCKED: "Requests with secrets are refused for this host.",
    Outcome.NOT_REDACTABLE: "It cannot be taken out from there.",
    Outcome.STREAM: "The upload was broken off.",
    Decision.REJECTED: "The operator was asked and said no.",
    Decision.TIMEOUT: "The operator was asked and did not answer in time.",
    Decision.NOBODY: "Nobody can be asked for approval.",
    Decision.FULL: "Too many requests wait for approval already.",
    Decision.UNAVAILABLE: "The operator cannot be asked at the moment.",
    Decision.MALFORMED: "The operator was asked; the answer could not be read.",
    Decision.GONE: "The bottle was ended while the operator was being asked.",
}
_KEEP_OUT = "leave the value out of the request"


def action_of(route: wire.Route | None) -> str:
    """block | redact | supervise; supervise where no route says."""
    return route.outbound if route is not None else "supervise"


def has_own(route: wire.Route | None) -> bool:
    """Whether the bottle's own credentials pass to the host, as its owner wants it."""
    return not inject.strips(route)


def unscanned(route: wire.Route | None) -> frozenset[str]:
    """Headers that are not searched: those the route exempts, and the one that agentmon fills in itself."""
    if route is None:
        return frozenset()
    own = {route.auth_header.lower()} if route.auth_credential else set()
    return frozenset(own | {name.lower() for name in route.scan_headers_except})


def proposal(slot: int, run: str, host: str, method: str, path: str, finding: Finding) -> Proposal:
    """:param path: without what was found in it."""
    return Proposal(
        slot, run, host, method, path, finding.detector, finding.where, finding.context, finding.digest
    )  # fmt: skip


def refusal(finding: Finding, reason: Reason, host: str, bottle: str) -> bodies.Error:
    """The 403's error object: what was found where, why it was refused, how to go on; never the value."""
    message = f"What looks like a secret ({finding.detector}) is in the request's {finding.where}; it was not sent."
    hint = _KEEP_OUT
    if reason in {Decision.NOBODY, Decision.TIMEOUT, Decision.FULL, Decision.UNAVAILABLE}:
        hint += "; the operator can answer with: agentmon approvals list"
    error = bodies.egress_denied(f"{message} {_SAYS[reason]}", host, hint)
    return error | {"detector": finding.detector, "where": finding.where, "decision": reason.value}


def split_refusal(where: str, host: str) -> bodies.Error:
    """Of a line end where there can be none."""
    message = f"The request's {where} has a line end that others could read as a new header or request."
    return bodies.egress_denied(message, host, "encode it once, as text of a body") | {"decision": Outcome.SPLIT.value}


def encoding_refusal(host: str) -> bodies.Error:
    """Of a body that cannot be searched."""
    message = "The request's body does not decode, or expands too far."
    hint = "use gzip, deflate, br or zstd with a content-length, or no content-encoding"
    return bodies.egress_denied(message, host, hint) | {"decision": Outcome.ENCODING.value}
