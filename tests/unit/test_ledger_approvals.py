"""Proposals and decisions in the ledger: once, append-only, withdrawn with the run."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from agentmon import wire
from tests.support.ledger_book import Book

ASKED = ("b1", "run1", "secret", "x.example", "POST", "/v1", "github-pat", "body", "token: ***")


@pytest.fixture
def book(tmp_path: Path) -> Book:
    made = Book(tmp_path)
    made.open(1)
    return made


def states(book: Book) -> list[tuple[int, str, str]]:
    return book.reads("SELECT id, state, reason FROM approvals_v ORDER BY id")


def test_a_proposal_is_decided_once(book: Book) -> None:
    assert [book.ask(wire.Proposed, *ASKED).value for _ in range(2)] == [1, 2]
    assert isinstance(book.ask(wire.Decide, 1, "approved", 1000, "our own test key"), wire.Done)
    again = book.ask(wire.Decide, 1, "rejected", 0, "no")
    assert isinstance(again, wire.Failed) and "is approved already" in again.message
    unknown = book.ask(wire.Decide, 9, "approved", 0, "yes")
    assert isinstance(unknown, wire.Failed) and "no proposal 9" in unknown.message
    odd = book.ask(wire.Decide, 2, "waiting", 0, "yes")
    assert isinstance(odd, wire.Failed) and odd.error == "BadInput"
    assert states(book) == [(1, "approved", "our own test key"), (2, "waiting", "")]


def test_both_decisions_of_one_batch_are_not_taken(book: Book) -> None:
    answers = book.all(
        [(m, book_owner()) for m in (wire.Proposed(1, *ASKED), wire.Decide(2, 1, "rejected", 0, "no"),
                                     wire.Decide(3, 1, "approved", 0, "yes"), wire.CloseRun(4, 1, "run1"))]
    )  # fmt: skip
    assert [type(answer).__name__ for answer in answers] == ["Done", "Done", "Failed", "Done"]
    assert states(book) == [(1, "rejected", "no")]


def book_owner():
    from tests.support.ledger_rig import A

    return A


def test_what_waits_is_withdrawn_with_its_run_and_by_the_next_daemon(book: Book) -> None:
    book.open(2)
    for run in ("run1", "run2"):
        book.ask(wire.Proposed, ASKED[0], run, *ASKED[2:])
    book.ask(wire.Undecided, "run2", "the daemon was restarted")
    book.ask(wire.CloseRun, 1, "run1")
    assert states(book) == [
        (1, "withdrawn", "the bottle has ended"), (2, "withdrawn", "the daemon was restarted")
    ]  # fmt: skip
    assert book.ask(wire.Proposed, *ASKED).value == 3  # numbers go on


def test_numbers_go_on_in_the_next_process(book: Book, tmp_path: Path) -> None:
    book.ask(wire.Proposed, *ASKED)
    book.store.close()
    assert Book(tmp_path).ask(wire.Proposed, *ASKED).value == 2


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE approvals SET host = 'y'", "DELETE FROM approvals", "UPDATE decisions SET state = 'approved'",
        "DELETE FROM decisions", "INSERT OR REPLACE INTO decisions VALUES (1, 1, 'approved', 0, '')",
        "INSERT OR REPLACE INTO approvals SELECT id, 1, 'b', 'r', 'k', 'h', 'm', 'p', 'd', 'w', 'c' FROM approvals",
    ],
)  # fmt: skip
def test_neither_table_can_be_rewritten(book: Book, sql: str) -> None:
    book.ask(wire.Proposed, *ASKED)
    book.ask(wire.Decide, 1, "rejected", 0, "no")
    book.store.close()
    with apsw.Connection(book.path) as db, pytest.raises(apsw.ConstraintError, match="append-only"):
        db.execute(sql)
    assert states(book) == [(1, "rejected", "no")]


def test_a_worker_may_not_decide() -> None:
    from agentmon.ledger.server import Role

    assert not {wire.Proposed, wire.Decide, wire.Undecided} & set(Role.PROXY.may_ask)
