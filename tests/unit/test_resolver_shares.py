"""shares.py and turns.py: what greedy bottles leave to the others, and that nobody waits for long or loses a place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.resolver import turns as turns_module
from agentmon.resolver.shares import Shares
from agentmon.resolver.turns import Crowded, Turns


def taken(shares: Shares, owner: str, most: int = 1000) -> int:
    return next((n for n in range(most) if not shares.take(owner)), most)


def test_an_owner_has_its_share_and_the_last_places_are_for_those_who_hold_few() -> None:
    shares = Shares(20, 8, reserved=6, few=2)
    assert [taken(shares, owner) for owner in "abcdef"] == [8, 6, 2, 2, 2, 0]
    shares.give("c")
    assert not shares.take("a") and shares.take("f")
    assert shares.taken == 20
    for owner, n in zip("abcdef", (8, 6, 1, 2, 2, 1), strict=True):
        for _ in range(n):
            shares.give(owner)
    assert shares.taken == 0 and not shares._held


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=200))
def test_who_holds_fewer_gets_a_place_whenever_one_who_holds_more_does(steps: list[tuple[bool, int]]) -> None:
    shares = Shares(12, 5, reserved=4, few=2)
    for more, owner in steps:
        if more:
            fewer = [o for o in range(6) if shares.held(o) < shares.held(owner)]
            if shares.take(owner):
                shares.give(owner)
                for other in fewer:
                    assert shares.take(other)
                    shares.give(other)
                shares.take(owner)
        elif shares.held(owner):
            shares.give(owner)
        assert shares.taken == sum(shares.held(o) for o in range(6)) <= 12


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 10))  # type: ignore[arg-type]


async def tick() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_next_place_goes_to_who_holds_the_fewest() -> None:
    async def body() -> None:
        turns = Turns(Shares(4, 4, reserved=0, few=1))
        for _ in range(4):
            await turns.take("greedy")
        order: list[str] = []

        async def wait(owner: str) -> None:
            await turns.take(owner)
            order.append(owner)

        waiting = [asyncio.ensure_future(wait(owner)) for owner in ("greedy", "greedy", "polite", "greedy", "other")]
        await tick()
        for _ in range(2):
            turns.give("greedy")
        await tick()
        assert order == ["polite", "other"]
        turns.give("polite")
        await tick()
        assert order[2:] == ["greedy"]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(body)


def test_nobody_waits_for_long_and_who_gives_up_loses_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "PATIENCE_S", 0.02)
    monkeypatch.setattr(turns_module, "MAX_WAITING", 3)

    async def body() -> None:
        shares = Shares(1, 1, reserved=0, few=1)
        turns = Turns(shares)
        await turns.take("a")
        waiting = [asyncio.ensure_future(turns.take("b")) for _ in range(3)]
        await tick()
        with pytest.raises(Crowded):  # at once
            await asyncio.wait_for(turns.take("b"), 0.01)
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in done] == [Crowded] * 3
        late = asyncio.ensure_future(turns.take("b"))
        await tick()
        turns.give("a")  # its place, and in the same turn of the loop it is cancelled
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        gone = asyncio.ensure_future(turns.take("c"))  # takes the free place
        await gone
        left = asyncio.ensure_future(turns.take("d"))
        await tick()
        left.cancel()
        turns.give("c")  # before who waited could say that it gave up
        with pytest.raises(asyncio.CancelledError):
            await left
        assert shares.taken == 0 and not turns._waiting

    run(body)
