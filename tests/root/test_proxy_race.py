"""Fifty requests at once through three real workers, room for ten, one worker killed while it holds (case 25)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentmon.ledger.reader import Reader
from agentmon.providers.counting import tokens_of
from tests.support.proxy_rig import Rig
from tests.support.proxy_talk import CLAUDE, ask, fresh, last_row, message
from tests.support.proxy_upstream import reply
from tests.support.rounds import rounds

pytestmark = pytest.mark.root

REQUESTS, ROOM, BOUND, OVER = 50, 10, 100, 20  # every other answer has OVER tokens more than its request allowed
BODY = ask(max_tokens=BOUND)
HOLD = tokens_of(len(BODY)) + BOUND


def through(rig: Rig, to: str) -> tuple[int, str]:
    """One request's status and the type of its error; 0 where the worker was killed."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        sock = rig.connect(CLAUDE, to=to)
        sock.settimeout(60)
        with contextlib.closing(sock):
            answer = rig.request(CLAUDE, "/v1/messages", BODY, sock=sock)
            if not answer.broken:
                return answer.status, answer.json.get("error", {}).get("type", "")
    return 0, ""


@pytest.mark.parametrize("turn", range(rounds(2)))
def test_no_overspend_no_leaked_hold_no_phantom_refusal(running: Rig, turn: int) -> None:
    rig = fresh(running)
    rig.bottle(budget=ROOM * HOLD)
    others = [rig.another_worker(number) for number in (1, 2)]
    at_the_provider = threading.Semaphore(0)
    go = threading.Event()
    over: list[int] = []

    async def answer(seen: Any, writer: Any) -> None:
        at_the_provider.release()
        while not go.is_set():
            await asyncio.sleep(0.002 + random.random() / 100)
        more = OVER * random.randrange(2)
        over.append(more)
        await reply(200, message(tokens_of(len(BODY)), BOUND + more))(seen, writer)

    rig.upstream.script = answer
    before = len(rig.rows(0))
    addresses = [rig.address, *(other.address for other in others)]
    try:
        with ThreadPoolExecutor(REQUESTS) as pool:
            asked = [pool.submit(through, rig, addresses[n % 3]) for n in range(REQUESTS)]
            for _ in range(ROOM):
                assert at_the_provider.acquire(timeout=30), "fewer than there is room for came to the provider"
            assert rig.held() == ROOM * HOLD and len(rig.upstream.seen) == ROOM
            others[1].process.kill()
            others[1].process.wait(10)
            go.set()
            outcomes = Counter(future.result(90) for future in asked)
        assert rig.nothing_held(30), "a hold is left"
    finally:
        for other in others:
            other.stop()
    charged = rig.rows(before)[before:]
    wired = [row for row in charged if row[6] == "wire"]
    lost = [row for row in charged if row[6] == "estimate"]
    assert set(outcomes) <= {(200, ""), (403, "budget_exhausted"), (0, "")}, outcomes
    assert outcomes[200, ""] == len(wired) and len(wired) + len(lost) <= len(rig.upstream.seen)
    assert all(row[2] + row[5] == HOLD for row in lost)  # of the killed worker, charged at what it held
    used = sum(row[2] + row[5] for row in charged)
    assert (ROOM - 1) * HOLD <= used <= ROOM * HOLD + sum(over), (used, outcomes)
    with Reader(str(rig.directory / "ledger/ledger.db")) as reader:
        assert reader.check() == []
    rig.bottle(budget=HOLD)  # nobody is refused for what is no longer held
    rig.upstream.script = reply(200, message(1, 1))
    assert through(rig, rig.address) == (200, "")
    assert last_row(rig, before + len(charged))[5:] == (1, "wire", 1)
