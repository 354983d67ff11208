"""The store against a model that recounts everything from scratch."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentmon import wire
from agentmon.ledger import admission, budget
from agentmon.ledger.book import Sweep
from agentmon.ledger.state import Now, Owner
from tests.support.ledger_book import Book
from tests.support.ledger_rig import HOUR_NS, START, A, B, scope, usage
from tests.support.ledger_rig import budget as of

W = budget.Weights.of({})

HOST = scope("host", "host", of("codex", 500, "hour"))  # what runs share is the same in each of them
POOL = scope("parent", "p", of("*", 900, "day"))
RUNS = {  # slot → scopes
    1: (scope("agent", "r", of("claude", 300)), scope("bottle", "b1"), POOL, HOST),
    2: (scope("bottle", "b2"), POOL, HOST),
    3: (scope("bottle", "b3"), HOST, scope("ceiling", "host", of("*", 2000, "month"))),
}


def opening(slot: int, serial: int = 0) -> wire.OpenRun:
    return wire.OpenRun(1, slot, f"b{slot}", f"run{slot}.{serial}", "", RUNS[slot], {})


@dataclass
class ModelRow:
    slot: int
    run: str
    provider: str
    weighted: int
    windows: dict[str, str]


@dataclass
class ModelHold:
    slot: int
    run: str
    provider: str
    tokens: int
    input: int
    output: int
    owner: Owner
    expires: int
    seen: wire.Usage | None = None

    @property
    def progress(self) -> int:
        return W.weigh(self.seen) if self.seen else 0


@dataclass
class Model:
    """Lists, and sums over them."""

    rows: list[ModelRow] = field(default_factory=list)
    holds: dict[int, ModelHold] = field(default_factory=dict)
    requests: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    open: dict[int, str] = field(default_factory=dict)

    def in_scope(self, slot: int, wanted: tuple[str, str]) -> bool:
        names = {(d.scope, d.name) for d in RUNS[slot]} | {("bottle", f"b{slot}"), ("host", "host")}
        return wanted in names

    def used(self, at: tuple[str, str], b: wire.BudgetDef, run: str, windows: dict[str, str]) -> int:
        return sum(
            row.weighted
            for row in self.rows
            if self.in_scope(row.slot, at)
            and b.provider in ("*", row.provider)
            and (row.run == run if b.per == "run" else row.windows[b.per] == windows[b.per])
        )

    def held(self, at: tuple[str, str], b: wire.BudgetDef, run: str) -> int:
        return sum(
            max(hold.tokens, hold.progress)
            for hold in self.holds.values()
            if self.in_scope(hold.slot, at)
            and b.provider in ("*", hold.provider)
            and (b.per != "run" or hold.run == run)
        )

    def governing(self, slot: int, provider: str) -> list[tuple[str, str, wire.BudgetDef]]:
        return budget.governing([(d.scope, d.name, d.budgets) for d in RUNS[slot]], provider)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of calls, closings, deaths, hours and restarts leaves the file equal to the model."""

    def __init__(self, url: str = "", hosts: int = 1) -> None:
        """:param url: of a PostgreSQL database; "" for a file. :param hosts: each has some of the slots."""
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.books = []
        for number in range(hosts):
            place = Path(self.directory.name, str(number))
            place.mkdir()
            self.books.append(Book(place, url))
        self.host_of: dict[int, Book] = {}  # by hold
        self.model = Model()
        self.now = START
        self.serial = 0
        self.settled: list[tuple[int, wire.Usage]] = []

    def teardown(self) -> None:
        for book in self.books:
            book.store.close()
        assert self.books[0].problems() == []
        self.directory.cleanup()

    def ask(self, message: Any, owner: Owner = A) -> Any:
        hold = getattr(message, "hold", 0)
        host = self.host_of[hold] if hold else self.books[message.slot % len(self.books)]
        answer = host.store.run([(message, owner)], self.now).answers[0]
        if isinstance(answer, wire.Granted):
            self.host_of[answer.hold] = host
        return answer

    @property
    def windows(self) -> dict[str, str]:
        return budget.windows(self.now.wall_ns)

    @initialize()
    def start(self) -> None:
        for slot in RUNS:
            self.model.open[slot] = opening(slot).run
            assert isinstance(self.ask(opening(slot)), wire.Done)

    @rule(
        slot=st.sampled_from([1, 2, 3]),
        provider=st.sampled_from(["claude", "codex"]),
        input=st.integers(0, 90),
        output=st.integers(0, 200),
        owner=st.sampled_from([A, B]),
    )
    def reserve(self, slot: int, provider: str, input: int, output: int, owner: Owner) -> None:
        self.serial += 1
        self.now = replace(self.now, boot_ns=self.now.boot_ns + admission.GONE_NS + 1)  # nobody stands before it
        answer = self.ask(wire.Reserve(1, slot, provider, "m", input, output, f"k{self.serial}"), owner)
        run = self.model.open[slot]
        full = want = W.hold(input, output)
        spent = held_by_others = False
        for where, name, b in self.model.governing(slot, provider):
            used, held = self.model.used((where, name), b, run, self.windows), self.model.held((where, name), b, run)
            spent = spent or self._level((where, name), b, run) >= b.tokens
            held_by_others = held_by_others or (held > 0 and b.tokens - used - held < full)
            want = min(want, max(0, b.tokens - used - held))
        if spent or held_by_others:
            assert isinstance(answer, wire.Denied) and answer.waits == (not spent)
            b = of(answer.provider, answer.tokens, answer.per)
            assert answer.used == self.model.used((answer.scope, answer.name), b, run, self.windows)
            assert answer.held == self.model.held((answer.scope, answer.name), b, run)
        else:
            assert isinstance(answer, wire.Granted) and answer.tokens == want
            i, o = W.shrink(input, output, want)
            self.model.holds[answer.hold] = ModelHold(
                slot, run, provider, want, i, o, owner, self.now.boot_ns + HOUR_NS
            )

    def _row(self, hold: ModelHold, weighted: int) -> None:
        self.model.rows.append(ModelRow(hold.slot, hold.run, hold.provider, weighted, self.windows))

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), input=st.integers(0, 150), output=st.integers(0, 300), named=st.booleans())
    def settle(self, data: Any, input: int, output: int, named: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.model.holds)))
        hold = self.model.holds.pop(id)
        request = f"req{data.draw(st.integers(0, 12))}" if named else ""
        row = usage(input, output, request, provider=hold.provider)
        answer = self.ask(wire.Settle(1, id, row))
        known = self.model.requests.get((hold.provider, request)) if request else None
        assert answer.duplicate == (known == (input, output))
        if answer.duplicate:
            return
        if request:
            self.model.requests.setdefault((hold.provider, request), (input, output))
        self._row(hold, W.weigh(row))
        self.settled.append((id, row))
        run = self.model.open[hold.slot]
        assert answer.crossed == any(
            self._level((s, n), b, run) >= b.tokens for s, n, b in self.model.governing(hold.slot, hold.provider)
        )

    def _level(self, at: tuple[str, str], b: wire.BudgetDef, run: str) -> int:
        flowing = sum(
            h.progress
            for h in self.model.holds.values()
            if self.model.in_scope(h.slot, at) and b.provider in ("*", h.provider) and (b.per != "run" or h.run == run)
        )
        return self.model.used(at, b, run, self.windows) + flowing

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def replay(self, data: Any) -> None:
        id, row = data.draw(st.sampled_from(self.settled))
        assert self.ask(wire.Settle(1, id, row)).duplicate

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), input=st.integers(0, 150), output=st.integers(0, 300))
    def progress(self, data: Any, input: int, output: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.model.holds)))
        hold = self.model.holds[id]
        hold.seen = usage(input, output, provider=hold.provider)
        hold.expires = self.now.boot_ns + HOUR_NS
        spent = self.ask(wire.Progress(1, id, hold.seen)).value
        run = self.model.open[hold.slot]
        assert spent == any(
            self._level((s, n), b, run) >= b.tokens for s, n, b in self.model.governing(hold.slot, hold.provider)
        )

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.model.holds)))
        del self.model.holds[id]
        for _ in range(2):
            assert isinstance(self.ask(wire.Release(1, id)), wire.Done)
        assert self.ask(wire.Settle(1, id, usage(1))).error == "BadInput"

    def _estimate(self, id: int) -> None:
        hold = self.model.holds.pop(id)
        seen = hold.seen or usage()
        self._row(hold, W.weigh(usage(seen.input or hold.input, max(seen.output, hold.output))))

    @rule(dead=st.sampled_from([A, B]))
    def die(self, dead: Owner) -> None:
        for book in self.books:
            book.store.run([(Sweep(frozenset({dead})), A)], self.now)
        for id in [i for i, h in self.model.holds.items() if h.owner == dead or h.expires <= self.now.boot_ns]:
            self._estimate(id)

    @rule(slot=st.sampled_from([1, 2, 3]), closed=st.booleans())
    def next_run(self, slot: int, closed: bool) -> None:
        """The slot's next run; without a CloseRun (a daemon that crashed) the old one is closed by it."""
        for id in [i for i, h in self.model.holds.items() if h.slot == slot]:
            self._estimate(id)
        if closed:
            assert isinstance(self.ask(wire.CloseRun(1, slot, self.model.open[slot])), wire.Done)
        self.serial += 1
        message = opening(slot, self.serial)
        self.model.open[slot] = message.run
        assert isinstance(self.ask(message), wire.Done)

    @rule(hours=st.sampled_from([1, 7, 30, -2]))
    def clock(self, hours: int) -> None:
        """Time passes, or an operator sets the clock back."""
        boot = self.now.boot_ns + max(hours, 0) * 60 * 10**9
        self.now = Now(self.now.wall_ns + hours * HOUR_NS, boot)

    @rule()
    def restart(self) -> None:
        """Another process takes over the file. What streams had reported is gone until they report again."""
        for book in self.books:
            book.store.close()
            book.store = book.another()
        for hold in self.model.holds.values():
            hold.seen = None
        self.ask(wire.Totals(1, 1))
        for id, hold in self.model.holds.items():  # a renewed expiry is not durable either: renew them all
            hold.expires = self.now.boot_ns + HOUR_NS
            self.ask(wire.Progress(1, id, usage(provider=hold.provider)))

    @invariant()
    def totals_are_the_sums(self) -> None:
        for slot, run in self.model.open.items():
            for line in self.ask(wire.Totals(1, slot)).value:
                b = of(line["provider"], line["tokens"] or 0, line["per"])
                at = (line["scope"], line["name"])
                assert line["used"] == self.model.used(at, b, run, self.windows), line
                assert line["held"] == self.model.held(at, b, run), line


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_ledger_that_hosts_share(postgres: Any) -> None:
    """The same in a database: every order of what two hosts do leaves both with the figures of the model."""
    few = settings(max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: LedgerMachine(postgres.new(), hosts=2), settings=few)  # type: ignore[no-untyped-call]
