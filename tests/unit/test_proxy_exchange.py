"""Hold, settle, release: exactly once, in every order; and what is charged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentmon import wire
from agentmon.errors import AgentmonError
from agentmon.events import Event
from agentmon.providers.anthropic_usage import parser
from agentmon.providers.declaration import Estimate
from agentmon.providers.decoding import unknown
from agentmon.providers.include_usage import without_usage
from agentmon.providers.openai_usage import chat_parser
from agentmon.providers.sockets import Responses
from agentmon.providers.sse import EventGate
from agentmon.proxy.exchange import Accounts, Exchange, Whose
from agentmon.proxy.settlement import charge
from agentmon.proxy.sockets import SocketMeter
from agentmon.proxy.tap import Answer, Tap

ESTIMATE = Estimate("m", 50, 100)
WHOSE = Whose(16, "crate", "claude", "api.anthropic.com", "key-1")


class Away(AgentmonError):
    pass


class Books:
    """Records calls; answers as told. The ledger's own behaviour is tested with the ledger."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.denies = self.away = False
        self.full = 0  # so many reserves find the budget held by others
        self.gate: asyncio.Event | None = None

    async def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise Away("gone", "wait")

    async def reserve(self, slot: int, provider: str, model: str, *, input: int, output: int, key: str) -> Any:
        await self._called("reserve", slot, provider, model, input, output, key)
        self.full -= 1
        if self.full >= 0:
            return wire.Denied(1, "bottle", "crate", provider, 500, 6, 490, "run", True)
        return wire.Denied(1, "bottle", "crate", provider, 5, 6, 0, "run") if self.denies else wire.Granted(1, 77, 150)

    async def settle(self, hold: int, usage: wire.Usage) -> wire.Settled:
        await self._called("settle", hold, usage)
        return wire.Settled(1)

    async def progress(self, hold: int, usage: wire.Usage) -> bool:
        await self._called("progress", hold, usage)
        return False

    async def release(self, hold: int) -> None:
        await self._called("release", hold)

    async def totals(self, slot: int) -> list[dict[str, Any]]:
        await self._called("totals", slot)
        return []


def trial(body: Callable[[Exchange, Books, list[Event]], Awaitable[None]]) -> tuple[Books, list[Event]]:
    books, events = Books(), list[Event]()

    async def main() -> None:
        accounts = Accounts(books, events.append)
        await body(Exchange(accounts, WHOSE), books, events)
        await accounts.settled(5)

    asyncio.run(main())
    return books, events


def wanted() -> bool:
    return True


def names(books: Books) -> list[str]:
    return [call[0] for call in books.calls]


USAGE = wire.Usage("x", "m", "id-1", input=1, output=2)


def test_hold_then_settle_once() -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        assert await exchange.reserve(ESTIMATE, wanted) is None
        exchange.finish(sent=True, status=200, usage=USAGE)
        exchange.finish(sent=True, status=200, usage=USAGE)
        exchange.progress(USAGE)

    books, events = trial(body)
    assert names(books) == ["reserve", "settle"] and books.calls[0] == ("reserve", 16, "claude", "m", 50, 100, "key-1")
    assert books.calls[1][2].provider == "claude" and events[0].kind == "usage" and events[0].detail["output"] == 2


@pytest.mark.parametrize(("sent", "status"), [(False, None), (True, 429), (True, 307)])
def test_what_is_not_billed_is_released(sent: bool, status: int | None) -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        await exchange.reserve(ESTIMATE, wanted)
        exchange.finish(sent=sent, status=status, usage=None)

    assert names(trial(body)[0]) == ["reserve", "release"]


def test_denied_and_away_hold_nothing() -> None:
    async def denied(exchange: Exchange, books: Books, events: list[Event]) -> None:
        books.denies = True
        refusal = await exchange.reserve(ESTIMATE, wanted)
        assert refusal is not None and refusal[0] == 403 and refusal[1]["type"] == "budget_exhausted"
        exchange.finish(sent=False, status=None, usage=None)

    async def away(exchange: Exchange, books: Books, events: list[Event]) -> None:
        books.away = True
        refusal = await exchange.reserve(ESTIMATE, wanted)
        assert refusal is not None and refusal[0] == 503
        exchange.finish(sent=False, status=None, usage=None)

    assert names(trial(denied)[0]) == names(trial(away)[0]) == ["reserve"]


def test_a_budget_that_others_hold_is_asked_again_with_the_same_key() -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        books.full = 3
        assert await exchange.reserve(ESTIMATE, wanted) is None
        exchange.finish(sent=True, status=200, usage=USAGE)

    books, _ = trial(body)
    assert names(books) == ["reserve"] * 4 + ["settle"] and {call[-1] for call in books.calls[:4]} == {"key-1"}


@pytest.mark.parametrize(("patience_s", "asked"), [(0.05, 2), (30.0, 1)])
def test_a_wait_for_others_ends_with_patience_and_with_the_cut(patience_s: float, asked: int) -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        books.full = 1000
        refusal = await exchange.reserve(ESTIMATE, lambda: asked == 2, patience_s)
        assert refusal is not None and refusal[0] == 403
        error = refusal[1]
        assert (error["type"], error["held"], error["used"]) == ("budget_exhausted", 490, 6)
        assert "requests in flight" in error["message"] and "is spent" not in error["message"]
        exchange.finish(sent=False, status=None, usage=None)

    assert names(trial(body)[0]) == ["reserve"] * asked


def test_a_wait_for_others_ends_when_the_request_is_over() -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        books.full = 1000
        waiting = asyncio.ensure_future(exchange.reserve(ESTIMATE, wanted))
        while len(books.calls) < 2:
            await asyncio.sleep(0.001)
        exchange.finish(sent=False, status=None, usage=None)
        assert (await asyncio.wait_for(waiting, 10)) is not None

    assert set(names(trial(body)[0])) == {"reserve"}


def test_a_client_that_leaves_while_the_hold_is_taken_gives_it_back() -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        books.gate = asyncio.Event()
        waiting = asyncio.ensure_future(exchange.reserve(ESTIMATE, wanted))
        await asyncio.sleep(0)
        exchange.finish(sent=False, status=None, usage=None)
        books.gate.set()
        assert await waiting is not None

    assert names(trial(body)[0]) == ["reserve", "release"]


def test_progress_is_told_one_at_a_time_the_latest_last() -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        await exchange.reserve(ESTIMATE, wanted)
        books.gate = asyncio.Event()
        for n in range(1, 6):
            exchange.progress(wire.Usage("x", output=n))
            await asyncio.sleep(0)
        books.gate.set()
        await asyncio.sleep(0.01)
        exchange.progress(wire.Usage("x", output=9))
        await asyncio.sleep(0.01)

    books, _ = trial(body)
    assert [call[2].output for call in books.calls if call[0] == "progress"] == [1, 5, 9]


def test_what_a_provider_does_unasked_and_cannot_be_held_is_told() -> None:
    books, events = Books(), list[Event]()
    books.denies = True

    async def main() -> None:
        accounts = Accounts(books, events.append)
        meter = SocketMeter(Responses("rt-1"), lambda: Exchange(accounts, WHOSE), wanted)
        usage = b'{"input_tokens": 7, "output_tokens": 5}'
        for message in (
            b'{"type": "response.created", "response": {"id": "r1"}}',
            b'{"type": "response.done", "response": {"id": "r2", "usage": %b}}' % usage,
        ):
            refusal = await meter.said(message)
            assert refusal is not None and refusal[0] == 403
        await accounts.settled(5)

    asyncio.run(main())
    assert names(books) == ["reserve", "reserve"] and [e.kind for e in events] == ["lost", "lost"]
    assert "could not be held" in events[0].reason and "of 7 + 5 tokens" in events[1].reason


@pytest.mark.parametrize(("sent", "what"), [(True, "settle"), (False, "release")])
def test_what_the_ledger_does_not_take_is_reported(sent: bool, what: str) -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        await exchange.reserve(ESTIMATE, wanted)
        books.away = True
        exchange.progress(USAGE)
        await asyncio.sleep(0.01)
        exchange.finish(sent=sent, status=200 if sent else None, usage=USAGE if sent else None)

    _, events = trial(body)
    assert [e.kind for e in events] == ["lost"] and events[0].reason.startswith(what) and events[0].hint == "wait"


def test_totals_of_a_ledger_that_is_away() -> None:
    async def main() -> None:
        books = Books()
        accounts = Accounts(books, lambda _event: None)
        assert await accounts.totals(16) == []
        books.away = True
        assert await accounts.totals(16) is None
        await accounts.settled(1)

    asyncio.run(main())


# ── what is charged ──


def charged(**fields: Any) -> wire.Usage | None:
    given: dict[str, Any] = {"sent": True, "status": 200, "usage": None} | fields
    return charge(ESTIMATE, "house", "key-1", **given)


def test_complete_usage_is_charged_as_it_was_told() -> None:
    row = charged(usage=wire.Usage("openai", "", "", input=3, output=4))
    assert row is not None and (row.provider, row.model, row.request_id) == ("house", "m", "key-1")
    assert (row.input, row.output, row.source, row.complete) == (3, 4, "wire", True)


def test_complete_usage_counts_even_in_an_error_answer() -> None:
    row = charged(status=500, usage=wire.Usage("x", input=3, output=4))
    assert row is not None and row.output == 4


def test_a_lost_answer_is_an_estimate() -> None:
    row = charged(status=None)
    assert row is not None and (row.input, row.output, row.source, row.complete) == (50, 100, "estimate", False)


def test_a_stream_without_usage_is_not_free() -> None:
    row = charged(status=200)
    assert row is not None and row.output == 100


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"input": 7, "output": 3}, (7, 100)),
        ({"input": 7, "output": 300}, (7, 300)),
        ({"cache_read": 9, "output": 1}, (0, 100)),
        ({"output": 1}, (50, 100)),
    ],
)
def test_a_broken_stream_charges_the_larger_output(said: dict[str, int], wanted: tuple[int, int]) -> None:
    row = charged(usage=wire.Usage("x", "m", "id", complete=False, **said))
    assert row is not None and (row.input, row.output) == wanted
    assert (row.source, row.complete, row.request_id) == ("estimate", False, "id")


def test_a_lost_answer_charges_the_text_that_came_where_that_is_more_than_was_held() -> None:
    said = wire.Usage("x", "m", "id", input=7, output=300, complete=False)
    assert [charged(usage=u, seen=2_000).output for u in (None, said)] == [2_000, 2_000]  # type: ignore[union-attr]
    assert charged(usage=said, seen=20).output == 300  # type: ignore[union-attr]
    whole = wire.Usage("x", input=3, output=4)
    assert charged(usage=whole, seen=2_000).output == 4  # type: ignore[union-attr]


def test_progress_by_the_text_alone_has_the_requests_input() -> None:
    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        await exchange.reserve(ESTIMATE, wanted)
        for said in ({}, {"cache_read": 45}, {"input": 7}):
            exchange.progress(wire.Usage("", output=700, source="estimate", complete=False, **said))
            await asyncio.sleep(0.01)

    told = [call[2] for call in trial(body)[0].calls if call[0] == "progress"]
    assert [(u.input, u.cache_read, u.output) for u in told] == [(50, 0, 700), (0, 45, 700), (7, 0, 700)]


# ── the tap ──


def make_tap(gate: EventGate | None = None, coding: str = "", reader: Any = None) -> tuple[Tap, list[wire.Usage]]:
    grown: list[wire.Usage] = []
    reader = reader or parser({"content-type": "text/event-stream"})
    return Tap(reader, Answer(coding, True), gate, grown.append), grown


START = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":2}}}\n\n'


def test_the_tap_passes_on_what_it_gets() -> None:
    tap, grown = make_tap()
    assert tap(START[:30]) == START[:30] and tap.before_event() == b"\n"
    assert tap(START[30:]) == START[30:] and tap.before_event() == b""
    assert tap(b"") == [] and [u.input for u in grown] == [2]
    usage = tap.close()
    assert usage is not None and not usage.complete


def test_the_tap_tells_of_text_while_the_provider_says_nothing() -> None:
    tap, grown = make_tap(reader=chat_parser({"content-type": "text/event-stream"}))
    event = b'data: {"choices": [{"delta": {"content": "' + b"x" * 300 + b'"}}]}\n\n'
    for _ in range(10):
        tap(event)
    assert [(u.output, u.source, u.complete) for u in grown] == [(225, "estimate", False), (450, "estimate", False),
                                                                (675, "estimate", False)]  # fmt: skip
    assert tap.output_seen == 1000 and tap.close() is None


def test_the_tap_never_raises() -> None:
    class Broken:
        def feed(self, data: bytes) -> None:
            raise RuntimeError("parser")

        def close(self) -> None:
            raise RuntimeError("close")

        def usage(self) -> None:
            return None

    tap, _ = make_tap(reader=Broken())
    assert tap(b"x") == b"x" and tap.failed == "RuntimeError: parser"
    assert tap.close() is None


def test_a_gate_leaves_out_the_usage_chunk_and_returns_no_empty_bytes() -> None:
    tap, _ = make_tap(EventGate(without_usage))
    assert tap(b'data: {"choices": [], "us') == []
    assert tap(b'age": {"prompt_tokens": 1}}\n\ndata: [DONE]\n\n') == [b"data: [DONE]\n\n"]
    assert tap(b"data: x") == [] and tap.before_event() == b""
    assert tap(b"") == [b"data: x"]


def test_compressed_streams_take_no_event_of_ours() -> None:
    assert not make_tap(coding="gzip")[0].can_end_with_event
    assert make_tap()[0].can_end_with_event and make_tap()[0].may_change_length
    untyped, _ = make_tap(reader=parser({}))
    untyped(b'{"id": 1')
    assert untyped.may_change_length and not untyped.can_end_with_event


def test_what_could_not_be_read_is_not_complete_and_is_told() -> None:
    tap, _ = make_tap()
    tap(START)
    tap(b'event: message_delta\ndata: {"x": "' + b"x" * (17 << 20) + b'", "usage": {"output_tokens": 900}}\n\n')
    tap(b'event: message_stop\ndata: {"type": "message_stop"}\n\n')
    tap.ended()
    usage = tap.close()
    assert usage is not None and not usage.complete and "too large" in tap.failed

    async def body(exchange: Exchange, books: Books, events: list[Event]) -> None:
        await exchange.reserve(ESTIMATE, wanted)
        exchange.finish(sent=True, status=200, usage=usage, unread=tap.failed)

    books, events = trial(body)
    assert (books.calls[1][2].output, books.calls[1][2].source) == (100, "estimate")
    assert events[0].kind == "usage" and events[0].reason == "the answer could not be read: " + tap.failed


def test_where_the_policy_cuts_nothing_passes_from_the_oversized_event_on() -> None:
    told: list[str] = []
    for request, gate in ((parser({}), None), (chat_parser({}), EventGate(without_usage))):
        tap = Tap(request, Answer("", True), gate, lambda usage: None, told.append)
        tap(START)
        assert tap(b'data: {"x": "' + b"x" * (15 << 20)) and not told
        assert tap.before_event() == b"\n"  # also behind a gate that let part of an event go
        assert tap(b"x" * (2 << 20)) == tap(b'"}\n\n') == tap(b"") == []
        assert told.pop() == tap.broken == "an event was too large to be read" and not told
        usage = tap.close()
        assert (usage is None or not usage.complete) and tap.failed == tap.broken


def test_an_unknown_coding_is_named() -> None:
    tap = Tap(parser({}), Answer("gzip, compress", True), None, lambda usage: None)
    assert tap(b"\x00\x9f\x01") == b"\x00\x9f\x01" and tap.close() is None
    assert tap.failed == tap.unknown_coding == "its content coding 'compress' is unknown"
    for known in ("", "identity", "GZIP", "x-gzip, br", "deflate,zstd"):
        assert unknown(known) == ""
    plain = Tap(parser({}), Answer("compress", True), None, lambda usage: None)  # a header that is not true
    plain(START)
    assert plain.close() is not None and not plain.failed


def test_an_oversized_event_is_flagged() -> None:
    class Large:
        overflowed = True

        def feed(self, data: bytes) -> None: ...
        def close(self) -> None: ...
        def usage(self) -> None:
            return None

    tap, _ = make_tap(reader=Large())
    tap(b"x")
    tap.close()
    assert "too large" in tap.failed
