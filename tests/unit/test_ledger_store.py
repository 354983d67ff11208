"""The store's single rules, one by one; test_ledger_machine.py holds it to a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from agentmon import wire
from agentmon.ledger.book import Spent, Sweep
from agentmon.ledger.state import Now
from tests.support.ledger_book import Book
from tests.support.ledger_rig import HOUR_NS, A, B, scope, usage
from tests.support.ledger_rig import budget as of


@pytest.fixture
def book(tmp_path: Path, ledger_url: str) -> Any:
    book = Book(tmp_path, ledger_url)
    yield book
    book.store.close()


def test_holds_of_others_make_wait_and_only_the_last_one_shrinks(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    first = book.reserve(1, 30, 40, "a")
    denied = book.reserve(1, 30, 40, "b")
    assert (denied.used, denied.held, denied.tokens, denied.scope, denied.waits) == (0, 70, 100, "bottle", True)
    book.ask(wire.Settle, first.hold, usage(40, request_id="r"))
    assert (first.tokens, book.reserve(1, 30, 40, "b").tokens) == (70, 60)


def test_the_same_key_gives_the_same_hold_but_not_to_another_worker(book: Book) -> None:
    book.open(1)
    first = book.reserve(1, 1, 1, "a")
    assert book.reserve(1, 1, 1, "a").hold == first.hold
    assert book.reserve(1, 1, 1, "a", owner=B).hold != first.hold


def test_a_parents_budget_is_a_pool_and_all_it_governs_are_cut(book: Book) -> None:
    """b3 has a budget of its own: it spends from the pool and is not cut by it."""
    pool = scope("parent", "team", of("claude", 100, "month"))
    book.open(1, scope("bottle", "b1"), pool)
    book.open(2, scope("bottle", "b2"), pool)
    book.open(3, scope("bottle", "b3", of("claude", 1000)), pool)
    book.spend(3, 60, "r1")
    assert not book.crossed
    assert not book.spend(3, 45, "r2").crossed
    assert [(c.slots, c.scope, c.threshold, c.used) for c in book.crossed] == [((1, 2), "parent", 100, 105)]
    assert book.reserve(1, 1, 0, "x").used == 105
    assert isinstance(book.reserve(3, 1, 0, "y"), wire.Granted)


def test_a_ceiling_is_checked_beside_the_nearest_scope(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 1000)), scope("ceiling", "host", of("claude", 50, "day")))
    assert book.reserve(1, 80, 0, "a").tokens == 50
    denied = book.reserve(1, 80, 0, "b")
    assert (denied.scope, denied.per) == ("ceiling", "day")


def test_a_spent_budget_is_named_before_one_that_is_only_held(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)), scope("ceiling", "host", of("claude", 50, "day")))
    book.spend(1, 60, "r1")
    assert isinstance(book.reserve(1, 1, 0, "a"), wire.Denied)
    book.ask(wire.SetBudget, "ceiling", "host", "", of("claude", 500, "day"), 0)
    assert book.reserve(1, 40, 0, "b").tokens == 40
    book.ask(wire.SetBudget, "ceiling", "host", "", of("claude", 60, "day"), 0)
    assert book.reserve(1, 1, 0, "c").scope == "ceiling"


def test_thresholds_inform_once_and_crossing_is_told_once(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    for tokens, request in ((79, "a"), (3, "b"), (3, "c"), (10, "d"), (50, "e")):
        book.spend(1, tokens, request)
    assert [c.threshold for c in book.crossed] == [80, 95, 100]
    assert all(c.slots == (1,) and c.at_ns for c in book.crossed)


def test_progress_crosses_without_a_row_and_the_settlement_does_not_cross_again(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    one, two = book.reserve(1, 5, 5, "a"), book.reserve(1, 5, 5, "b")
    assert book.ask(wire.Progress, one.hold, usage(5, 60)).value is False
    assert book.ask(wire.Progress, two.hold, usage(5, 30)).value is True
    assert [c.threshold for c in book.crossed] == [100]
    assert book.reads("SELECT count(*) FROM usage") == [(0,)]
    assert book.ask(wire.Settle, one.hold, usage(5, 60)).crossed
    assert book.ask(wire.Settle, two.hold, usage(5, 30)).crossed
    assert [c.threshold for c in book.crossed] == [100]
    assert book.ask(wire.Progress, two.hold, usage(5, 90)).value is False  # gone


def test_a_shadow_budget_records_and_cuts_nobody(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100, shadow=True)), scope("host", "host", of("claude", 500, "day")))
    settled = book.spend(1, 120, "a")
    assert not settled.crossed
    assert [(c.slots, c.threshold, c.scope) for c in book.crossed] == [((), 100, "bottle")]
    assert book.reads("""SELECT bottle, policy, "by" FROM enforcement_v""") == [("b1", "shadow", "bottle:b1")]
    assert isinstance(book.reserve(1, 1, 0, "b"), wire.Granted)
    assert [line["governs"] for line in book.ask(wire.Totals, 1).value] == [False, True]


def test_star_budget_counts_all_providers(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("*", 100)))
    book.spend(1, 60, "r1", "claude")
    book.spend(1, 60, "r2", "codex")
    assert book.line(1, "bottle", "*")["used"] == 120
    assert [(c.provider, c.slots) for c in book.crossed] == [("*", (1,))]


def test_an_agents_daily_budget_crosses_by_what_another_bottle_of_it_spends(book: Book) -> None:
    agent = scope("agent", "rev", of("claude", 100, "day"))
    book.open(1, agent)
    book.open(2, agent)
    book.spend(1, 120, "r1")
    assert sorted(c.slots for c in book.crossed) == [(1,), (2,)]


def test_two_answers_with_one_id_are_two_where_their_counts_differ(book: Book) -> None:
    book.open(1)
    holds = [book.reserve(1, 1, 1, key).hold for key in "abcd"]
    rows = [usage(10, 5, "chatcmpl-7"), usage(10, 6, "chatcmpl-7"), usage(10, 5, "chatcmpl-7")]
    rows.append(usage(0, 90, "chatcmpl-7", source="estimate", complete=False))  # of the first, broken off: a replay
    answers = [book.ask(wire.Settle, hold, row) for hold, row in zip(holds, rows, strict=True)]
    assert [a.duplicate for a in answers] == [False, False, True, True]
    assert book.ask(wire.Settle, holds[1], rows[1]).duplicate
    assert book.reads("SELECT request_id, weighted FROM usage ORDER BY id") == [
        ("chatcmpl-7", 15), (f"chatcmpl-7#{holds[1]}", 16),
    ]  # fmt: skip
    assert book.line(1, "bottle")["used"] == 31 and book.line(1, "bottle")["held"] == 0


def test_replay_by_request_and_by_hold(book: Book) -> None:
    book.open(1)
    one, two = book.reserve(1, 1, 1, "a"), book.reserve(1, 1, 1, "b")
    row = usage(10, 5, "msg_1")
    answers = book.all([(wire.Settle(1, one.hold, row), A), (wire.Settle(2, two.hold, row), A)])
    assert [a.duplicate for a in answers] == [False, True]
    assert book.ask(wire.Settle, one.hold, usage(99, request_id="msg_2")).duplicate
    nameless = book.reserve(1, 1, 1, "c")
    assert not book.ask(wire.Settle, nameless.hold, usage(1)).duplicate
    assert book.ask(wire.Settle, nameless.hold, usage(1)).duplicate
    assert book.line(1, "bottle")["used"] == 16
    assert book.line(1, "bottle")["held"] == 0
    assert book.reads("SELECT request_id FROM usage ORDER BY id")[1][0] == f"c#{nameless.hold}"


def test_the_truth_corrects_an_estimate(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 1000)))
    hold = book.reserve(1, 100, 400, "a")
    book.all([(Sweep(frozenset({A})), B)])
    assert book.line(1, "bottle")["used"] == 500
    late = wire.Usage("claude", "m2", "msg_9", 90, output=20)
    assert not book.ask(wire.Settle, hold.hold, late).duplicate
    assert book.ask(wire.Settle, hold.hold, late).duplicate
    assert book.line(1, "bottle")["used"] == 110
    assert book.reads("SELECT source, complete, input, output, weighted FROM usage_v ORDER BY id") == [
        ("estimate", 0, 100, 400, 500),
        ("reconciled", 1, -10, -380, -390),
    ]
    assert book.problems() == []


def test_an_estimate_takes_what_the_stream_reported_when_that_is_more(book: Book) -> None:
    book.open(1)
    hold = book.reserve(1, 10, 20, "a")
    book.ask(wire.Progress, hold.hold, wire.Usage("claude", "m", "", 12, cache_read=100, output=90))
    book.ask(wire.CloseRun, 1, "run1")
    assert book.reads("SELECT input, cache_read, output, source FROM usage_v") == [(12, 100, 90, "estimate")]


def test_a_late_settlement_of_a_closed_run_is_counted_there(book: Book) -> None:
    book.open(1)
    hold = book.reserve(1, 10, 20, "a")
    book.ask(wire.CloseRun, 1, "run1")
    assert not book.ask(wire.Settle, hold.hold, usage(10, 1, "msg")).duplicate
    assert book.reads("SELECT run, sum(weighted) FROM usage_v GROUP BY run") == [("run1", 11)]
    assert book.ask(wire.Settle, hold.hold, usage(10, 1, source="estimate")).duplicate


def test_expiry_is_by_uptime_and_progress_renews_it(book: Book) -> None:
    book.open(1)
    book.reserve(1, 10, 20, "a")
    kept = book.reserve(1, 10, 20, "b")
    book.now = Now(book.now.wall_ns + 10**15, book.now.boot_ns + HOUR_NS - 1)
    book.ask(wire.Progress, kept.hold, usage(1))
    book.all([(Sweep(frozenset()), A)])
    assert book.reads("SELECT count(*) FROM usage") == [(0,)]
    book.now = replace(book.now, boot_ns=book.now.boot_ns + 1)
    book.all([(Sweep(frozenset()), A)])
    assert book.reads("SELECT source FROM usage") == [("estimate",)]
    assert book.store.owners() == {A}


def test_a_raised_budget_admits_again_and_is_audited(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    book.spend(1, 150, "a")
    assert isinstance(book.reserve(1, 1, 0, "b"), wire.Denied)
    assert isinstance(book.ask(wire.SetBudget, "bottle", "b1", "run1", of("claude", 400), 1000), wire.Done)
    assert book.reserve(1, 500, 0, "c").tokens == 250
    assert book.reads("SELECT uid, action, target FROM audit_v") == [(1000, "budget", "bottle:b1")]
    assert book.reads("SELECT tokens, used, held, remaining, origin FROM budget_v") == [(400, 150, 250, 0, "operator")]


def test_a_budget_set_below_what_is_spent_crosses_at_once(book: Book) -> None:
    book.open(1)
    book.spend(1, 150, "a")
    book.ask(wire.SetBudget, "bottle", "b1", "", of("claude", 100), 0)
    assert [(c.slots, c.used, c.threshold) for c in book.crossed] == [((1,), 150, 100)]


def test_an_operators_amount_stays_until_the_policy_changes(book: Book) -> None:
    policy = scope("host", "host", of("claude", 100, "day"))
    book.open(1, policy)
    book.ask(wire.SetBudget, "host", "host", "", of("claude", 900, "month"), 0)
    book.open(1, policy)  # a restarted daemon
    book.open(2, policy)
    assert [(line["tokens"], line["per"]) for line in book.ask(wire.Totals, 2).value] == [(900, "month")]
    book.open(3, scope("host", "host", of("claude", 200, "day")))
    assert [(line["tokens"], line["per"]) for line in book.ask(wire.Totals, 1).value] == [(200, "day")]
    book.open(3, run="other")
    assert book.ask(wire.Totals, 1).value == []


def test_a_bottle_that_starts_under_a_spent_budget_is_told_of(book: Book) -> None:
    host = scope("host", "host", of("claude", 100, "month"))
    book.open(1, host)
    book.spend(1, 100, "a")
    book.crossed.clear()
    book.open(2, host)
    assert [c.slots for c in book.crossed] == [(1, 2)]
    told = book.all([(Spent(), A)])[0]
    assert [(c.slots, c.used) for c in told.value] == [((1, 2), 100)]


def test_opening_again_keeps_holds_and_moves_the_slot(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    hold = book.reserve(1, 40, 0, "a")
    book.open(5, scope("bottle", "b1", of("claude", 100)), run="run1", bottle="b1")
    assert book.ask(wire.Totals, 1).error == "Refused"
    assert book.line(5, "bottle")["held"] == 40
    book.ask(wire.Settle, hold.hold, usage(30))
    assert book.line(5, "bottle")["remaining"] == 70
    book.ask(wire.CloseRun, 5, "run1")
    book.open(2, scope("bottle", "b1", of("claude", 100)), run="run1", bottle="b1")  # thawed after a reboot
    assert book.line(2, "bottle")["used"] == 30


@pytest.mark.parametrize(
    "message",
    [
        wire.Reserve(1, 9, "claude", "m", 1, 1, "k"),
        wire.Reserve(1, 1, "*", "m", 1, 1, "k"),
        wire.Reserve(1, 1, "claude", "m", -1, 1, "k"),
        wire.Settle(1, 77, wire.Usage("claude")),
        wire.Settle(1, 77, wire.Usage("claude", input=-1)),
        wire.Settle(1, 77, wire.Usage("claude", output=1 << 50)),
        wire.Settle(1, 77, wire.Usage("claude", source="guess")),
        wire.SetBudget(1, "bottle", "nobody", "", of("claude", 1), 0),
        wire.SetBudget(1, "planet", "b1", "", of("claude", 1), 0),
        wire.SetBudget(1, "host", "host", "", of("claude", 1, "year"), 0),
        wire.OpenRun(1, 2, "b", "r", "", (wire.ScopeDef("planet", "x"),), {}),
        wire.OpenRun(1, 2, "b", "r", "", (wire.ScopeDef("host", "host", (of("claude", -1),)),), {}),
        wire.OpenRun(1, 2, "b", "r", "", (), {"input": -1}),
        wire.OpenRun(1, 2, "b", "", "", (), {}),
        wire.Totals(1, 9),
    ],
)
def test_what_cannot_be_is_answered_and_leaves_no_trace(book: Book, message: Any) -> None:
    book.open(1)
    before = book.reads("SELECT count(*) FROM runs, holds, usage, audit")
    answer = book.all([(message, A)])[0]
    assert isinstance(answer, wire.Failed) and answer.message
    assert book.reads("SELECT count(*) FROM runs, holds, usage, audit") == before


def test_progress_with_nonsense_is_refused(book: Book) -> None:
    book.open(1)
    hold = book.reserve(1, 1, 1, "a")
    assert book.ask(wire.Progress, hold.hold, wire.Usage("claude", input=-5)).error == "BadInput"


def test_long_texts_are_cut_and_long_ids_stay_distinct(book: Book) -> None:
    book.open(1)
    for n in range(2):
        hold = book.reserve(1, 1, 1, f"k{n}" + "x" * 500)
        row = wire.Usage("claude", "m" * 999, "r" * 500 + str(n), 1, raw=b"x" * 100_000)
        assert not book.ask(wire.Settle, hold.hold, row).duplicate
    assert book.reads("SELECT length(model), length(raw) FROM usage") == [(256, 65536)] * 2


def test_hold_ids_are_never_used_twice(book: Book) -> None:
    book.open(1)
    first = book.reserve(1, 1, 1, "a").hold
    book.ask(wire.Release, first)
    book.store.close()
    assert book.reserve(1, 1, 1, "b").hold > first


def test_one_question_that_breaks_does_not_break_its_batch(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs of one name: the schema's unique index has the last word."""
    book.open(1)
    good = wire.Reserve(3, 1, "claude", "m", 1, 1, "k")
    poison = wire.Audit(2, 1 << 70, "x", "y")  # a number SQLite cannot hold
    answers = book.all([(poison, A), (good, A)])
    assert isinstance(answers[0], wire.Failed) and isinstance(answers[1], wire.Granted)
    assert "Traceback" in capsys.readouterr().err


def test_a_file_changed_by_somebody_else_is_read_again(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    other = apsw.Connection(book.path)
    other.execute("UPDATE budgets SET tokens = 40")
    other.close()
    assert book.reserve(1, 100, 0, "a").tokens == 40
    book.store.close()
