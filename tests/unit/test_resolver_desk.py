"""desk.py, commits.py, lookups.py together, with a daemon's answers by hand: limits, and a daemon that is slow."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import dns.message
import dns.rcode
import pytest

from agentmon import wire
from agentmon.reporting import Reporter
from agentmon.resolver import commits as commits_module
from agentmon.resolver.chain import Chain, Unusable
from agentmon.resolver.commits import Commits, Uncommitted
from agentmon.resolver.desk import MAX_KEPT, MAX_PENDING, Desk
from agentmon.resolver.labels import Labels
from agentmon.resolver.lookups import LookupDesk
from agentmon.resolver.resolve import Resolve
from agentmon.resolver.strip import Strip
from agentmon.views import Views

S = 1_000_000_000


class Daemon:
    """A control connection: answers with `say`, counts questions."""

    def __init__(self) -> None:
        self.asked: list[wire.Commit] = []
        self.say: Callable[[wire.Commit], Awaitable[Any]] = self.yes
        self._ids = itertools.count(1)

    def next_id(self) -> int:
        return next(self._ids)

    async def yes(self, commit: wire.Commit) -> wire.Committed:
        return wire.Committed(commit.id, commit.addresses)

    async def call(self, commit: wire.Commit, timeout_s: float) -> Any:
        self.asked.append(commit)
        return await asyncio.wait_for(self.say(commit), timeout_s)


class Bench:
    """Everything between a query's bytes and the two edges."""

    def __init__(self) -> None:
        self.now = 1000 * S
        self.daemon_now: Daemon | None = Daemon()
        self.chains: dict[str, Chain] = {}
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.events: list[dict[str, Any]] = []
        self.views = Views()
        reporter = Reporter(self.events.append)
        clock = lambda: self.now  # noqa: E731
        control: Any = self
        self.commits = Commits(control, clock, reporter)
        resolve = Resolve(self, clock)
        labels = Labels()
        self.desk = Desk(self.views, resolve, self.commits, Strip([]), reporter, {}, labels, clock)
        self.lookups = LookupDesk(self.views, resolve, self.commits, Strip([]), reporter, labels, clock)

    def daemon(self) -> Daemon | None:
        return self.daemon_now

    async def ask(self, name: str, rdtype: int) -> Chain:
        self.asked.append(name)
        await self.gate.wait()
        if rdtype == 28:
            return self.chains.get("6." + name, Chain((), 60))
        return self.chains.get(name, Chain(("203.0.113.1",), 60))

    def set(self, *rules: str, **more: Any) -> Any:
        return self.views.set(wire.BottleView(slot=16, bottle="b", run="r", addr4="", rules=rules, epoch=3, **more))

    def query(self, name: str, kind: str = "A") -> Any:
        return self.desk.answer(dns.message.make_query(name, kind).to_wire(), 16, udp=True)

    async def reply(self, name: str) -> dns.message.Message:
        result = self.query(name)
        return dns.message.from_wire(result if isinstance(result, bytes) else await result)


def run(body: Callable[[Bench], Awaitable[None]]) -> None:
    async def go() -> None:
        await asyncio.wait_for(body(Bench()), 20)

    asyncio.run(go())


def test_questions_under_way_are_limited_per_bottle() -> None:
    async def body(bench: Bench) -> None:
        bench.set("*.example:22", limits={"queries_per_s": 1000})
        bench.gate.clear()
        tasks = [asyncio.ensure_future(bench.query(f"h{i}.example")) for i in range(MAX_PENDING)]
        await asyncio.sleep(0)
        assert (await bench.reply("one-more.example")).rcode() == dns.rcode.SERVFAIL
        assert bench.events[0]["reason"] == "rate"
        bench.gate.set()
        for task in tasks:
            assert dns.message.from_wire(await task).rcode() == dns.rcode.NOERROR
        assert (await bench.reply("one-more.example")).rcode() == dns.rcode.NOERROR

    run(body)


def test_kept_replies_are_bounded_and_forgotten_with_the_view() -> None:
    async def body(bench: Bench) -> None:
        bench.set("x.example:22", limits={"queries_per_s": 10_000})
        for i in range(MAX_KEPT + 2):
            assert (await bench.reply(f"n{i}.example")).rcode() == dns.rcode.NXDOMAIN
        assert len(bench.desk._seats[16].kept) == 2
        bench.set("n1.example:22")
        assert (await bench.reply("n1.example")).rcode() == dns.rcode.NOERROR
        bench.desk.forget(16)
        assert bench.desk._seats == {}

    run(body)


def test_commits_are_shared_fresh_for_a_second_and_bound_to_daemon_and_view() -> None:
    async def body(bench: Bench) -> None:
        daemon = bench.daemon_now
        assert daemon is not None
        view = bench.set("a.example:22")
        go = asyncio.Event()

        async def slow(commit: wire.Commit) -> wire.Committed:
            await go.wait()
            return wire.Committed(commit.id, commit.addresses)

        daemon.say = slow
        both = [asyncio.ensure_future(bench.commits.bottle(view, "a.example", ("203.0.113.1",), 5)) for _ in range(2)]
        await asyncio.sleep(0)
        both[0].cancel()
        go.set()
        assert await both[1] == {"203.0.113.1"}
        assert [c.ttl_s for c in daemon.asked] == [40]  # the floor and the grace
        await bench.commits.bottle(view, "a.example", ("203.0.113.1",), 5)
        assert len(daemon.asked) == 1
        bench.now += S
        await bench.commits.bottle(view, "a.example", ("203.0.113.1",), 300)
        assert [c.ttl_s for c in daemon.asked] == [40, 310]
        await bench.commits.bottle(bench.set("a.example:22"), "a.example", ("203.0.113.1",), 5)
        assert len(daemon.asked) == 3
        bench.daemon_now = other = Daemon()
        await bench.commits.bottle(view, "a.example", ("203.0.113.1",), 5)
        assert len(other.asked) == 1

    run(body)


def test_what_is_open_stays_usable_without_a_daemon_while_it_outlives_the_answer() -> None:
    async def body(bench: Bench) -> None:
        view = bench.set("a.example:22")
        one = ("203.0.113.1",)
        await bench.commits.bottle(view, "a.example", one, 100)  # the elements end after 110 s
        bench.daemon_now = None
        bench.now += 50 * S
        assert await bench.commits.bottle(view, "a.example", one, 50) == set(one)
        assert await bench.commits.bottle(view, "a.example", one, 60) == set(one)
        for addresses, ttl_s in ((one, 61), (("203.0.113.2",), 1)):
            with pytest.raises(Uncommitted, match="away"):
                await bench.commits.bottle(view, "a.example", addresses, ttl_s)
        with pytest.raises(Uncommitted, match="away"):
            await bench.commits.bottle(bench.set("a.example:22"), "a.example", one, 1)  # another policy
        bench.now += 51 * S
        with pytest.raises(Uncommitted, match="away"):
            await bench.commits.bottle(view, "a.example", one, 1)

    run(body)


def test_a_daemon_that_is_slow_gone_or_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "CALL_S", 0.05)

    async def body(bench: Bench) -> None:
        daemon = bench.daemon_now
        assert daemon is not None
        view = bench.set("a.example:22")

        async def never(commit: wire.Commit) -> None:
            await asyncio.Event().wait()

        async def gone(commit: wire.Commit) -> None:
            raise ConnectionResetError

        async def no(commit: wire.Commit) -> wire.Committed:
            return wire.Committed(commit.id, (), "full")

        async def odd(commit: wire.Commit) -> wire.Done:
            return wire.Done(commit.id)

        for say, reason in ((never, "not answer"), (gone, "not answer"), (no, "full"), (odd, "refused")):
            daemon.say = say
            with pytest.raises(Uncommitted, match=reason):
                await bench.commits.bottle(view, "a.example", ("203.0.113.1",), 5)
            assert (await bench.reply("a.example")).rcode() == dns.rcode.SERVFAIL
        bench.daemon_now = None
        with pytest.raises(Uncommitted, match="away"):
            await bench.commits.service(view, "a.example", ("203.0.113.1",), 443, 5)

    run(body)


def test_a_lookup_whose_policy_changes_under_way_is_denied() -> None:
    async def body(bench: Bench) -> None:
        bench.set("a.example")
        bench.gate.clear()
        looking = asyncio.ensure_future(bench.lookups.looked(wire.Lookup(1, 16, "a.example", 443)))
        await asyncio.sleep(0)
        bench.set("other.example")
        bench.gate.set()
        assert await looking == wire.Looked(1, error="denied")
        bench.set("a.example")
        assert (await bench.lookups.looked(wire.Lookup(2, 16, "a.example", 443))).addresses == ("203.0.113.1",)
        for mode in ("cut", "closed"):
            bench.set("a.example", mode=mode)
            assert (await bench.lookups.looked(wire.Lookup(3, 16, "a.example", 443))).error == "denied"
        bench.set("a.example", mode="observe")
        assert (await bench.lookups.looked(wire.Lookup(4, 16, "b.example", 443))).error == ""

    run(body)


def test_an_allowed_name_that_leads_nowhere_is_told_once_with_the_reason() -> None:
    async def body(bench: Bench) -> None:
        daemon, faults = bench.daemon_now, {"late.example": TimeoutError(), "sick.example": Unusable("SERVFAIL")}
        assert daemon is not None
        plain = bench.ask

        async def ask(name: str, rdtype: int) -> Chain:
            if name in faults:
                raise faults[name]
            return await plain(name, rdtype)

        async def no(commit: wire.Commit) -> wire.Committed:
            return wire.Committed(commit.id, (), "addresses" if commit.name == "many.example" else "full")

        bench.ask = ask  # type: ignore[method-assign]
        daemon.say = no
        bench.set("*.example:22")
        for name in ("late.example", "sick.example", "shut.example", "many.example") * 2:
            assert (await bench.reply(name)).rcode() == dns.rcode.SERVFAIL
        told = [(event["verdict"], event["reason"], event.get("host", "")) for event in bench.events]
        assert told == [
            ("allowed", "timeout", "late.example"), ("allowed", "servfail", "sick.example"),
            ("allowed", "uncommitted", "shut.example"), ("refused", "addresses", ""),
        ]  # fmt: skip
        assert bench.events[0]["rule"] == "*.example:22"

    run(body)


def test_a_lookup_does_not_wait_long_for_the_other_family() -> None:
    async def body(bench: Bench) -> None:
        bench.set("a.example")
        plain = bench.ask

        async def ask(name: str, rdtype: int) -> Chain:
            if rdtype == 28:
                await asyncio.Event().wait()
            return await plain(name, rdtype)

        bench.ask = ask  # type: ignore[method-assign]
        assert (await bench.lookups.looked(wire.Lookup(1, 16, "a.example", 443))).addresses == ("203.0.113.1",)

    run(body)


def test_a_lookup_finds_nothing() -> None:
    async def body(bench: Bench) -> None:
        bench.set("a.example", "gone.example", "odd.example")
        bench.chains = {"a.example": Chain((), 5), "gone.example": Chain((), 5, exists=False)}
        bench.chains["6.gone.example"] = bench.chains["gone.example"]
        for name, error in (("a.example", "servfail"), ("gone.example", "nxdomain")):
            assert (await bench.lookups.looked(wire.Lookup(1, 16, name, 443))).error == error

        async def broken(name: str, rdtype: int) -> Chain:
            raise RuntimeError("a bug")

        bench.ask = broken  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="a bug"):
            await bench.lookups.looked(wire.Lookup(1, 16, "odd.example", 443))

    run(body)
