"""How much a request holds, who waits, and what a budget can be overspent by at most: in the real book."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon import wire
from agentmon.ledger import admission
from agentmon.ledger.admission import GONE_NS, SLACK_PERMILLE
from agentmon.ledger.sizes import Learned
from agentmon.ledger.state import Now
from agentmon.ledger.store import LedgerTrouble, Store
from bench.admission import LOADS, ME, WALL, empty_book, play
from tests.support.ledger_book import Book
from tests.support.ledger_rig import budget as of
from tests.support.ledger_rig import scope, usage


@pytest.fixture
def book(tmp_path: Path) -> Any:
    book = Book(tmp_path)
    yield book
    book.store.close()


def learn(book: Book, output: int) -> None:
    """Sixty answers of this size, in a bottle of no budget."""
    book.open(9, bottle="school")
    for n in range(60):
        hold = book.reserve(9, 0, 1, f"l{n}")
        book.ask(wire.Settle, hold.hold, usage(0, output, f"l{n}"))


def later(book: Book, ns: int) -> None:
    book.now = Now(book.now.wall_ns, book.now.boot_ns + ns)


def test_who_waits_comes_before_who_settles_and_asks_again(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    first = book.reserve(1, 0, 60, "a")
    assert book.reserve(1, 0, 60, "b").waits
    book.ask(wire.Settle, first.hold, usage(0, 10, "r1"))
    assert book.reserve(1, 0, 60, "c").waits  # b was there first
    assert book.reserve(1, 0, 60, "b").tokens == 60


def test_a_waiter_that_is_gone_is_not_waited_for(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    first = book.reserve(1, 0, 60, "a")
    assert book.reserve(1, 0, 60, "b").waits
    book.ask(wire.Release, first.hold)
    later(book, GONE_NS)
    assert book.reserve(1, 0, 1, "c").waits
    later(book, 1)
    assert book.reserve(1, 0, 1, "c").tokens == 1


def test_a_waiter_for_one_pool_holds_up_nobody_outside_it(book: Book) -> None:
    pool = scope("parent", "base", of("claude", 100))
    book.open(1, scope("bottle", "b1"), pool)
    book.open(2, scope("bottle", "b2", of("claude", 100)), pool)
    book.reserve(1, 0, 60, "a")
    assert book.reserve(1, 0, 60, "b").waits
    assert book.reserve(2, 0, 60, "c").tokens == 60


def test_a_spent_budget_is_told_at_once_also_to_who_waits(book: Book) -> None:
    book.open(1, scope("bottle", "b1", of("claude", 100)))
    first = book.reserve(1, 0, 60, "a")
    assert book.reserve(1, 0, 60, "b").waits
    book.ask(wire.Progress, first.hold, usage(0, 100))
    assert not book.reserve(1, 0, 60, "b").waits  # in mid-stream
    book.ask(wire.Settle, first.hold, usage(0, 110, "r1"))
    assert not book.reserve(1, 0, 60, "b").waits and not book.reserve(1, 0, 1, "c").waits


def test_the_last_request_gets_what_is_left_in_all_its_budgets(book: Book) -> None:
    own, ceiling = scope("bottle", "b1", of("claude", 300)), scope("ceiling", "host", of("claude", 70, "day"))
    book.open(1, own, ceiling)
    assert book.reserve(1, 0, 500, "a").tokens == 70


def test_learned_sizes_are_held_instead_of_the_requests_bound(book: Book) -> None:
    learn(book, 100)
    book.open(1, scope("bottle", "b1", of("claude", 100_000)))
    granted = [book.reserve(1, 0, 50_001, f"k{n}") for n in range(3)]
    assert [g.tokens for g in granted[:2]] == [111, 111] and granted[2].waits
    assert book.reserve(1, 0, 50, "small").waits  # k2 stands before it
    assert book.line(1, "bottle")["held"] == 222
    book.open(2, scope("bottle", "b2", of("claude", 100_000)))
    assert book.reserve(2, 0, 50, "small").tokens == 50  # never more than the request allows


def test_one_that_may_overspend_alone_need_not_be_alone(book: Book) -> None:
    """Its full size is far above the slack, but what flies already cannot overspend."""
    learn(book, 100)
    book.open(1, scope("bottle", "b1", of("claude", 10_000)))
    assert [book.reserve(1, 0, 9_000, f"k{n}").tokens for n in range(2)] == [111, 111]  # at worst one is too much
    assert book.reserve(1, 0, 9_000, "third").waits


def test_a_bound_in_use_ends_the_exposure(book: Book) -> None:
    """What a stream has used already cannot be used by it once more."""
    learn(book, 100)
    book.open(1, scope("bottle", "b1", of("claude", 10_000)))
    one = book.reserve(1, 0, 10_500, "a")
    assert book.reserve(1, 0, 5_500, "b").waits
    book.ask(wire.Progress, one.hold, usage(0, 4_000))
    assert book.line(1, "bottle")["held"] == 4_000
    later(book, GONE_NS + 1)
    assert book.reserve(1, 0, 5_500, "c").waits
    book.ask(wire.Settle, one.hold, usage(0, 4_000, "r"))
    assert book.reserve(1, 0, 5_500, "c").tokens == 4_095  # one of 61 was that long


def test_what_was_learned_outlives_the_process(book: Book, tmp_path: Path) -> None:
    learn(book, 100)
    book.store.close()
    book.store = Store(book.path)
    book.open(1, scope("bottle", "b1", of("claude", 100_000)))
    assert book.reserve(1, 0, 50_000, "k").tokens == 111


def test_a_batch_that_fails_teaches_nothing(book: Book) -> None:
    book.open(1)
    holds = [book.reserve(1, 0, 5000, f"l{n}").hold for n in range(60)]
    book.store._alter = fail = mock.Mock(side_effect=apsw.FullError)
    with pytest.raises(LedgerTrouble):
        book.all([(wire.Settle(1, hold, usage(0, 10, f"l{hold}")), ME) for hold in holds])
    assert fail.called
    book.store._alter = None
    assert book.reserve(1, 0, 5000, "a").tokens == 5000


def test_the_file_keeps_as_many_models_as_the_memory(book: Book) -> None:
    book.open(1)
    for n in range(300):
        hold = book.ask(wire.Reserve, 1, "claude", f"made-up-{n}", 0, 1, f"k{n}")
        book.ask(wire.Settle, hold.hold, usage(0, 1, f"k{n}"))
    kept = [model for (model,) in book.reads("SELECT model FROM answer_sizes ORDER BY id")]
    assert kept == [f"made-up-{n}" for n in range(44, 300)]


def test_estimates_teach_nothing(book: Book) -> None:
    book.open(1)
    for n in range(60):
        hold = book.reserve(1, 0, 5000, f"l{n}")
        book.ask(wire.Settle, hold.hold, usage(0, 10, f"l{n}", source="estimate", complete=False))
    assert book.reserve(1, 0, 5000, "a").tokens == 5000


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 30)), min_size=1, max_size=40))
def test_a_learned_bound_is_exceeded_by_one_in_a_hundred_and_little_above_the_others(
    sizes: list[tuple[int, int]],
) -> None:
    learned = Learned()
    seen = sorted(size for size, times in sizes for _ in range(times))
    for size in seen:
        learned.add("claude", "m", size)
    likely = learned.likely("claude", "m", 1 << 50)
    if len(seen) < 50:
        assert likely == 1 << 50
    elif len(seen) < 1000:
        assert sum(size > likely for size in seen) <= len(seen) // 100
        assert likely <= seen[-1 - len(seen) // 100] * 5 // 4 + 1


def test_learned_bounds_fade_and_are_bounded_in_number() -> None:
    learned = Learned()
    for _ in range(5000):
        learned.add("claude", "m", 8000)
    for _ in range(8000):
        learned.add("claude", "m", 10)
    assert learned.likely("claude", "m", 1 << 20) < 12
    for n in range(10_000):
        learned.add("claude", f"made-up-{n}", 1)
    assert len(learned._models) == 256
    assert learned.likely("claude", "m", 77) == 77  # forgotten: the request's own


@settings(max_examples=60, deadline=None)
@given(
    st.integers(100, 2000),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 900), st.integers(0, 1000)), min_size=5, max_size=60),
)
def test_no_order_of_requests_overspends_by_more_than_slack_or_the_last_request(
    tokens: int, steps: list[tuple[int, int, int]]
) -> None:
    """Every answer is as long as its request allowed, after the ledger has learned that answers are short."""
    book = empty_book()
    book.begin(Now(WALL, 1))
    book.ask(wire.OpenRun(1, 1, "b", "r", "", (scope("bottle", "b", of("claude", tokens)),), {}), ME)
    for _ in range(60):
        book.learned.add("claude", "m", 5)
    flying: list[tuple[int, int]] = []
    used = largest = 0
    for n, (what, bound, pick) in enumerate(steps):
        book.begin(Now(WALL, n * (GONE_NS + 1)))
        if what or not flying:
            answer: Any = book.ask(wire.Reserve(1, 1, "claude", "m", 0, bound, f"k{n}"), ME)
            if isinstance(answer, wire.Granted):
                flying.append((answer.hold, bound))
                largest = max(largest, bound)
        else:
            hold, output = flying.pop(pick % len(flying))
            book.ask(wire.Settle(1, hold, wire.Usage("claude", "m", f"s{n}", output=output)), ME)
            used += output
    used += sum(bound for _, bound in flying)
    assert used <= tokens + max(tokens * SLACK_PERMILLE // 1000, largest)


@pytest.mark.parametrize("name", ["trickle", "tight", "hostile"])
def test_overspend_under_load(name: str) -> None:
    load = LOADS[name]
    for seed in range(3):
        seen = play(load, seed)
        last = load.input + min(load.bound, 8000 if name == "tight" else load.bound)
        assert seen.charged <= load.budget + max(load.budget * SLACK_PERMILLE // 1000, last)


def test_parallel_agents_with_an_ample_budget_never_wait() -> None:
    seen = play(LOADS["ample"], 1)
    assert (seen.refused, seen.granted, seen.most) == (0, 1000, 10)


def test_two_waiters_of_dead_pools_are_forgotten() -> None:
    queue = admission.Queue()
    assert queue.behind("a", (), 0) is None
    queue.note("a", 5, 0)  # admitted: nothing to keep
    assert queue.behind("b", (), 0) is None
