"""Requests of the command line: who may ask, what is meant, and which event that is for the controller.

Peers are known by SO_PEERCRED and their cgroup. Root may do everything; members of group agentmon may run bottles and
operate their own; a process inside a bottle nothing, whatever its uid.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon import wire
from agentmon.closest import closest
from agentmon.control import events as e
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon import attach, following, requests
from agentmon.daemon.audit import AuditTrail
from agentmon.daemon.clients import error_dict
from agentmon.daemon.connection import Connection
from agentmon.daemon.ops_approvals import ApprovalOps
from agentmon.daemon.posture import Posture
from agentmon.errors import AgentmonError, BadInput, HostLacks, Refused
from agentmon.policy import explain
from agentmon.policy.plain import to_plain

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

Handler = Callable[[Connection, wire.Request], Awaitable[None]]
_OPEN_TO_GROUP = frozenset(  # the socket is root's and group agentmon's
    {"run", "reattach", "signal", "ps", "status", "approvals", "approve", "reject"}
)
_OWN = frozenset({"events", "cut", "freeze", "resume", "kill", "allow", "deny", "budget_show", "budget_set", "explain"})


class Ops:
    """Serves control connections for one Daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._d = daemon
        self._compared = Posture(daemon)
        self.trail = AuditTrail(lambda *row: daemon.ledger.audit(*row), lambda event: daemon.log.add(event))
        approvals = ApprovalOps(daemon)
        self._handlers: dict[str, Handler] = {
            "run": self._run, "reattach": self._reattach, "signal": self._signal,
            "ps": self._ps, "status": self._status, "posture": self._posture,
            "events": self._events, "cut": self._operator, "freeze": self._operator, "resume": self._operator,
            "kill": self._operator, "attach": self._attach, "detach": self._operator,
            "allow": self._rule, "deny": self._rule, "budget_show": self._budget_show,
            "budget_set": self._budget_set, "explain": self._explain, "shutdown": self._shutdown,
            "approvals": approvals.list, "approve": approvals.decide, "reject": approvals.decide,
        }  # fmt: skip

    async def serve(self, sock: socket.socket) -> None:
        """One connection until it closes; a bottle started over it ends with it."""
        try:
            connection = Connection(sock)
        except OSError:
            sock.close()
            return
        try:
            with contextlib.suppress(wire.WireError):
                async for message in connection.messages():
                    if isinstance(message, wire.Request):
                        self._d.spawn(self._one(connection, message), message.op)
        finally:
            for slot in self._d.clients.gone(connection):
                if not self._d.keeping:  # an ending daemon leaves its bottles to the next one
                    self._d.runner.dispatch(e.ClientGone(slot))
            await connection.close()

    async def _one(self, connection: Connection, request: wire.Request) -> None:
        try:
            self._authorise(connection, request)
            handler = self._handlers.get(request.op)
            if handler is None:
                raise BadInput(
                    f"the daemon does not know the request {request.op!r}", "command and daemon differ in version"
                )
            await handler(connection, request)
        except AgentmonError as error:
            await self._turn_down(connection, request, error)
        except (TypeError, KeyError, ValueError) as error:  # a request of the wrong shape
            wrong = BadInput(f"request {request.op!r} is malformed: {error!r}")
            await self._turn_down(connection, request, wrong)
        except OSError as error:
            await self._turn_down(connection, request, HostLacks(str(error)))

    async def _turn_down(self, connection: Connection, request: wire.Request, error: AgentmonError) -> None:
        connection.send(wire.Reply(request.id, None, error_dict(error.kind, error.message, error.hint)))
        await self.trail.refused(connection.peer.uid, request, error)

    def _authorise(self, connection: Connection, request: wire.Request) -> None:
        """:raises Refused: says who could, or how it could be granted."""
        peer = connection.peer
        if self._in_bottle(peer.pid):
            raise Refused("processes inside a bottle may not speak to the daemon")
        if peer.uid == 0 or request.op in _OPEN_TO_GROUP:
            return
        name = request.args.get("bottle")
        if request.op in _OWN and name and not request.args.get("all"):
            bottle = self._target(request, str(name))
            if bottle.job.owner == peer.uid:
                if request.args.get("budget") and not self._d.settings.grants.raise_budget:
                    raise Refused(
                        f"uid {peer.uid} may not raise a budget",
                        "sudo, or grants: {raise_budget: true} in settings.yml",
                    )
                return
            raise Refused(f"bottle {bottle.name} was started by uid {bottle.job.owner}", "use sudo")
        raise Refused(f"uid {peer.uid} may not use {request.op.replace('_', ' ')} here", "use sudo")

    def _in_bottle(self, pid: int) -> bool:
        try:
            text = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return True  # the peer is gone, or hidden: nobody
        parent = self._d.kernel.tree.parent.name
        with contextlib.suppress(OSError):
            if any(b.attached and self._d.kernel.tree.holds(b.slot, pid) for b in self._d.host.bottles.values()):
                return True
        return any(f"/{parent}/b" in line for line in text.splitlines() if line.startswith("0::"))

    def _target(self, request: wire.Request, name: str) -> Bottle:
        """The bottle that a request names; one that is on disk only can be resumed and discarded."""
        saved = self._d.host.saved.get(name)
        return saved if saved is not None and request.op in {"resume", "kill"} else self._bottle(name)

    def _bottle(self, name: str) -> Bottle:
        bottle = self._d.host.find(name)
        if bottle is None and name in self._d.host.saved:
            raise BadInput(f"bottle {name!r} is frozen and saved, it does not run", f"agentmon resume {name}")
        if bottle is None:
            running = sorted(b.name for b in self._d.host.bottles.values())
            meant = closest(name, running)
            hint = f"did you mean {meant}? " if meant else ""
            raise BadInput(f"no bottle is named {name!r}", f"{hint}running: {', '.join(running) or 'none'}")
        return bottle

    def _owned(self, slot: int, connection: Connection) -> Bottle:
        bottle = self._d.host.bottles.get(slot)
        if bottle is None:
            raise BadInput(f"no bottle is in slot {slot}", "agentmon ps")
        if connection.peer.uid not in {0, bottle.job.owner}:
            raise Refused(f"bottle {bottle.name} was started by uid {bottle.job.owner}", "use sudo")
        return bottle

    # ── bottles ──

    async def _run(self, connection: Connection, request: wire.Request) -> None:
        features = self._d.kernel.bpf.features()
        policy = requests.policy(request.args, self._d.settings, self._d.providers, connection.peer, features)
        job = requests.job(request.args, connection.peer)
        number = self._d.clients.add(connection, request)
        done = self._d.runner.dispatch(e.RunRequested(number, policy, job, uuid.uuid4().hex, time.time_ns()))
        if done is not None:
            await done
        await self._audit(
            connection.peer.uid,
            "run",
            policy.bottle,
            {"command": job.argv[0], "as": job.uid, "result": self._d.clients.outcome(number)},
        )

    async def _attach(self, connection: Connection, request: wire.Request) -> None:
        args, bottles = request.args, self._d.host.bottles
        found = await asyncio.to_thread(attach.find, args, self._d.kernel.tree, bottles)
        named = {"argv": [found.what.rpartition(" ")[2]], **args}
        policy = requests.policy(
            named, self._d.settings, self._d.providers, connection.peer, self._d.kernel.bpf.features()
        )
        job = Job((f"[{found.what}]",), (), "/", 0, 0, (), tty=False, owner=connection.peer.uid)
        number = self._d.clients.add(connection, request)
        event = e.AttachRequested(number, policy, job, found, uuid.uuid4().hex, time.time_ns())
        done = self._d.runner.dispatch(event)
        if done is not None:
            await done
        result = self._d.clients.outcome(number)
        await self._audit(connection.peer.uid, "attach", policy.bottle, {"to": found.what, "result": result})

    async def _reattach(self, connection: Connection, request: wire.Request) -> None:
        bottle = self._owned(int(request.args["slot"]), connection)
        if bottle.run != request.args["run"]:
            raise BadInput("that bottle has ended; another one is in its slot now", "agentmon ps")
        self._d.clients.attach(bottle.slot, connection, request)

    async def _signal(self, connection: Connection, request: wire.Request) -> None:
        bottle = self._owned(int(request.args["slot"]), connection)
        await self._d.spawner.signal(bottle.slot, int(request.args["signum"]))
        connection.send(wire.Reply(request.id, {}))

    async def _operator(self, connection: Connection, request: wire.Request) -> None:
        args = request.args
        name = "" if args.get("all") else str(args["bottle"])
        if request.op == "resume" and name in self._d.host.saved:
            await self._restart(connection, request)
            return
        tokens, provider = requests.budget(args.get("budget"))
        number = self._d.clients.add(connection, request)
        uid = connection.peer.uid
        standing = await self._standing(name) if request.op == "resume" else {}
        done = self._d.runner.dispatch(e.Operator(number, request.op, name, uid, tokens, provider, standing))
        if done is not None:
            await done
        result = self._d.clients.outcome(number)
        detail = {"budget": tokens, "result": result} if tokens else {"result": result}
        await self._audit(uid, request.op, name or "all", detail)

    async def _restart(self, connection: Connection, request: wire.Request) -> None:
        """resume of a bottle that is on disk only: this connection becomes its command line."""
        args, uid = request.args, connection.peer.uid
        saved = self._d.saves.of(self._d.host.saved[str(args["bottle"])].run)
        if saved is None:
            raise BadInput("what was saved is gone", "agentmon ps")
        features = self._d.kernel.bpf.features()
        bottle = await asyncio.to_thread(requests.restarted, saved, args, uid, self._d.settings, features)
        tokens, provider = requests.budget(args.get("budget"))
        number = self._d.clients.add(connection, request)
        event = e.RestartRequested(number, bottle, uid, time.time_ns(), tokens, provider)
        done = self._d.runner.dispatch(event)
        if done is not None:
            await done
        detail = {"budget": tokens} if tokens else {}
        await self._audit(uid, "resume", bottle.name, {**detail, "result": self._d.clients.outcome(number)})

    async def _standing(self, name: str) -> dict[int, list[dict[str, Any]]]:
        """What the ledger says now: a budget may have been raised, or its window have ended, since it cut."""
        found = {}
        for bottle in tuple(self._d.host.bottles.values()):
            if name in {"", bottle.name, str(bottle.slot)} and bottle.phase in {Phase.CUT, Phase.FROZEN}:
                found[bottle.slot] = await self._d.ledger.spent(bottle.slot)
        return found

    async def _rule(self, connection: Connection, request: wire.Request) -> None:
        bottle = self._bottle(str(request.args["bottle"]))
        text = str(request.args["rule"])
        policy, removal = requests.with_rule(bottle.policy, text, deny=request.op == "deny")
        if request.args.get("dry_run"):
            steps = await self._d.in_kernel(self._d.plan_rules, bottle, policy, removal)
            connection.send(wire.Reply(request.id, {"bottle": bottle.name, "rule": text, "steps": steps}))
            return
        number = self._d.clients.add(connection, request)
        uid, what = connection.peer.uid, f"{request.op} {text}"
        done = self._d.runner.dispatch(e.PolicyChanged(number, bottle.slot, policy, removal, uid, what))
        if done is not None:
            await done
        result = self._d.clients.outcome(number)
        await self._audit(uid, request.op, bottle.name, {"rule": text, "result": result})

    async def _audit(self, uid: int, action: str, target: str, detail: dict[str, Any]) -> None:
        await self.trail.done(uid, action, target, detail)

    # ── looking ──

    async def _ps(self, connection: Connection, request: wire.Request) -> None:
        guarded = Counter((await asyncio.to_thread(self._d.kernel.bpf.guarded)).values())
        rows = [{**await self._row(b), "guarded": guarded[b.slot]} for b in self._d.host.bottles.values()]
        rows += [self._saved_row(b) for b in self._d.host.saved.values()]
        connection.send(wire.Reply(request.id, rows))

    def _saved_row(self, bottle: Bottle) -> dict[str, Any]:
        """As _row(), of a bottle that has nothing but its files."""
        return {
            "bottle": bottle.name, "slot": None, "run": bottle.run, "phase": Phase.FROZEN.value,
            "observe": bottle.policy.observe, "guard": bottle.policy.guard, "command": list(bottle.job.argv),
            "uid": bottle.job.uid, "owner": bottle.job.owner, "started_ns": bottle.started_ns, "epoch": bottle.epoch,
            "addr4": "", "addr6": "", "spent": dict(bottle.spent) if bottle.spent else None, "processes": [],
            "budgets": [], "guarded": 0, "saved_ns": self._saved_ns(bottle),
        }  # fmt: skip

    def _saved_ns(self, bottle: Bottle) -> int | None:
        saved = self._d.saves.of(bottle.run)
        return saved.saved_ns if saved is not None else None

    async def _row(self, bottle: Bottle) -> dict[str, Any]:
        budgets: list[dict[str, Any]] = []
        if bottle.phase is not Phase.STARTING:
            with contextlib.suppress(AgentmonError):
                budgets = await self._d.ledger.totals(bottle.slot)
        net = self._d.kernel.net(bottle.slot)
        return {
            "bottle": bottle.name, "slot": bottle.slot, "run": bottle.run, "phase": bottle.phase.value,
            "observe": bottle.policy.observe, "guard": bottle.policy.guard,
            "command": list(bottle.job.argv), "uid": bottle.job.uid, "owner": bottle.job.owner,
            "started_ns": bottle.started_ns, "epoch": bottle.epoch,
            "scopes": [[scope.scope, scope.name] for scope in bottle.policy.scopes],
            "addr4": str(net.addr4), "addr6": str(net.addr6 or ""),
            "spent": dict(bottle.spent) if bottle.spent else None,
            "processes": self._d.kernel.tree.processes(bottle.slot), "budgets": budgets,
            "saved_ns": self._saved_ns(bottle),
            **self._held(bottle), **({"stale": stale} if (stale := self._d.reload.of(bottle)) else {}),
        }  # fmt: skip

    @staticmethod
    def _held(bottle: Bottle) -> dict[str, Any]:
        """Of an attached bottle: to what, and which layers hold it."""
        found = bottle.attached
        if found is None:
            return {}
        return {"attached": found.what, "layers": list(found.layers), "notes": list(found.notes)}

    async def _status(self, connection: Connection, request: wire.Request) -> None:
        services = {name: {"pid": s.pid, "up": s.channel is not None} for name, s in self._d.services.items()}
        value = {"bottles": len(self._d.host.bottles), "services": services, "events_lost": self._d.log.lost}
        value |= {"features": sorted(self._d.kernel.bpf.features()), "left_out": self._d.kernel.left_out()}
        connection.send(wire.Reply(request.id, value))

    async def _posture(self, connection: Connection, request: wire.Request) -> None:
        connection.send(wire.Reply(request.id, await self._compared.report()))

    async def _events(self, connection: Connection, request: wire.Request) -> None:
        await following.tell(self._d.log, connection, request)

    async def _budget_show(self, connection: Connection, request: wire.Request) -> None:
        bottle = self._bottle(str(request.args["bottle"]))
        connection.send(wire.Reply(request.id, await self._d.ledger.totals(bottle.slot)))

    async def _budget_set(self, connection: Connection, request: wire.Request) -> None:
        args = request.args
        tokens, provider = requests.budget(args["budget"])
        if provider and provider not in self._d.providers and provider != "*":
            raise BadInput(f"there is no provider {provider!r}", f"known: {', '.join(sorted(self._d.providers))}")
        if "scope" in args:
            if connection.peer.uid != 0:  # whatever bottle of its own it names beside
                raise Refused(f"uid {connection.peer.uid} may not set the budget of a scope", "use sudo")
            changed = wire.BudgetDef(provider, tokens, str(args["per"]))
            await self._d.ledger.set_budget_at(str(args["scope"]), str(args["name"]), changed, connection.peer.uid)
            connection.send(wire.Reply(request.id, []))
            return
        bottle = self._bottle(str(args["bottle"]))
        await self._d.ledger.set_budget(bottle, provider, tokens, connection.peer.uid)
        connection.send(wire.Reply(request.id, await self._d.ledger.totals(bottle.slot)))

    async def _explain(self, connection: Connection, request: wire.Request) -> None:
        bottle = self._bottle(str(request.args["bottle"]))
        if request.args.get("whole"):
            connection.send(wire.Reply(request.id, to_plain(bottle.policy)))
            return
        dest = request.args.get("dest")
        said = explain.explain(bottle.policy, None if dest is None else str(dest), self._d.providers)
        stale = self._d.reload.of(bottle)
        connection.send(wire.Reply(request.id, said | ({"stale": stale} if stale else {})))

    async def _shutdown(self, connection: Connection, request: wire.Request) -> None:
        await self._audit(connection.peer.uid, "shutdown", "daemon", {"keep": bool(request.args.get("keep", False))})
        connection.send(wire.Reply(request.id, {}))
        self._d.stop(keep=bool(request.args.get("keep", False)))
