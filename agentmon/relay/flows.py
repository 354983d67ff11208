"""Which bottle has which flows: the limit on their number, and their end when the policy's word changes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable

from agentmon.events import Event
from agentmon.lookup import Lookups
from agentmon.relay import gate
from agentmon.relay.flow import Flow, Patience, Surroundings
from agentmon.reporting import Reporter
from agentmon.views import Views

CONNECTIONS = 1000


class Flows:
    def __init__(self, views: Views, lookups: Lookups, reporter: Reporter, port: int, patience: Patience) -> None:
        self._views = views
        self._reporter = reporter
        self._port = port
        self._flows: dict[int, set[Flow]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._around = Surroundings(lookups, port, views.get, self._refused, self._failed, self._observed, patience)

    def count(self, slot: int) -> int:
        return len(self._flows.get(slot, ()))

    def accept(self, client: socket.socket, slot: int, port: int) -> None:
        """Take over an accepted, non-blocking socket. `port`: the client's, by which its process is found."""
        view = self._views.get(slot)
        if view is None:
            client.close()
            return
        if self.count(slot) >= view.wire.limits.get("connections", CONNECTIONS):
            named = self._refused(slot, port, "limit", "", "")
            if named is None:
                client.close()
            else:
                task = asyncio.ensure_future(_close_after(named, client))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            return
        flow = Flow(slot, client, port, self._around)
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

    def _refused(self, slot: int, port: int, reason: str, host: str, rule: str) -> Awaitable[None] | None:
        event = self._event(slot, "refused", reason, host, rule)
        return self._reporter.note_of(slot, event, "tcp", port) if event is not None else None

    def _failed(self, slot: int, reason: str, host: str) -> None:
        self._note(slot, "allowed", reason, host)

    def _observed(self, slot: int, host: str) -> None:
        self._note(slot, "observed", "default", host)

    def _note(self, slot: int, verdict: str, reason: str, host: str) -> None:
        event = self._event(slot, verdict, reason, host)
        if event is not None:
            self._reporter.note(slot, event)

    def _event(self, slot: int, verdict: str, reason: str, host: str, rule: str = "") -> Event | None:
        view = self._views.get(slot)
        if view is None:
            return None
        return Event(
            "connect", verdict, view.wire.bottle, reason, "relay", proto="tcp", port=self._port, host=host, rule=rule,
            epoch=view.wire.epoch,
        )  # fmt: skip


async def _close_after(named: Awaitable[None], client: socket.socket) -> None:
    """Its process is found by the open socket."""
    try:
        await named
    finally:
        client.close()
