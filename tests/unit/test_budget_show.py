"""`budget show` of a bottle: which of its budgets decide, in words; thresholds and shadow budgets as they are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon import wire
from agentmon.policy import manifest, settings
from agentmon.policy.merge import Options, effective
from agentmon.providers.declaration import Provider
from agentmon.render.budgets import budgets_table
from tests.support.ledger_book import Book
from tests.support.ledger_rig import budget as of
from tests.support.ledger_rig import scope, usage

SCOPES = ["agent", "bottle", "parent", "host", "ceiling"]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    book = Book(tmp_path)
    yield book
    book.store.close()


def at(where: str, *budgets: wire.BudgetDef) -> wire.ScopeDef:
    return scope(where, {"bottle": "b1", "host": "host"}.get(where, "n"), *budgets)


def test_each_line_says_whether_it_decides_and_why(book: Book) -> None:
    book.open(
        1,
        at("agent", of("claude", 10), of("codex", 9, shadow=True)),
        at("parent", of("*", 20)),
        at("host", of("claude", 30), of("gemini", 31)),
        at("ceiling", of("*", 40)),
    )
    book.spend(1, 1, "r", "mistral")
    lines = book.ask(wire.Totals, 1).value
    why = {(line["scope"], line["provider"]): line["why"] for line in lines}
    assert why == {
        ("agent", "claude"): "governs: the nearest scope with a budget for claude",
        ("agent", "codex"): "a shadow budget: recorded, never cuts",
        ("parent", "*"): "governs: the nearest scope with a budget for *; but claude has agent n",
        ("host", "claude"): "does not govern: agent n is nearer and has a budget for claude",
        ("host", "gemini"): "does not govern: parent n is nearer and has a budget for gemini",
        ("ceiling", "*"): "a ceiling: checked whatever narrower scope governs",
        ("bottle", "mistral"): "used; this bottle has no budget of its own for mistral",
    }
    assert [line["governs"] for line in lines] == [w.startswith(("governs", "a ceil")) for w in why.values()]
    assert all(line["why"] in budgets_table(lines) for line in lines)


@pytest.mark.parametrize("where", SCOPES)
def test_each_threshold_is_told_once_a_window_at_every_scope(where: str, book: Book) -> None:
    book.open(1, at(where, of("claude", 1000, "day")))
    for level in (799, 800, 801, 899, 900, 949, 950, 989, 990, 999, 1000):
        book.spend(1, level - book.line(1, where)["used"], f"to {level}")
    assert [(c.threshold, c.scope, c.slots) for c in book.crossed] == [
        (t, where, (1,)) for t in (80, 90, 95, 99, 100)
    ]  # fmt: skip
    book.crossed.clear()
    later = book.now.wall_ns + 86400 * 10**9
    book.now = type(book.now)(later, book.now.boot_ns)
    book.spend(1, 850, "next day")
    assert [c.threshold for c in book.crossed] == [80]


def test_a_threshold_passed_in_mid_stream_is_not_told_again_at_its_settlement(book: Book) -> None:
    book.open(1, at("bottle", of("claude", 1000)))
    hold = book.reserve(1, 0, 900, "a")
    for output in (700, 810, 820, 960):
        book.ask(wire.Progress, hold.hold, usage(0, output))
    book.ask(wire.Settle, hold.hold, usage(0, 960, "r"))
    assert [c.threshold for c in book.crossed] == [80, 95]


@pytest.mark.parametrize("where", SCOPES)
def test_a_shadow_budget_records_at_every_scope_and_refuses_nothing(where: str, book: Book) -> None:
    book.open(1, at(where, of("claude", 100, shadow=True)))
    book.spend(1, 85, "a")
    book.spend(1, 85, "b")
    book.spend(1, 85, "c")
    assert [(c.threshold, c.slots, c.shadow) for c in book.crossed] == [(80, (), (1,)), (100, (), (1,))]
    name = at(where).name
    assert book.reads("""SELECT bottle, policy, "by", result FROM enforcement_v""") == [
        ("b1", "shadow", f"{where}:{name}", "would have been cut")
    ]
    assert isinstance(book.reserve(1, 0, 1 << 30, "d"), wire.Granted)


def test_observe_changes_no_budget() -> None:
    """It relaxes the allowlist only: what the ledger is told is the same, to the last budget."""
    known = {"claude": Provider("claude", hosts=("api.claude.example",), endpoints=())}
    host = settings.parse("budget: {claude: 400}\nceiling: {'*': 900}\nshutdown: kill", "s.yml")
    own = manifest.parse("budget: {claude: 300}\nagents: {rev: {budget: {claude: 20}}}", "/m/web.yml", trusted=True)
    asked = {"name": "b", "agent": "rev", "budgets": ("claude=50",)}
    plain, observed = (effective(host, (own,), Options(**asked, observe=o), known) for o in (False, True))
    assert (plain.observe, observed.observe) == (False, True)
    assert plain.scopes == observed.scopes != () and plain.shutdown == observed.shutdown == "kill"
