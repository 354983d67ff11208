"""`approvals list`, `approve` and `reject`: who may, and what is kept of it.

Everybody who may speak to the daemon sees proposals of bottles of his own; root sees all. Deciding is root's, and an
owner's where the settings grant it. Decisions are audited with their reasons; attempts that are refused by Ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentmon import wire
from agentmon.daemon.connection import Connection
from agentmon.errors import BadInput, Refused

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon


class ApprovalOps:
    """Handlers for ops.Ops; raise AgentmonError."""

    def __init__(self, daemon: Daemon) -> None:
        self._d = daemon

    async def list(self, connection: Connection, request: wire.Request) -> None:
        uid = connection.peer.uid
        rows = self._d.approvals.waiting(lambda bottle: uid == 0 or self._owner(bottle) == uid)
        connection.send(wire.Reply(request.id, rows))

    async def decide(self, connection: Connection, request: wire.Request) -> None:
        uid, number = connection.peer.uid, int(request.args["id"])
        reason = str(request.args.get("reason") or "")
        try:
            bottle = self._d.approvals.bottle_of(number)
        except BadInput as error:
            if uid == 0:
                raise
            raise BadInput(f"no proposal {number} of yours waits", "agentmon approvals list") from error
        self._check(uid, bottle, number)
        shown = await self._d.approvals.decide(number, request.op, uid, reason)
        connection.send(wire.Reply(request.id, shown))
        detail = {key: shown[key] for key in ("id", "reason", "host", "method", "path", "detector", "place")}
        await self._d.ops.trail.done(uid, request.op, bottle, detail | {"result": "done"})

    def _check(self, uid: int, bottle: str, number: int) -> None:
        """:raises BadInput: as if there were none. :raises Refused: of one's own, without the grant."""
        if uid == 0:
            return
        if self._owner(bottle) != uid:
            raise BadInput(f"no proposal {number} of yours waits", "agentmon approvals list")
        if not self._d.settings.grants.approve:
            raise Refused(f"uid {uid} may not decide proposals", "sudo, or grants: {approve: true} in settings.yml")

    def _owner(self, bottle: str) -> int | None:
        found = self._d.host.find(bottle)
        return None if found is None else found.job.owner
