"""One query in, one reply out: parse, decide, and if need be resolve and commit. Knows no sockets.

Replies that depend on nothing but the view (refusals, service addresses, empty answers) are kept per view by the
query's exact bytes, so that a bottle asking in a loop costs a dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentmon.events import Event
from agentmon.reporting import Reporter
from agentmon.resolver import message as dns
from agentmon.resolver.answer import Kind, Plan, decide
from agentmon.resolver.chain import Unusable
from agentmon.resolver.commits import ADDRESSES, Commits, Uncommitted
from agentmon.resolver.labels import Labels, Verdict
from agentmon.resolver.rate import Bucket
from agentmon.resolver.resolve import Resolve
from agentmon.resolver.strip import Strip
from agentmon.resolver.turns import Crowded
from agentmon.views import View, Views

SERVICE_TTL_S = 30
MAX_PENDING = 64  # questions of one bottle that wait for upstream or the daemon
MAX_KEPT = 256  # kept replies of one bottle
MAX_KEPT_BYTES = 320  # of a query whose reply is kept; the longest name with EDNS has 282
QUERIES_PER_S = 100
_UNREACHED: dict[type[Exception], str] = {  # as lookups.py says it
    TimeoutError: "timeout", Unusable: "servfail", Uncommitted: "uncommitted", Crowded: "limit",
}  # fmt: skip

Reply = bytes | None
Later = Coroutine[None, None, bytes]


@dataclass(slots=True)
class _Seat:
    """What is remembered of a bottle between queries. `kept`: query without its id → (reply without its id, event)."""

    bucket: Bucket
    generation: int = 0
    pending: int = 0
    kept: dict[tuple[bool, bytes], tuple[bytes, Event | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desk:
    """:param internal: agentmon's own names → service, as in the configuration.
    :param fenced: awaited with the slot before a direct name is opened (fences.Fences.known)."""

    views: Views
    resolve: Resolve
    commits: Commits
    strip: Strip
    reporter: Reporter
    internal: Mapping[str, str]
    labels: Labels
    now_ns: Callable[[], int]
    fenced: Callable[[int], Awaitable[None]] | None = None
    _seats: dict[int, _Seat] = field(default_factory=dict)

    def forget(self, slot: int) -> None:
        self._seats.pop(slot, None)
        self.labels.forget(slot)

    def answer(self, data: bytes, slot: int, *, udp: bool, port: int = 0) -> Reply | Later:
        """The reply, None for silence, or a coroutine that makes the reply.

        :param port: the asker's, by which the process behind a first refusal is named.
        """
        view = self.views.get(slot)
        if view is None:
            return None
        seat = self._seat(view)
        if not seat.bucket.take(self.now_ns()):
            self.reporter.note(slot, _event(view, "refused", "rate", ""))
            return None
        kept = seat.kept.get((udp, data[2:]))
        if kept is not None:
            reply, event = kept
            return self._told(data[:2] + reply, slot, event, udp, port)
        try:
            query = dns.parse(data)
        except dns.Drop:
            return None
        if query.error is not None:
            return dns.reply(query, query.error, udp=udp)
        plan = decide(query.name, view, self.internal)
        if plan.kind is Kind.UPSTREAM and query.rdtype in {dns.A, dns.AAAA}:
            limit = self._limit(query, view, seat)
            if limit is not None:  # one event for all names: each of them is different
                reason, rcode = limit
                event = _event(
                    view, "refused", reason, "", plan.rule, detail={"name": self.labels.shown(view, query.name)}
                )
                return self._told(dns.reply(query, rcode, udp=udp), slot, event, udp, port)
            return self._ask(query, view, seat, plan, udp, port)
        reply, event = self._local(query, view, plan, udp)
        if len(data) <= MAX_KEPT_BYTES:
            if len(seat.kept) >= MAX_KEPT:
                seat.kept.clear()
            seat.kept[udp, data[2:]] = (reply[2:], event)
        return self._told(reply, slot, event, udp, port)

    def _told(self, reply: bytes, slot: int, event: Event | None, udp: bool, port: int) -> bytes | Later:
        """The reply of a refusal, after its first occurrence has been told with the process that asked."""
        told = self.reporter.note_of(slot, event, "udp" if udp else "tcp", port) if event is not None else None
        return reply if told is None else _after(told, reply)

    def _limit(self, query: dns.Query, view: View, seat: _Seat) -> tuple[str, dns.Rcode] | None:
        """Why a question does not go upstream although its name is allowed, and what is answered."""
        if seat.pending >= MAX_PENDING:
            return "rate", dns.SERVFAIL
        if self.resolve.has(query.name, query.rdtype):
            return None
        verdict = self.labels.spend(view, query.name, self.now_ns())
        if verdict is Verdict.FINE:
            return None
        return verdict.value, dns.SERVFAIL if verdict is Verdict.SPENT else dns.NXDOMAIN

    def _seat(self, view: View) -> _Seat:
        seat = self._seats.get(view.slot)
        if seat is None:
            per_s = view.wire.limits.get("queries_per_s", QUERIES_PER_S)
            seat = self._seats[view.slot] = _Seat(Bucket(per_s, self.now_ns()))
        if seat.generation != view.generation:
            seat.generation = view.generation
            seat.kept.clear()
            seat.bucket.size = view.wire.limits.get("queries_per_s", QUERIES_PER_S)
        return seat

    def _local(self, query: dns.Query, view: View, plan: Plan, udp: bool) -> tuple[bytes, Event | None]:
        if plan.kind is Kind.DENIED:
            event = _event(view, "refused", plan.reason, self.labels.shown(view, query.shown), plan.rule)
            return dns.reply(query, dns.NXDOMAIN, udp=udp), event
        addresses: list[str] = []
        if plan.kind is Kind.SERVICE and query.rdtype in {dns.A, dns.AAAA}:
            addresses = [a for a in plan.addresses if (":" in a) == (query.rdtype == dns.AAAA)]
        return dns.reply(query, dns.NOERROR, addresses, SERVICE_TTL_S, udp=udp), None

    async def _ask(self, query: dns.Query, view: View, seat: _Seat, plan: Plan, udp: bool, port: int) -> bytes:
        seat.pending += 1
        try:
            found = await self.resolve.find(query.name, query.rdtype, view.tenant)
            if self.fenced is not None:
                await self.fenced(view.slot)
            if view.mode == "observe":
                seen = ("observed", "default") if plan.observed else ("allowed", "")
                event = _event(view, *seen, query.name, plan.rule)
                await self.reporter.each_of(view.slot, event, "udp" if udp else "tcp", port)
            if not found.exists:
                return dns.reply(query, dns.NXDOMAIN, udp=udp)
            usable, refused = self.strip.split(found.addresses, exact=plan.exact)
            for address, why in refused:
                self._refused(view, "protected", query.name, dst=address, detail={"address": why})
            if not usable:
                return dns.reply(query, dns.NOERROR, udp=udp)
            opened = await self._open(view, query.name, tuple(usable), found.ttl_s(self.now_ns()), plan.observed)
            addresses = [a for a in usable if a in opened]
            return dns.reply(query, dns.NOERROR, addresses, found.ttl_s(self.now_ns()), udp=udp)
        except (TimeoutError, Unusable, Uncommitted, Crowded) as error:
            reply = dns.reply(query, dns.SERVFAIL, udp=udp)
            if str(error) == ADDRESSES:  # commits.py has told it
                return reply
            why = next(reason for kind, reason in _UNREACHED.items() if isinstance(error, kind))
            event = _event(view, "observed" if plan.observed else "allowed", why, query.name, plan.rule)
            told = self._told(reply, view.slot, event, udp, port)
            return told if isinstance(told, bytes) else await told
        finally:
            seat.pending -= 1

    def _refused(self, view: View, reason: str, host: str, **more: Any) -> None:
        self.reporter.note(view.slot, _event(view, "refused", reason, host, **more))

    async def _open(self, view: View, name: str, usable: tuple[str, ...], ttl_s: int, observed: bool) -> frozenset[str]:
        try:
            return await self.commits.bottle(view, name, usable, ttl_s)
        except Uncommitted:
            if observed and self.views.get(view.slot) is view:
                return frozenset(usable)  # the kernel lets an observed bottle reach what no rule names: nothing to open
            raise


async def _after(told: Awaitable[None], reply: bytes) -> bytes:
    await told
    return reply


def _event(view: View, verdict: str, reason: str, host: str, rule: str = "", **more: Any) -> Event:
    return Event(
        "dns",
        verdict,
        view.wire.bottle,
        reason,
        "resolver",
        host=host,
        rule=rule,
        epoch=view.wire.epoch,
        **more,
    )
