"""A budget at every scope under parallel requests of several processes, one of which is killed while it holds."""

from __future__ import annotations

from pathlib import Path

from agentmon import wire
from tests.support.budget_race import OVER, SCOPES, TOKENS, Racers
from tests.support.ledger_rig import Peer, budget, database, ledger
from tests.support.rounds import rounds


def test_room_for_ten_at_every_scope_with_a_worker_killed_while_holding(tmp_path: Path, ledger_url: str) -> None:
    with ledger(tmp_path, **database(ledger_url)) as process:
        daemon = Peer(process.socket)
        racers = Racers(process, daemon)
        try:
            for _ in range(rounds(3)):
                for slot, seen in racers.round().items():
                    at = f"{SCOPES[slot]}: {seen}"
                    assert TOKENS[slot] <= seen.used <= TOKENS[slot] + seen.above, at
                    assert seen.held == 0 and seen.granted <= 10, at
                    assert seen.above <= (seen.granted - 2) * OVER + 100, at
                    assert seen.refusals and not [r for r in seen.refusals if "held" in r], at
                    assert {r["scope"] for r in seen.refusals} == {SCOPES[slot]}, at
        finally:
            racers.close()
        for slot, name in {1: "reviewer", 2: "b2", 3: "base", 5: "c"}.items():
            raised = daemon.ask(wire.SetBudget, SCOPES[slot], name, "", budget("claude", 5000), 0)
            assert isinstance(raised, wire.Done), raised
        for slot in (1, 2, 3):
            granted = daemon.ask(wire.Reserve, slot, "claude", "other", 0, 3500, "after")
            assert isinstance(granted, wire.Granted) and granted.tokens == 3500, granted
        daemon.close()
        with process.reader() as reader:
            assert reader.check() == []
