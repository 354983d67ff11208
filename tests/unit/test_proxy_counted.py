"""A provider's count beside a request that waits: when it is asked for, what is held, what is charged all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agentmon import wire
from agentmon.providers.declaration import Estimate
from agentmon.proxy.exchange import Accounts, Exchange, Whose

ESTIMATE = Estimate("m", 50, 100)
SPENT = wire.Denied(1, "bottle", "crate", "claude", 5, 6, 0, "run")
WAITS = wire.Denied(1, "bottle", "crate", "claude", 500, 6, 490, "run", True)
GRANTED = wire.Granted(1, 77, 150)


class Books:
    """Answers reserve() in turn and keeps the input of every call."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.inputs: list[tuple[str, int]] = []

    async def reserve(self, slot: int, provider: str, model: str, *, input: int, output: int, key: str) -> Any:
        self.inputs.append(("reserve", input))
        assert output == 100
        return self.answers.pop(0)

    async def settle(self, hold: int, usage: wire.Usage) -> wire.Settled:
        self.inputs.append(("settle", usage.input))
        return wire.Settled(1)

    async def progress(self, hold: int, usage: wire.Usage) -> bool:
        self.inputs.append(("progress", usage.input))
        return False

    async def release(self, hold: int) -> None:
        self.inputs.append(("release", 0))

    async def totals(self, slot: int) -> list[dict[str, Any]]:
        return []


def run(
    count: Callable[[], Awaitable[int | None]], *answers: Any, wanted: Callable[[], bool] = lambda: True
) -> list[tuple[str, int]]:
    """What a request said to the ledger that got these answers and was lost at its end."""
    books = Books(*answers)

    async def main() -> None:
        accounts = Accounts(books, lambda event: None)
        exchange = Exchange(accounts, Whose(16, "crate", "claude", "api.anthropic.com", "key-1"))
        await exchange.reserve(ESTIMATE, wanted, count=count)
        exchange.progress(wire.Usage(provider="claude", model="m", request_id="r", output=3, source="estimate"))
        await asyncio.sleep(0)
        exchange.finish(sent=True, status=None, usage=None)
        await accounts.settled(5)

    asyncio.run(main())
    assert books.answers == []
    return books.inputs


async def seven() -> int | None:
    return 7


async def never() -> int | None:
    raise AssertionError("nobody was to be asked")


def test_the_count_is_held_and_what_is_lost_is_charged_by_the_estimate() -> None:
    assert run(seven, WAITS, WAITS, GRANTED) == [
        ("reserve", 50), ("reserve", 7), ("reserve", 7), ("progress", 7), ("settle", 50),
    ]  # fmt: skip


def test_it_is_asked_for_once() -> None:
    asked = []

    async def count() -> int | None:
        asked.append(1)
        return None

    said = run(count, WAITS, WAITS, WAITS, GRANTED)
    assert said[:4] == [("reserve", 50)] * 4 and said[-1] == ("settle", 50) and asked == [1]


def test_nobody_is_asked_where_there_is_room_or_none_for_good_or_nobody_waits() -> None:
    assert run(never, GRANTED)[0] == ("reserve", 50)
    assert run(never, SPENT) == [("reserve", 50)]
    assert run(never, WAITS, wanted=lambda: False) == [("reserve", 50)]


def test_a_count_that_comes_too_late_is_given_up() -> None:
    given_up = []

    async def slow() -> int | None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.append(1)
        return 7

    assert run(slow, WAITS, GRANTED)[:2] == [("reserve", 50)] * 2 and given_up == [1]
