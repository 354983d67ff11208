"""Admission near exhaustion: overspend and agents in parallel, in virtual time; then processes that race for a budget.

In the first part only time and the provider are simulated: each request is reserved, answered after 20 ms a token of
output, and settled by the ledger's own decisions. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentmon import wire
from agentmon.ledger.book import Book
from agentmon.ledger.state import Now, Owner, Row, Run, Snapshot, TotalKey
from bench.figure import Figure, median, spread
from bench.process import Failed
from tests.support.budget_race import SCOPES, TOKENS, Racers
from tests.support.ledger_rig import Peer, ledger

MS = 1_000_000
TOKEN_MS = 20  # of output
POLL_MS = 250
PATIENCE_MS = 240_000
ME = Owner("boot", 1, 1)
WALL = 1_780_000_000 * 10**9


class _Empty:
    """state.Lookup of a new file."""

    def total(self, key: TotalKey) -> int:
        return 0

    def by_hold(self, hold: int) -> Row | None:
        return None

    def by_request(self, provider: str, request_id: str) -> Row | None:
        return None

    def run(self, run_id: int) -> Run:
        raise LookupError(run_id)

    def run_named(self, run: str) -> Run | None:
        return None

    def last_approval(self) -> int:
        return 0

    def approval_state(self, number: int) -> str | None:
        return None

    def undecided(self, run: str) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class Load:
    """Requests of `agents` callers at once. `calls`: how many each makes, one after the other."""

    budget: int
    agents: int
    calls: int
    input: int
    bound: int  # output that the request names
    answer: Callable[[random.Random], int]  # output that comes
    arrival_ms: int = 5  # the first calls come within
    trained: int = 0  # requests of a hundred tokens that were settled before, at another bottle


@dataclass
class Seen:
    charged: int = 0
    granted: int = 0
    refused: int = 0
    gave_up: int = 0  # of them: not spent, but held by others for too long
    most: int = 0  # in flight at once
    took_ms: int = 0


def empty_book() -> Book:
    """The ledger's decisions on a file without a row."""
    return Book(Snapshot((), {}, (), 1, 1), _Empty(), hold_ns=3600 * 10**9)


def play(load: Load, seed: int) -> Seen:
    """All calls of all agents, until they are answered or refused; an agent that is refused ends."""
    dice, seen = random.Random(seed), Seen()
    book = empty_book()
    ids = itertools.count(1)

    def ask(message: Any) -> Any:
        book.begin(Now(WALL, now * MS))
        answer = book.ask(message, ME)
        book.take()
        return answer

    now = 0
    for slot, tokens in ((1, load.budget), (2, 1 << 40)):
        budgets = (wire.BudgetDef("claude", tokens),)
        ask(wire.OpenRun(1, slot, f"b{slot}", f"run{slot}", "", (wire.ScopeDef("bottle", f"b{slot}", budgets),), {}))
    for n in range(load.trained):
        hold = ask(wire.Reserve(1, 2, "claude", "m", 10, load.bound, f"t{n}"))
        ask(wire.Settle(1, hold.hold, wire.Usage("claude", "m", f"t{n}", 10, output=100)))
    queue: list[tuple[int, int, str, int, int]] = []  # when, order, what, agent or hold, since
    left = [load.calls] * load.agents
    answers: dict[int, tuple[int, int]] = {}
    for agent in range(load.agents):
        heapq.heappush(queue, (dice.randrange(load.arrival_ms), next(ids), "ask", agent, -1))
    while queue:
        now, _, what, who, since = heapq.heappop(queue)
        if what == "ask":
            answer = ask(wire.Reserve(1, 1, "claude", "m", load.input, load.bound, f"k{who}.{left[who]}"))
            began = now if since < 0 else since
            if isinstance(answer, wire.Granted):
                seen.granted += 1
                output = min(load.bound, load.answer(dice))
                answers[answer.hold] = who, output
                seen.most = max(seen.most, len(answers))
                heapq.heappush(queue, (now + TOKEN_MS * output, next(ids), "settle", answer.hold, 0))
            elif getattr(answer, "waits", False) and now - began < PATIENCE_MS:
                heapq.heappush(queue, (now + POLL_MS, next(ids), "ask", who, began))
            else:
                seen.refused += 1
                seen.gave_up += getattr(answer, "waits", False)
        else:
            agent, output = answers.pop(who)
            ask(wire.Settle(1, who, wire.Usage("claude", "m", f"r{who}", load.input, output=output)))
            seen.charged += load.input + output
            left[agent] -= 1
            if left[agent]:
                heapq.heappush(queue, (now, next(ids), "ask", agent, -1))
    seen.took_ms = now
    if book.holds:
        raise AssertionError(f"{len(book.holds)} holds are left")
    return seen


def usual(dice: random.Random) -> int:
    """Tokens of an agent's answer: mostly some hundreds, few of them long."""
    return int(min(8000, dice.lognormvariate(6.3, 0.8)))


LOADS = {
    "trickle": Load(1000, 20, 1, 20, 200, lambda dice: dice.randrange(170, 190), arrival_ms=6000),
    "room_for_10": Load(1000, 50, 1, 20, 80, lambda _: 80),
    "tight": Load(200_000, 10, 100, 500, 32_000, usual),
    "ample": Load(20_000_000, 10, 100, 500, 32_000, usual),
    "hostile": Load(1_000_000, 50, 1, 500, 32_000, lambda _: 32_000, trained=300),
}


def _rounds(load: Load, rounds: int) -> Iterator[Seen]:
    for seed in range(rounds):
        yield play(load, seed)


def measure(tmp: Path, quick: bool) -> list[Figure]:
    out = []
    for name, load in LOADS.items():
        seen = list(_rounds(load, 5 if quick else 100))
        over = [max(0, s.charged - load.budget) * 1000 // load.budget for s in seen]
        rate = [s.charged * 1000 / max(1, s.took_ms) for s in seen]
        mid = {k: f"{median([getattr(s, k) for s in seen]):.0f}" for k in ("charged", "granted", "refused", "gave_up")}
        told = (
            f"{load.agents} callers, budget {load.budget}, bound {load.bound}; charged {mid['charged']}, granted "
            f"{mid['granted']}, refused {mid['refused']} ({mid['gave_up']} of them by others' holds), "
            f"at once {max(s.most for s in seen)}, {len(seen)} rounds"
        )
        out.append(Figure(f"admission.{name}.over", max(over), "per mille", spread=spread(over), note=told))
        out.append(Figure(f"admission.{name}.rate", median(rate), "tokens/s", spread=spread(rate), note="virtual time"))
    return [*out, _races(tmp, 5 if quick else 100)]


def _races(tmp: Path, rounds: int) -> Figure:
    """Real processes against a real ledger; what requests settled above their holds is all that may be overspent."""
    over: list[float] = []
    unexplained = 0
    with ledger(tmp) as process:
        daemon = Peer(process.socket)
        racers = Racers(process, daemon)
        try:
            for _ in range(rounds):
                for slot, seen in racers.round().items():
                    if seen.held or any("held" in refusal for refusal in seen.refusals):
                        raise Failed(f"{SCOPES[slot]}: {seen}")
                    over.append((seen.used - TOKENS[slot]) * 1000 / TOKENS[slot])
                    unexplained = max(unexplained, seen.used - TOKENS[slot] - seen.above)
        finally:
            racers.close()
            daemon.close()
    return Figure(
        "admission.races.over", median(over), "per mille", spread=spread(over),
        note=f"{rounds} rounds at {len(SCOPES)} scopes: 50 requests at once from 3 processes, one killed in holding; "
        f"every other answer is a fifth above its hold; used beyond that: {max(0, unexplained)} tokens",
    )  # fmt: skip
