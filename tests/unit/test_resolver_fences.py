"""Which names are looked up ahead, and that a direct name waits for the first round."""

from __future__ import annotations

import asyncio

from agentmon import wire
from agentmon.resolver.fences import Fences, held_names
from agentmon.views import View, Views

DIRECT = "tcp://db.example:5432"


def view(*rules: str, mode: str = "enforce", inspected: tuple[str, ...] = ()) -> View:
    return Views().set(wire.BottleView(16, "b", "r", "10.0.0.16", mode=mode, rules=rules, inspected=inspected))


def test_only_beside_direct_rules_and_only_exact_held_names() -> None:
    held = ("a.example:443", "http://plain.example", "*.wild.example:443", "!no.example")
    assert held_names(view(*held)) == []
    assert held_names(view(*held, DIRECT)) == [("a.example", 443), ("plain.example", 80)]
    assert held_names(view("10.0.0.0/8", "a.example:443")) == [("a.example", 443)]


def test_a_direct_name_waits_for_the_first_round_and_a_dropped_bottle_asks_no_more() -> None:
    asked: list[str] = []
    gate = asyncio.Event()

    async def look(question: wire.Lookup) -> wire.Looked:
        await gate.wait()
        asked.append(question.name)
        return wire.Looked(question.id)

    async def body() -> None:
        fences = Fences(look)
        await fences.known(16)  # nothing to wait for
        fences.set(view("a.example:443", DIRECT))
        waiting = asyncio.ensure_future(fences.known(16))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        await asyncio.wait_for(waiting, 1)
        assert asked == ["a.example"]
        fences.drop(16)
        await asyncio.wait_for(fences.known(16), 1)
        fences.set(view("a.example:443", DIRECT, mode="cut"))
        await asyncio.sleep(0)
        assert asked == ["a.example"]

    asyncio.run(body())
