"""Which bottle has which flows: the limit on their number, and their end when the policy's word changes."""

from __future__ import annotations

import socket

from agentmon.events import Event
from agentmon.lookup import Lookups
from agentmon.relay import gate
from agentmon.relay.flow import HELLO_S, Flow, Surroundings
from agentmon.reporting import Reporter
from agentmon.views import Views

CONNECTIONS = 1000


class Flows:
    def __init__(self, views: Views, lookups: Lookups, reporter: Reporter, port: int, hello_s: float = HELLO_S) -> None:
        self._views = views
        self._reporter = reporter
        self._port = port
        self._flows: dict[int, set[Flow]] = {}
        self._around = Surroundings(lookups, port, views.get, self._refused, self._failed, self._observed, hello_s)

    def count(self, slot: int) -> int:
        return len(self._flows.get(slot, ()))

    def accept(self, client: socket.socket, slot: int) -> None:
        """Take over an accepted, non-blocking socket."""
        view = self._views.get(slot)
        if view is None:
            client.close()
            return
        if self.count(slot) >= view.wire.limits.get("connections", CONNECTIONS):
            self._refused(slot, "limit", "", "")
            client.close()
            return
        flow = Flow(slot, client, self._around)
        self._flows.setdefault(slot, set()).add(flow)
        flow.start(self._ended)

    def recheck(self, slot: int) -> int:
        """Abort what the bottle's view of now does not admit; how many."""
        view = self._views.get(slot)
        doomed = [
            flow
            for flow in self._flows.get(slot, ())
            if not flow.aborted
            and (view is None or (flow.host and not gate.decide(view, flow.host, self._port).allowed))
        ]
        return self._abort(doomed)

    def close(self, slot: int) -> int:
        """Abort all flows of a bottle; how many."""
        return self._abort([flow for flow in self._flows.get(slot, ()) if not flow.aborted])

    def _abort(self, flows: list[Flow]) -> int:
        for flow in flows:
            flow.abort()
        return len(flows)

    def _ended(self, flow: Flow) -> None:
        flows = self._flows.get(flow.slot, set())
        flows.discard(flow)
        if not flows:
            self._flows.pop(flow.slot, None)

    def _refused(self, slot: int, reason: str, host: str, rule: str) -> None:
        self._note(slot, "refused", reason, host, rule)

    def _failed(self, slot: int, reason: str, host: str) -> None:
        self._note(slot, "allowed", reason, host)

    def _observed(self, slot: int, host: str) -> None:
        self._note(slot, "observed", "default", host)

    def _note(self, slot: int, verdict: str, reason: str, host: str, rule: str = "") -> None:
        view = self._views.get(slot)
        if view is None:
            return
        self._reporter.note(
            slot,
            Event(
                "connect",
                verdict,
                view.wire.bottle,
                reason,
                "relay",
                proto="tcp",
                port=self._port,
                host=host,
                rule=rule,
                epoch=view.wire.epoch,
            ),
        )
