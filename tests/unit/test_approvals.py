"""The queue between a worker and its operators: the worker's Ask and the daemon's queue over a real socket, with a real
ledger file behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentmon import service, wire
from agentmon.channel import Channel
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon import approvals as queue
from agentmon.daemon.hook import Hook
from agentmon.daemon.ledger_link import LedgerLink
from agentmon.errors import BY_NAME, AgentmonError, BadInput
from agentmon.events import Event
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings
from agentmon.proxy.approvals import Approvals
from agentmon.proxy.outbound import Decision, Proposal
from tests.support.ledger_book import Book

JOB = Job(("job",), (), "/", 1000, 1000, (), tty=False)
BOTTLE = Bottle(16, "crate", "run16", Phase.RUNNING, EffectivePolicy("crate", ()), JOB, 1)


def proposal(digest: bytes = b"d" * 32, **changes: Any) -> Proposal:
    plain = Proposal(16, "run16", "api.example", "POST", "/v1", "github-pat", "body", "token: ***", digest)
    return replace(plain, **changes)


class Ledger:
    """What LedgerLink asks of a Service, answered by a book; `away`: as when its process is gone."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.away = False

    def next_id(self) -> int:
        return 1

    async def call(self, message: Any) -> Any:
        if self.away:
            raise AgentmonError("the ledger is not running", "it is being started again; try once more")
        (answer,) = self.book.all([(message, None)])  # type: ignore[list-item]
        if isinstance(answer, wire.Failed):
            raise BY_NAME.get(answer.error, AgentmonError)(answer.message, answer.hint)
        return answer


class Both:
    """A worker's end and the daemon's, connected."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.bottles = {16: BOTTLE, 17: replace(BOTTLE, slot=17, name="other", run="run17")}
        self.book = Book(path)
        self.ledger = Ledger(self.book)
        self.events: list[Event] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.sock = path / "proxy.sock"
        self.queue = queue.Approvals(
            lambda: self.settings, lambda: self.bottles, lambda: LedgerLink(self.ledger), self.events.append,
            lambda work, name: self.tasks.append(asyncio.ensure_future(work)),
            Hook("approvals: hook", lambda: (), self.events.append),
        )  # type: ignore[arg-type]  # fmt: skip

    async def connect(self) -> None:
        self.control = service.Control("proxy", service.listen_unix(self.sock), _nothing)
        self.server = await self.control.start()
        self.worker = Approvals(self.control.daemon)
        self.channel = await Channel.connect(str(self.sock))
        self.tasks.append(asyncio.ensure_future(self._daemon()))
        await until(lambda: self.control.daemon() is not None)
        for slot in self.bottles:
            self.give(slot)

    def give(self, slot: int) -> None:
        told = self.queue.told(self.bottles[slot], 0)
        self.worker.give(told.slot, told.run, told.approved, told.wait_s)

    async def _daemon(self) -> None:
        async for message in self.channel.messages():
            if isinstance(message, wire.Propose):
                self.queue.propose(self.channel, message)
            elif isinstance(message, wire.Withdraw):
                self.queue.withdraw(self.channel, message.id)

    def ask(self, asked: Proposal, wanted: Callable[[], bool] = lambda: True) -> asyncio.Task[Decision]:
        return asyncio.ensure_future(self.worker(asked, wanted))

    async def waits(self, count: int = 1) -> list[dict[str, Any]]:
        await until(lambda: len(self.waiting()) == count)
        return self.waiting()

    def waiting(self) -> list[dict[str, Any]]:
        return self.queue.waiting(lambda _: True)

    def told(self, reason: str) -> list[Event]:
        return [event for event in self.events if event.kind == "approval" and event.reason == reason]

    def states(self) -> list[str]:
        return [state for (state,) in self.book.reads("SELECT state FROM approvals_v ORDER BY id")]


async def _nothing(message: Any, channel: Channel) -> None:
    return None


async def until(what: Callable[[], Any], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.002)


def both(path: Path, test: Callable[[Both], Awaitable[None]], **settings: Any) -> None:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Both]:
        made = Both(path, **settings)
        await made.connect()
        try:
            yield made
        finally:
            made.queue.close()
            made.server.close()
            made.channel.close()
            for task in made.tasks:
                task.cancel()
            await asyncio.gather(*made.tasks, return_exceptions=True)

    async def body() -> None:
        async with opened() as made:
            await test(made)

    asyncio.run(body())


def test_an_approval_lets_go_is_remembered_and_outlives_the_worker(tmp_path: Path) -> None:
    async def test(b: Both) -> None:
        waiting = b.ask(proposal())
        (row,) = await b.waits()
        assert (row["host"], row["detector"], row["context"]) == ("api.example", "github-pat", "token: ***")
        assert not {"digest", "value"} & set(row)
        shown = await b.queue.decide(row["id"], "approve", 1000, " our own test key ")
        assert (shown["state"], shown["reason"]) == ("approved", "our own test key")
        assert await waiting is Decision.APPROVED
        assert await b.ask(proposal(path="/v2")) is Decision.APPROVED  # no second question
        b.worker = Approvals(b.control.daemon)
        for slot in b.bottles:
            b.give(slot)
        assert await b.ask(proposal()) is Decision.APPROVED
        assert b.states() == ["approved"]
        for other in (proposal(b"e" * 32), proposal(host="b.example"), proposal(slot=17, run="run17")):
            asked = b.ask(other)
            (row,) = await b.waits()
            await b.queue.decide(row["id"], "reject", 0, "no")
            assert await asked is Decision.REJECTED
        b.queue.forget(16, "run16")
        assert b.queue.told(BOTTLE, 0).approved == ()
        assert [e.detail["by"] for e in b.told("approved")] == ["uid:1000"]

    both(tmp_path, test)


def test_every_way_to_be_refused_has_its_own_answer(tmp_path: Path) -> None:
    async def test(b: Both) -> None:
        assert await b.ask(proposal()) is Decision.TIMEOUT
        await until(lambda: b.states() == ["expired"])
        assert b.told("expired")[0].verdict == "refused"
        b.settings = replace(b.settings, approvals_operator=False)
        assert await b.ask(proposal()) is Decision.NOBODY
        b.settings = replace(b.settings, approvals_operator=True, approvals_timeout_s=300)
        b.ledger.away = True
        assert await b.ask(proposal()) is Decision.UNAVAILABLE
        assert [e for e in b.events if "the ledger is not running" in e.reason]
        assert await b.ask(proposal(run="run0")) is Decision.UNAVAILABLE  # of another run: nobody told
        b.channel.close()
        await until(lambda: b.control.daemon() is None)
        assert await b.ask(proposal()) is Decision.UNAVAILABLE

    both(tmp_path, test, approvals_timeout_s=1)


def test_a_daemon_that_goes_away_and_one_that_talks_nonsense_refuse(tmp_path: Path) -> None:
    async def test(b: Both) -> None:
        waiting = b.ask(proposal())
        await b.waits()
        b.queue.propose = lambda channel, m: channel.send(wire.Decided(m.id, "maybe"))  # type: ignore[method-assign]
        assert await b.ask(proposal(b"e" * 32)) is Decision.MALFORMED
        b.queue.propose = lambda channel, m: channel.send(wire.Done(m.id, "approved"))  # type: ignore[method-assign]
        assert await b.ask(proposal(b"e" * 32)) is Decision.MALFORMED
        b.channel.close()
        assert await waiting is Decision.UNAVAILABLE
        b.queue.lost()
        await until(lambda: b.states() == ["withdrawn"])

    both(tmp_path, test)


def test_who_waits_no_more_is_withdrawn(tmp_path: Path) -> None:
    async def test(b: Both) -> None:
        here = [True]
        asked = b.ask(proposal(), lambda: here[0])
        await b.waits()
        here[0] = False
        assert await asked is Decision.GONE
        await b.waits(0)
        cancelled = b.ask(proposal())
        await b.waits(1)
        cancelled.cancel()
        await b.waits(0)
        at_once = b.ask(proposal())  # before the daemon has looked at it
        await asyncio.sleep(0)
        at_once.cancel()
        cut = b.ask(proposal())
        await b.waits()
        b.worker.end(16)
        assert await cut is Decision.GONE
        await b.waits(0)
        by_daemon = b.ask(proposal())
        await b.waits()
        b.queue.stop(16, "the bottle was cut")
        assert await by_daemon is Decision.GONE
        await until(lambda: set(b.states()) == {"withdrawn"})
        b.bottles[16] = replace(BOTTLE, phase=Phase.CUT)
        assert await b.ask(proposal()) is Decision.GONE

    both(tmp_path, test)


def test_requests_with_the_same_value_share_one_proposal_and_the_queue_is_bounded(tmp_path: Path) -> None:
    async def test(b: Both) -> None:
        shared = [b.ask(proposal()) for _ in range(3)]
        await until(lambda: b.waiting() and b.waiting()[0]["requests"] == 3)
        shared[0].cancel()
        await until(lambda: b.waiting()[0]["requests"] == 2)
        others = [b.ask(proposal(bytes([n]) * 32)) for n in range(queue.PER_BOTTLE - 1)]
        await b.waits(queue.PER_BOTTLE)
        assert await b.ask(proposal(b"z" * 32)) is Decision.FULL
        polite = b.ask(proposal(slot=17, run="run17"))
        rows = await b.waits(queue.PER_BOTTLE + 1)
        await b.queue.decide(rows[0]["id"], "approve", 0, "yes")
        assert [await one for one in shared[1:]] == [Decision.APPROVED] * 2
        for one in (*others, polite):
            one.cancel()
        await b.waits(0)

    both(tmp_path, test)


def test_a_decision_is_recorded_before_it_counts(tmp_path: Path) -> None:
    async def test(b: Both) -> None:
        waiting = b.ask(proposal())
        (row,) = await b.waits()
        b.ledger.away = True
        with pytest.raises(AgentmonError, match="not running"):
            await b.queue.decide(row["id"], "approve", 0, "yes")
        assert not waiting.done() and b.waiting() == [row]
        b.ledger.away = False
        for reason in ("", "  ", "two\nlines", "x" * 501):
            with pytest.raises(BadInput, match="reason"):
                await b.queue.decide(row["id"], "approve", 0, reason)
        with pytest.raises(BadInput, match=f"no proposal 9 waits.*|waiting: {row['id']}"):
            await b.queue.decide(9, "approve", 0, "yes")
        await b.queue.decide(row["id"], "approve", 0, "yes")
        assert await waiting is Decision.APPROVED

    both(tmp_path, test)


def test_an_end_that_the_ledger_did_not_take_is_recorded_when_it_is_back(tmp_path: Path) -> None:
    async def test(b: Both) -> None:
        waiting = b.ask(proposal(context="two\nlines" + "x" * 9999, method="\x1b[2J"))
        (row,) = await b.waits()
        assert row["context"].startswith("two lines") and len(row["context"]) == 512 and row["method"] == " [2J"
        b.ledger.away = True
        assert await waiting is Decision.TIMEOUT
        assert b.states() == ["waiting"]
        b.ledger.away = False
        await until(lambda: b.states() == ["expired"])

    both(tmp_path, test, approvals_timeout_s=1)
