"""What a worker reports: requests refused or seen, clients that do not trust us, connections that had to be ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from agentmon.dlp.scanner import Finding as Secret
from agentmon.events import TRAFFIC, Event
from agentmon.injection.watch import Finding
from agentmon.proxy.bottles import Bottle, Bottles
from agentmon.proxy.decide import Allow, Facts, Refuse
from agentmon.proxy.outbound import Decision, Outcome, Reason
from agentmon.reporting import Reporter

_ASK = "somebody has to answer within approvals_timeout: agentmon approvals list"
_SECRET_HINTS: dict[Reason, str] = {
    Outcome.BLOCKED: "the route's outbound: says block; redact takes values out, supervise asks",
    Outcome.NOT_REDACTABLE: "the route's outbound: says redact; from there nothing can be taken out",
    Outcome.STREAM: "an upload whose length is not known is broken off: with a content-length it is searched first",
    Outcome.ENCODING: "the client has to use gzip, deflate, br or zstd, with a content-length",
    Outcome.SPLIT: "no rule helps: a line end there is an attack on the server",
    Decision.NOBODY: "let somebody answer (approvals: in the settings), or write outbound: redact into the route",
    Decision.TIMEOUT: _ASK,
    Decision.FULL: _ASK,
}


class Sightings:
    """As much as the bottle's `log` says: off | blocks | full. Never bodies, queries or header values.

    A refusal names the process that holds `source`, the client's port: what it returns is to be awaited while the
    connection is open; None: nothing to wait for."""

    def __init__(self, bottles: Bottles, reporter: Reporter) -> None:
        self._bottles = bottles
        self._reporter = reporter
        self.shown: Callable[[int, str], str] = lambda slot, text: text[:200]  # a host or path without secrets in it

    def hello(self, slot: int, source: int, host: str, port: int, reason: str) -> Awaitable[None] | None:
        """A TLS hello for a name that is not allowed, or for none."""
        event = Event("request", "refused", reason=reason, layer="proxy", proto="tcp", host=host, port=port)
        return self._note_of(slot, source, event)

    def refused(self, slot: int, source: int, verdict: Refuse, facts: Facts) -> Awaitable[None] | None:
        detail = {"method": facts.method[:20], "path": self.shown(slot, verdict.path), "status": verdict.status}
        event = Event(
            "request", "refused", reason=verdict.reason, layer="proxy", proto="tcp",
            host=self.shown(slot, verdict.host), port=facts.port,
            rule=verdict.rule, hint=verdict.hint, detail=detail,
        )  # fmt: skip
        return self._note_of(slot, source, event)

    def observed(self, bottle: Bottle, verdict: Allow, facts: Facts) -> None:
        """What only observe mode lets through, before it goes."""
        if verdict.observed:
            self._note(bottle.view.slot, self._request(bottle, verdict, facts, "observed", {}))

    def passed(self, bottle: Bottle, verdict: Allow, facts: Facts, status: int | None, took_ns: int) -> None:
        """With `log: full`: each request that went out, when it is over. `status`: None where there was no answer."""
        if bottle.view.log != "full" or verdict.observed:
            return
        more = {} if status is None else {"status": status}
        event = self._request(bottle, verdict, facts, "allowed", more | {"ms": round(took_ns / 1e6, 1)})
        self._reporter.each(event)

    def _request(self, bottle: Bottle, verdict: Allow, facts: Facts, said: str, more: dict[str, Any]) -> Event:
        view = bottle.view
        detail = {"method": facts.method[:20], "path": self.shown(view.slot, verdict.path)} | more
        return Event(
            "request", said, bottle=view.bottle, layer="proxy", proto="tcp", host=verdict.host, port=facts.port,
            rule=verdict.rule, epoch=view.epoch, detail=detail,
        )  # fmt: skip

    def secret(
        self, slot: int, source: int, verdict: Allow, facts: Facts, found: Secret, reason: Reason
    ) -> Awaitable[None] | None:
        """What looks like a secret, in something that was to leave; whatever `log` says. Never the value."""
        detail = {
            "detector": found.detector, "where": found.where, "action": reason.value, "context": found.context,
            "method": facts.method[:20], "path": self.shown(slot, verdict.path),
        }  # fmt: skip
        left = reason in {Decision.APPROVED, Outcome.REDACTED}
        event = Event(
            "secret", "allowed" if left else "refused", reason=reason.value, layer="proxy", proto="tcp",
            host=self.shown(slot, verdict.host), port=facts.port, rule=verdict.rule, hint=_SECRET_HINTS.get(reason, ""),
            detail=detail,
        )  # fmt: skip
        return self._note_of(slot, source, event)

    def uncounted(self, bottle: Bottle, verdict: Allow, facts: Facts, why: str) -> None:
        """A provider did not say what a request brings in, though it was to be asked; `why`: in words of ours."""
        hint = "the request waits as without `providers: {NAME: {count: true}}` of the settings, which is what asks"
        event = Event(
            "count", "observed", reason=why, layer="proxy", proto="tcp", host=verdict.host, port=facts.port, hint=hint
        )
        self._note(bottle.view.slot, event)

    def distrust(self, slot: int, host: str, port: int, error: str) -> None:
        """The client broke off the handshake with us."""
        hint = "the client may pin certificates, or look for its roots elsewhere than in SSL_CERT_FILE"
        event = Event(
            "request", "observed", reason="client-tls", layer="proxy", proto="tcp", host=host, port=port, hint=hint,
            detail={"error": error[:200]},
        )  # fmt: skip
        self._note(slot, event)

    def ended(self, slot: int, source: int, host: str, port: int, what: str, error: str) -> Awaitable[None] | None:
        """A connection was closed because it broke a limit, or because deciding about it failed."""
        event = Event(
            "request", "refused", reason=what, layer="proxy", proto="tcp", host=host, port=port,
            hint="the connection was closed", detail={"error": error[:300]},
        )  # fmt: skip
        return self._note_of(slot, source, event)

    def injection(
        self, slot: int, source: int, verdict: Allow, port: int, how: str, where: str, finding: Finding
    ) -> Awaitable[None] | None:
        """What a server said seems to be addressed to the agent. `how`: observed | refused; `where`: it was said."""
        detail = {"path": verdict.path[:200], "where": where, "says": finding.says, "excerpt": finding.excerpt}
        event = Event(
            "injection", how, reason=finding.rule, layer="proxy", proto="tcp", host=verdict.host, port=port,
            detail=detail, hint="inbound: of the host's route says what is done: off, warn, block",
        )  # fmt: skip
        return self._note_of(slot, source, event)

    def socket_ended(self, slot: int, source: int, host: str, port: int, error: str) -> Awaitable[None] | None:
        """A WebSocket was closed because a message was too large, or no message of the protocol."""
        event = Event(
            "websocket", "refused", reason="limit", layer="proxy", proto="tcp", host=host, port=port,
            hint="the socket was closed", detail={"error": error[:300]},
        )  # fmt: skip
        return self._note_of(slot, source, event)

    def _note(self, slot: int, event: Event) -> None:
        full = self._of(slot, event)
        if full is not None:
            self._reporter.note(slot, full)

    def _note_of(self, slot: int, source: int, event: Event) -> Awaitable[None] | None:
        full = self._of(slot, event)
        return self._reporter.note_of(slot, full, "tcp", source) if full is not None else None

    def _of(self, slot: int, event: Event) -> Event | None:
        """The event with its bottle; None where nothing is to be said."""
        bottle = self._bottles.at(slot)
        if bottle is None or (bottle.view.log == "off" and event.kind in TRAFFIC):
            return None
        fields = {name: getattr(event, name) for name in event.__struct_fields__}
        fields |= {"bottle": bottle.view.bottle, "epoch": bottle.view.epoch}
        return Event(**fields)
