"""The proxy workers of one daemon: which serve a bottle, and what they are told when the settings change.

A bottle belongs to one worker, by its slot: the resolver answers with that one's address, and the rules let the bottle
reach no other. The first worker serves plain HTTP to name rules besides, of every bottle (it listens at the relay's
address), so it is told of all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentmon import wire
from agentmon.control.state import Bottle, Phase
from agentmon.daemon.approvals import Approvals
from agentmon.daemon.services import Service
from agentmon.daemon.specs import FIRST_PROXY, proxy_name
from agentmon.errors import AgentmonError

_MODULE = "agentmon.proxy"


class Workers:
    """For one daemon. A worker that does not answer is told all when it is back."""

    def __init__(self, services: Callable[[], Iterable[Service]], approvals: Approvals) -> None:
        self._services = services
        self._approvals = approvals

    @staticmethod
    def is_one(service: Service) -> bool:
        return service.spec.module == _MODULE

    def of(self, bottle: Bottle) -> list[Service]:
        """Those that have to know a bottle: its own first."""
        own = proxy_name(bottle.worker)
        return [s for s in sorted(self.all(), key=lambda s: s.name != own) if s.name in (own, FIRST_PROXY)]

    def all(self) -> list[Service]:
        return [service for service in self._services() if self.is_one(service)]

    async def providers(self, declared: Mapping[str, Any]) -> None:
        """The settings' `providers:`."""
        for worker in self.all():
            worker.configure(providers=declared)
            await self._tell(worker, wire.SetProviders(worker.next_id(), dict(declared)))

    async def approvals(self, bottles: Iterable[Bottle]) -> None:
        """How long an answer may take by now."""
        for bottle in bottles:
            if bottle.phase not in {Phase.STARTING, Phase.STOPPING} and self._approvals.lacks(bottle):
                for worker in self.of(bottle):
                    await self._tell(worker, self._approvals.told(bottle, worker.next_id()))

    @staticmethod
    async def _tell(worker: Service, message: wire.SetProviders | wire.SetApprovals) -> None:
        try:
            await worker.call(message)
        except AgentmonError as error:
            what = f"{type(message).__name__}: {error}; it is told when it is back"
            print(f"warning: {what}", file=sys.stderr, flush=True)
