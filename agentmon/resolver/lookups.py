"""The lookup socket: relay and proxy ask where a permitted name is; policy is asked again, addresses committed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from agentmon import wire
from agentmon.channel import Channel, peer_of
from agentmon.events import Event
from agentmon.reporting import Reporter
from agentmon.resolver import message as dns
from agentmon.resolver.chain import Unusable
from agentmon.resolver.commits import Commits, Uncommitted
from agentmon.resolver.labels import Labels, Verdict
from agentmon.resolver.resolve import Found, Resolve
from agentmon.resolver.shares import Shares
from agentmon.resolver.strip import Strip
from agentmon.resolver.turns import Crowded
from agentmon.service import serve_unix
from agentmon.views import View, Views

OTHER_FAMILY_S = 0.1  # how long addresses in hand wait for the other family's
MAX_LOOKUPS, MAX_LOOKUPS_EACH = 4096, 256  # under way, of all bottles and of one
RESERVED, FEW = 1024, 16


class Refusal(Exception):
    """The `error` of wire.Looked."""


@dataclass(frozen=True, slots=True)
class LookupDesk:
    views: Views
    resolve: Resolve
    commits: Commits
    strip: Strip
    reporter: Reporter
    labels: Labels
    now_ns: Callable[[], int]
    _under_way: Shares = field(
        default_factory=lambda: Shares(MAX_LOOKUPS, MAX_LOOKUPS_EACH, reserved=RESERVED, few=FEW)
    )

    async def looked(self, question: wire.Lookup) -> wire.Looked:
        try:
            addresses, ttl_s = await self._placed(question)
        except Refusal as e:
            return wire.Looked(question.id, error=str(e))
        return wire.Looked(question.id, addresses, ttl_s)

    async def _placed(self, question: wire.Lookup) -> tuple[tuple[str, ...], int]:
        view = self.views.get(question.slot)
        if view is None or not permitted(view, question.name, question.port):
            raise Refusal("denied")
        if not self._under_way.take(view.tenant):
            raise Refusal("limit")
        try:
            return await self._look(question, view)
        finally:
            self._under_way.give(view.tenant)

    async def _look(self, question: wire.Lookup, view: View) -> tuple[tuple[str, ...], int]:
        name = question.name.lower().rstrip(".")
        self._spend(view, name)
        found = await self._both(name, view)
        usable = self._usable(view, name, question.port, [a for f in found for a in f.addresses])
        if not usable:
            exists = any(f.exists for f in found)
            raise Refusal("stripped" if any(f.addresses for f in found) else "servfail" if exists else "nxdomain")
        ttl_s = min(f.ttl_s(self.now_ns()) for f in found if f.addresses)
        try:
            opened = await self.commits.service(view, name, tuple(usable), question.port, ttl_s)
        except Uncommitted as e:
            raise Refusal("uncommitted") from e
        if self.views.get(question.slot) is not view and not self._still(question):
            raise Refusal("denied")
        return tuple(a for a in usable if a in opened), ttl_s

    def _spend(self, view: View, name: str) -> None:
        """A server name that a bottle sent the relay goes upstream like one that it asked for."""
        for rdtype in (dns.A, dns.AAAA):
            if self.resolve.has(name, rdtype):
                continue
            verdict = self.labels.spend(view, name, self.now_ns())
            if verdict is not Verdict.FINE:
                self.reporter.note(
                    view.slot, _event(view, verdict.value, detail={"name": self.labels.shown(view, name)})
                )
                raise Refusal("limit")

    def _still(self, question: wire.Lookup) -> bool:
        """Whether a policy that changed while we asked still permits it."""
        view = self.views.get(question.slot)
        return view is not None and permitted(view, question.name, question.port)

    def _usable(self, view: View, name: str, port: int, addresses: list[str]) -> list[str]:
        usable, refused = self.strip.split(addresses, exact=view.policy.names_exactly(name))
        for address in list(usable):
            if view.policy.denies_address(ip_address(address), port, "tcp"):
                usable.remove(address)
                refused.append((address, "deny"))
        for address, why in refused:
            self.reporter.note(
                view.slot, _event(view, "protected", host=name, port=port, dst=address, detail={"address": why})
            )
        return usable

    async def _both(self, name: str, view: View) -> list[Found]:
        """Answers of both families, IPv4 first; one family in hand waits OTHER_FAMILY_S for the other.

        :raises Refusal: timeout, servfail or limit, when neither family got an answer.
        """
        finds = [self.resolve.find(name, rdtype, view.tenant) for rdtype in (dns.A, dns.AAAA)]
        tasks = [asyncio.ensure_future(find) for find in finds]
        try:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                in_hand = any(t.exception() is None and t.result().addresses for t in done)
                await asyncio.wait(pending, timeout=OTHER_FAMILY_S if in_hand else None)
        finally:
            for task in tasks:
                task.cancel()
        found = [t.result() for t in tasks if t.done() and not t.cancelled() and t.exception() is None]
        if found:
            return found
        errors = [t.exception() for t in tasks if t.done() and not t.cancelled()]
        for error in errors:
            if not isinstance(error, TimeoutError | Unusable | Crowded):
                raise error or AssertionError("a lookup without result")
        for kind, reason in ((Crowded, "limit"), (TimeoutError, "timeout")):
            if any(isinstance(e, kind) for e in errors):
                raise Refusal(reason)
        raise Refusal("servfail")


def _event(view: View, reason: str, **more: Any) -> Event:
    return Event("dns", "refused", view.wire.bottle, reason, "resolver", epoch=view.wire.epoch, **more)


def permitted(view: View, name: str, port: int) -> bool:
    """Whether relay or proxy may dial `name` for this bottle now."""
    if view.mode in {"closed", "cut"}:
        return False
    decision = view.policy.decide_name(name, port)
    return decision.allowed or (view.mode == "observe" and decision.reason == "default")


@dataclass(frozen=True, slots=True)
class LookupServer:
    """:param uids: who may ask, by SO_PEERCRED."""

    desk: LookupDesk
    uids: frozenset[int]
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, sock: socket.socket) -> None:
        await serve_unix(sock, self._connection)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer_of(writer.get_extra_info("socket")).uid not in self.uids:
            writer.close()
            return
        channel = Channel(reader, writer)
        with contextlib.suppress(wire.WireError):
            async for message in channel.messages():
                if not isinstance(message, wire.Lookup):
                    break
                task = asyncio.ensure_future(self._answer(channel, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        channel.close()

    async def _answer(self, channel: Channel, question: wire.Lookup) -> None:
        channel.send(await self.desk.looked(question))
