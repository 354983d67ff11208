"""What a worker reports: requests refused or seen, clients that do not trust us, connections that had to be ended."""

from __future__ import annotations

from agentmon.events import Event
from agentmon.proxy.bottles import Bottle, Bottles
from agentmon.proxy.decide import Allow, Facts, Refuse
from agentmon.reporting import Reporter


class Sightings:
    """As much as the bottle's `log` says: off | blocks | full. Never bodies, queries or header values."""

    def __init__(self, bottles: Bottles, reporter: Reporter) -> None:
        self._bottles = bottles
        self._reporter = reporter

    def hello(self, slot: int, host: str, port: int, reason: str) -> None:
        """A TLS hello for a name that is not allowed, or for none."""
        self._note(slot, Event("request", "refused", reason=reason, layer="proxy", proto="tcp", host=host, port=port))

    def refused(self, slot: int, verdict: Refuse, facts: Facts) -> None:
        detail = {"method": facts.method[:20], "path": verdict.path[:200], "status": verdict.status}
        event = Event(
            "request", "refused", reason=verdict.reason, layer="proxy", proto="tcp", host=verdict.host, port=facts.port,
            rule=verdict.rule, hint=verdict.hint, detail=detail,
        )  # fmt: skip
        self._note(slot, event)

    def allowed(self, bottle: Bottle, verdict: Allow, facts: Facts) -> None:
        """With `log: full`, and whatever only observe mode lets through."""
        if bottle.view.log != "full" and not verdict.observed:
            return
        event = Event(
            "request", "observed" if verdict.observed else "allowed", layer="proxy", proto="tcp", host=verdict.host,
            port=facts.port, rule=verdict.rule, detail={"method": facts.method[:20], "path": verdict.path[:200]},
        )  # fmt: skip
        self._note(bottle.view.slot, event)

    def distrust(self, slot: int, host: str, port: int, error: str) -> None:
        """The client broke off the handshake with us."""
        hint = "the client may pin certificates, or look for its roots elsewhere than in SSL_CERT_FILE"
        event = Event(
            "request", "observed", reason="client-tls", layer="proxy", proto="tcp", host=host, port=port, hint=hint,
            detail={"error": error[:200]},
        )  # fmt: skip
        self._note(slot, event)

    def ended(self, slot: int, host: str, port: int, what: str, error: str) -> None:
        """A connection was closed because it broke a limit, or because deciding about it failed."""
        event = Event(
            "request", "refused", reason=what, layer="proxy", proto="tcp", host=host, port=port,
            hint="the connection was closed", detail={"error": error[:300]},
        )  # fmt: skip
        self._note(slot, event)

    def _note(self, slot: int, event: Event) -> None:
        bottle = self._bottles.at(slot)
        if bottle is None or bottle.view.log == "off":
            return
        fields = {name: getattr(event, name) for name in event.__struct_fields__}
        fields |= {"bottle": bottle.view.bottle, "epoch": bottle.view.epoch}
        self._reporter.note(slot, Event(**fields))
