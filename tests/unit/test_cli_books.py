"""What a run's summary takes from the ledger's file: all of its tokens, and whether it ever was cut."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from agentmon import paths, wire
from agentmon.cli.run import _booked
from agentmon.ledger.state import Now, Owner
from agentmon.ledger.store import Store
from tests.support.ledger_rig import budget, scope

ME = Owner("boot", 1, 1)


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(paths, "LEDGER", tmp_path / "ledger.db")
    return Store(str(paths.LEDGER))


def write(store: Store, *enforced: wire.Enforced) -> None:
    def ask(message: Any) -> Any:
        return store.run([(message, ME)], Now(time.time_ns(), 1)).answers[0]

    ask(wire.OpenRun(1, 1, "b", "run1", "", (scope("bottle", "b", budget("claude", 500)),), {}))
    usage = wire.Usage("claude", "opus", "m1", 100, output=20)
    ask(wire.Settle(1, ask(wire.Reserve(1, 1, "claude", "m", 1, 1, "m1")).hold, usage))
    for row in enforced:
        ask(row)
    store.close()


def row(policy: str, trigger: str, run: str = "run1") -> wire.Enforced:
    return wire.Enforced(1, 1, "b", run, policy, trigger, "uid:0", 0, "done")


TOLD = {"usage": {"claude": {"used": 120, "tokens": 500}, "codex": {"used": 0}}, "cut": None}


def test_token_counts_are_the_ledgers_beside_the_daemons_budgets(book: Store) -> None:
    write(book)
    found = _booked("run1", "b", 0, TOLD)
    claude = found["usage"]["claude"]
    assert {k: claude[k] for k in ("used", "tokens", "input", "output", "weighted", "requests")} == {
        "used": 120, "tokens": 500, "input": 100, "output": 20, "weighted": 120, "requests": 1,
    }  # fmt: skip
    assert found["usage"]["codex"] == {"used": 0} and found["cut"] is None
    assert _booked("another", "b", 0, {})["usage"] == {}


def test_a_run_that_was_cut_and_resumed_was_cut(book: Store) -> None:
    write(book, row("cutoff", "operator", "earlier"), row("freeze", "budget"), row("resume", "operator"))
    cut = _booked("run1", "b", 0, TOLD)["cut"]
    assert (cut["policy"], cut["trigger"], cut["by"]) == ("freeze", "budget", "uid:0")
    spent = {"provider": "claude", "used": 620}
    both = _booked("run1", "b", 0, {**TOLD, "cut": spent})["cut"]
    assert both["used"] == 620 and both["policy"] == "freeze"


@pytest.mark.parametrize(("rows", "was_cut"), [(("operator",), False), (("budget",), True), ((), False)])
def test_an_operators_kill_is_no_cut(book: Store, rows: tuple[str, ...], was_cut: bool) -> None:
    write(book, *(row("kill", trigger) for trigger in rows))
    assert bool(_booked("run1", "b", 0, TOLD)["cut"]) is was_cut


def test_without_a_readable_ledger_the_daemons_numbers_stay(book: Store) -> None:
    assert _booked("run1", "b", 0, TOLD) == {}
