"""What proxy workers are told when the settings change, beside views: each that runs, and those that start later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentmon import wire
from agentmon.control.state import Bottle, Phase
from agentmon.daemon.approvals import Approvals
from agentmon.daemon.services import Service
from agentmon.errors import AgentmonError

_MODULE = "agentmon.proxy"


class Workers:
    """For one daemon. A worker that does not answer is told all when it is back."""

    def __init__(self, services: Callable[[], Iterable[Service]], approvals: Approvals) -> None:
        self._services = services
        self._approvals = approvals

    async def providers(self, declared: Mapping[str, Any]) -> None:
        """The settings' `providers:`."""
        for worker in self._workers():
            worker.configure(providers=declared)
            await self._tell(worker, wire.SetProviders(worker.next_id(), dict(declared)))

    async def approvals(self, bottles: Iterable[Bottle]) -> None:
        """How long an answer may take by now."""
        for bottle in bottles:
            if bottle.phase not in {Phase.STARTING, Phase.STOPPING} and self._approvals.lacks(bottle):
                for worker in self._workers():
                    await self._tell(worker, self._approvals.told(bottle, worker.next_id()))

    def _workers(self) -> list[Service]:
        return [service for service in self._services() if service.spec.module == _MODULE]

    @staticmethod
    async def _tell(worker: Service, message: wire.SetProviders | wire.SetApprovals) -> None:
        try:
            await worker.call(message)
        except AgentmonError as error:
            what = f"{type(message).__name__}: {error}; it is told when it is back"
            print(f"warning: {what}", file=sys.stderr, flush=True)
