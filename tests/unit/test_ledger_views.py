"""The SQL interface: every column that is promised, with what it means."""

from __future__ import annotations

import re
from pathlib import Path

import apsw
import pytest

from agentmon import wire
from tests.support.ledger_book import Book
from tests.support.ledger_rig import budget as of
from tests.support.ledger_rig import scope

DOCUMENT = Path(__file__).parents[2] / "docs/ledger.md"
PROMISED = {
    "usage_v": {
        "bottle": "b1", "agent": "", "provider": "claude", "model": "opus", "request_id": "r", "input": 100,
        "cache_read": 50, "cache_write": 7, "output": 20, "reasoning": 5, "weighted": 132, "source": "wire",
        "complete": 1,
    },
    "budget_v": {
        "scope": "bottle", "name": "b1", "provider": "claude", "per": "run", "tokens": 500, "used": 132, "held": 40,
        "remaining": 328,
    },
    "enforcement_v": {
        "bottle": "b1", "policy": "cutoff", "trigger": "budget", "by": "bottle:b1", "latency_ns": 11, "result": "cut",
    },
    "approvals_v": {
        "id": 1, "bottle": "b1", "kind": "secret", "subject": "POST x.example", "state": "approved", "uid": 0,
        "reason": "looked at", "host": "x.example", "method": "POST", "path": "/v1", "detector": "github-pat",
        "place": "body", "context": "token: ***", "run": "run1",
    },
    "audit_v": {"uid": 1000, "action": "allow", "target": "b1", "detail": '{"rule": "x.example"}'},
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    book = Book(tmp_path_factory.mktemp("views"))
    book.open(1, scope("bottle", "b1", of("claude", 500)))
    row = wire.Usage(
        "claude", "opus", "r", 100, cache_read=50, cache_write_5m=3, cache_write_1h=4, output=20, reasoning=5
    )
    book.ask(wire.Settle, book.reserve(1, 1, 1, "k").hold, row)
    book.reserve(1, 30, 10, "in flight")
    book.ask(wire.Enforced, 1, "b1", "run1", "cutoff", "budget", "bottle:b1", 11, "cut")
    book.ask(wire.Audit, 1000, "allow", "b1", {"rule": "x.example"})
    asked = ("b1", "run1", "secret", "x.example", "POST", "/v1", "github-pat", "body", "token: ***")
    assert book.ask(wire.Proposed, *asked).value == 1
    book.ask(wire.Decide, 1, "approved", 0, "looked at")
    book.store.close()
    return book.path


@pytest.mark.parametrize("view", PROMISED)
def test_a_view_has_what_is_promised(path: str, view: str) -> None:
    promised = PROMISED[view]
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    columns = ", ".join(f'"{name}"' for name in promised)
    (row,) = db.execute(f"SELECT {columns} FROM {view}").fetchall()
    assert dict(zip(promised, row, strict=True)) == promised
    if view != "budget_v":
        time = db.execute(f"SELECT ts FROM {view}").get
        assert len(time) == len("2026-01-01T00:00:00.000000000Z") and time.endswith("Z")
    db.close()


def test_the_documented_columns_and_queries_are_true(path: str) -> None:
    text = DOCUMENT.read_text()
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    views = re.findall(r"^\| `(\w+_v)` \| .* \| (.*) \|$", text, re.MULTILINE)
    made = db.execute("SELECT name FROM sqlite_schema WHERE type = 'view'")
    assert {name for name, _ in views} == {name for (name,) in made}
    for view, told in views:
        columns = {str(row[1]) for row in db.execute(f"PRAGMA table_info({view})")}
        named = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", told))) - {"usage_counts_v"}
        assert named <= columns, (view, named - columns)
        if "as `usage_counts_v`" not in told and "the counts" not in told:
            assert named == columns, (view, columns - named)
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(queries) == 2
    for query in queries:
        db.execute(query).fetchall()
    db.close()
