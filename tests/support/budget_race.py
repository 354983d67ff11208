"""Fifty requests at once from three processes, room for ten, at every scope; one process is killed while holding.

Run as a program it is such a process: `round` on stdin → every slot's requests → one line of JSON on stdout.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from agentmon import wire
from agentmon.ledger.client import LedgerClient
from agentmon.providers.declaration import Estimate
from agentmon.proxy.exchange import Accounts, Exchange, Whose
from tests.support.ledger_rig import ROOT, LedgerProcess, Peer, budget, scope, until

SCOPES = {1: "agent", 2: "bottle", 3: "parent", 4: "host", 5: "ceiling"}  # by slot: whose budget governs it
TOKENS = {slot: 900 if slot == 5 else 1000 for slot in SCOPES}  # the ceiling's below the host's
CALLS = 24  # of each of the two that live; the third holds two
INPUT, BOUND, OVER = 50, 50, 20  # every other answer has OVER tokens more than its request allowed
HELD = "held"


@dataclass
class Outcome:
    """One slot's round, in weighted tokens."""

    used: int
    held: int  # after everything
    above: int  # by how much settlements exceeded their holds
    granted: int
    refusals: list[dict[str, Any]]


class Racers:
    """The two processes that live through all rounds."""

    def __init__(self, process: LedgerProcess, daemon: Peer) -> None:
        self._process = process
        self._daemon = daemon
        self._workers = [self._start(name) for name in ("a", "b")]
        self._rounds = 0

    def _start(self, name: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "tests.support.budget_race", self._process.socket, name]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def round(self) -> dict[int, Outcome]:
        """One round in five new runs, by slot."""
        self._rounds += 1
        for slot in SCOPES:
            opened = self._daemon.ask(wire.OpenRun, slot, f"b{slot}", f"r{self._rounds}.{slot}", "", _scopes(slot), {})
            assert isinstance(opened, wire.Done), opened
        killed = self._start(HELD)
        try:
            assert _say(killed, "round")["granted"] == dict.fromkeys(map(str, SCOPES), 2)
            for worker in self._workers:
                _tell(worker, "round")
        finally:
            killed.kill()
            killed.communicate(timeout=20)
        found = [_line(worker) for worker in self._workers]
        until(lambda: not any(self._line(slot)["held"] for slot in SCOPES), "all holds settled")
        return {
            slot: Outcome(
                self._line(slot)["used"],
                self._line(slot)["held"],
                sum(f["above"][str(slot)] for f in found),
                sum(f["granted"][str(slot)] for f in found) + 2,
                [r for f in found for r in f["refusals"][str(slot)]],
            )
            for slot in SCOPES
        }

    def _line(self, slot: int) -> dict[str, Any]:
        lines: list[dict[str, Any]] = self._daemon.ask(wire.Totals, slot).value
        return next(line for line in lines if line["scope"] == SCOPES[slot] and line["tokens"] is not None)

    def close(self) -> None:
        for worker in self._workers:
            worker.communicate(timeout=20)


def _scopes(slot: int) -> tuple[wire.ScopeDef, ...]:
    own = budget("claude", TOKENS[slot])
    host = scope("host", "host", budget("claude", TOKENS[4]))  # one for all runs
    at = {
        1: (scope("agent", "reviewer", own), scope("bottle", "b1")),
        2: (scope("bottle", "b2", own),),
        3: (scope("bottle", "b3"), scope("parent", "base", own)),
        4: (scope("bottle", "b4"),),
        5: (scope("bottle", "b5"), scope("ceiling", "c", own)),
    }[slot]
    return (*at[:1], *(s for s in at[1:] if s.scope != "ceiling"), host, *(s for s in at if s.scope == "ceiling"))


def _tell(worker: subprocess.Popen[str], word: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(word + "\n")
    worker.stdin.flush()


def _line(worker: subprocess.Popen[str]) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    assert line, "a worker ended"
    return json.loads(line)


def _say(worker: subprocess.Popen[str], word: str) -> Any:
    _tell(worker, word)
    return _line(worker)


# ── a worker ──


async def _serve(socket: str, name: str) -> None:
    client = LedgerClient(socket)
    number = 0
    while await asyncio.to_thread(sys.stdin.readline):
        number += 1
        if name == HELD:
            print(json.dumps({"granted": {slot: await _hold_two(client, slot) for slot in SCOPES}}), flush=True)
            continue
        seen: dict[str, dict[int, Any]] = {"above": {}, "granted": {}, "refusals": {}}
        for slot, results in zip(
            SCOPES, await asyncio.gather(*[_requests(client, slot, f"{name}{number}") for slot in SCOPES]), strict=True
        ):
            seen["refusals"][slot] = [r for r in results if isinstance(r, dict)]
            seen["above"][slot] = sum(r for r in results if isinstance(r, int))
            seen["granted"][slot] = sum(isinstance(r, int) for r in results)
        print(json.dumps(seen), flush=True)
    await client.close()


async def _hold_two(client: LedgerClient, slot: int) -> int:
    answers = [await client.reserve(slot, "claude", "m", input=INPUT, output=BOUND, key=f"h{n}") for n in range(2)]
    return sum(isinstance(answer, wire.Granted) for answer in answers)


async def _requests(client: LedgerClient, slot: int, name: str) -> list[Any]:
    return list(await asyncio.gather(*[request(client, slot, f"{name}.{slot}.{n}", n) for n in range(CALLS)]))


async def request(client: LedgerClient, slot: int, key: str, n: int) -> Any:
    """By how many tokens the settlement exceeded its hold, or the refusal."""
    remembering = _Remembering(client)
    accounts = Accounts(remembering, lambda _event: None)
    exchange = Exchange(accounts, Whose(slot, f"b{slot}", "claude", "api.anthropic.com", key))
    refusal = await exchange.reserve(Estimate("m", INPUT, BOUND), lambda: True)
    if refusal is not None:
        return refusal[1]
    await asyncio.sleep(random.random() * 0.02)
    output = BOUND + OVER * (n % 2)
    exchange.finish(sent=True, status=200, usage=wire.Usage("claude", "m", key, INPUT, output=output))
    await accounts.settled(20)
    return max(0, INPUT + output - remembering.tokens)


class _Remembering:
    """A ledger client that keeps how large its last hold was."""

    def __init__(self, client: LedgerClient) -> None:
        self._client = client
        self.tokens = 0
        self.settle, self.progress, self.release, self.totals = (
            client.settle, client.progress, client.release, client.totals,
        )  # fmt: skip

    async def reserve(
        self, slot: int, provider: str, model: str, *, input: int, output: int, key: str
    ) -> wire.Granted | wire.Denied:
        answer = await self._client.reserve(slot, provider, model, input=input, output=output, key=key)
        if isinstance(answer, wire.Granted):
            self.tokens = answer.tokens
        return answer


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2]))
