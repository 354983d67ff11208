"""Reports: what usage, budget show, audit and check say about a file with known rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from agentmon import errors, wire
from agentmon.ledger import report
from agentmon.ledger.reader import Reader
from agentmon.ledger.state import Now, Owner
from agentmon.ledger.store import LedgerTrouble, Store
from tests.support.ledger_rig import budget, scope

ME = Owner("boot", 1, 1)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Two bottles, one agent, two providers, three rows, one hold, one cut."""
    store = Store(str(tmp_path / "ledger.db"))

    def ask(message: Any) -> Any:
        return store.run([(message, ME)], Now(time.time_ns(), 1)).answers[0]

    team, ceiling = (
        scope("parent", "team", budget("*", 900, "day")),
        scope("ceiling", "host", budget("claude", 5000, "week")),
    )
    mine = scope("bottle", "b1", budget("claude", 500), budget("codex", 10, shadow=True))
    ask(wire.OpenRun(1, 1, "b1", "run1", "", (mine, team, ceiling), {}))
    ask(wire.OpenRun(1, 2, "b2", "run2", "rev", (scope("agent", "rev"), team), {"output": 2000}))
    for slot, provider, row in (
        (1, "claude", wire.Usage("claude", "opus", "m1", 100, cache_read=50, output=20, reasoning=5)),
        (1, "codex", wire.Usage("codex", "gpt", "m2", 10, cache_write_5m=3, cache_write_1h=4, output=1)),
        (2, "claude", wire.Usage("claude", "opus", "m3", 1, output=10, source="estimate", complete=False)),
    ):
        ask(wire.Settle(1, ask(wire.Reserve(1, slot, provider, "m", 1, 1, row.request_id)).hold, row))
    ask(wire.Reserve(1, 1, "claude", "m", 30, 10, "in flight"))
    ask(wire.Enforced(1, 1, "b1", "run1", "cutoff", "budget", "bottle:b1", 11_000_000, "cut"))
    ask(wire.Audit(1, 1000, "allow", "b1", {"rule": "example.com"}))
    store.close()
    return str(tmp_path / "ledger.db")


@pytest.mark.parametrize(
    ("by", "weighted"),
    [
        ("bottle", {"b1": 143, "b2": 21}),
        ("agent", {"": 143, "rev": 21}),
        ("provider", {"claude": 146, "codex": 18}),
        ("model", {"opus": 146, "gpt": 18}),
    ],
)
def test_usage_by(path: str, by: str, weighted: dict[str, int]) -> None:
    lines = report.usage(by, path=path)
    assert {line[by]: line["weighted"] for line in lines} == weighted


def test_usage_by_day_and_what_a_line_holds(path: str) -> None:
    (line,) = report.usage("day", path=path)
    assert line == {
        "day": time.strftime("%Y-%m-%d"), "zone": "/".join(dict.fromkeys(time.tzname)),
        "rows": 3, "requests": 3, "input": 111, "cache_read": 50, "cache_write": 7, "output": 31,
        "reasoning": 5, "weighted": 164, "estimated": 1, "incomplete": 1,
        "input_estimated": 2, "input_told": 167, "input_missed": 165,
    }  # fmt: skip
    assert report.usage("day", path=path, since_ns=time.time_ns()) == []
    assert report.usage("bottle", path=path, bottle="b2")[0]["requests"] == 1


def test_usage_of_a_run_and_rows(path: str) -> None:
    assert {p: line["input"] for p, line in report.run_usage("run1", path=path).items()} == {"claude": 100, "codex": 10}
    with Reader(path) as reader:
        rows = reader.rows(bottle="b1", limit=1)
    assert [(row["request_id"], row["complete"]) for row in rows] == [("m1", 1)]
    assert rows[0]["ts"].endswith("Z") and len(rows[0]["ts"]) == len("2026-01-01T00:00:00.000000000Z")


def test_unknown_grouping(path: str) -> None:
    with pytest.raises(errors.BadInput, match="colour"):
        report.usage("colour", path=path)


def test_budget_show_says_which_governs_and_why(path: str) -> None:
    lines = {(line["scope"], line["provider"]): line for line in report.budgets(path=path)}
    claude = lines["bottle", "claude"]
    assert (claude["used"], claude["held"], claude["remaining"], claude["governs"]) == (125, 40, 335, ["run1"])
    assert lines["ceiling", "claude"]["governs"] == ["run1"] and "ceiling" in lines["ceiling", "claude"]["why"]
    assert lines["parent", "*"]["used"] == 164
    assert lines["parent", "*"]["governs"] == ["run1", "run2"] and "nearest" in lines["parent", "*"]["why"]
    assert lines["bottle", "codex"]["governs"] == [] and "shadow" in lines["bottle", "codex"]["why"]


def test_a_budget_without_runs_governs_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "l.db"))
    store.run([(wire.SetBudget(1, "host", "host", "", budget("claude", 5, "month"), 0), ME)], Now(time.time_ns(), 1))
    store.close()
    (line,) = report.budgets(path=str(tmp_path / "l.db"))
    assert line["governs"] == [] and "no running bottle" in line["why"]


def test_a_shared_budget_per_run_has_a_line_per_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "l.db"))
    shared = scope("host", "host", budget("claude", 50, "run"))
    for slot in (1, 2):
        store.run([(wire.OpenRun(1, slot, f"b{slot}", f"run{slot}", "", (shared,), {}), ME)], Now(time.time_ns(), 1))
    store.close()
    assert [line["governs"] for line in report.budgets(path=str(tmp_path / "l.db"))] == [["run1"], ["run2"]]


def test_enforcement_and_audit(path: str) -> None:
    cut, shadow = sorted(report.enforcement(path=path), key=lambda line: line["policy"])
    assert (cut["by"], cut["latency_ns"], cut["result"], shadow["policy"]) == ("bottle:b1", 11_000_000, "cut", "shadow")
    assert report.enforcement(path=path, bottle="b2") == []
    assert [(line["uid"], line["action"]) for line in report.audit(path=path)] == [(1000, "allow")]


def test_check_finds_a_total_that_is_wrong(path: str) -> None:
    with Reader(path) as reader:
        assert reader.check() == []
    db = apsw.Connection(path)
    db.execute(
        "UPDATE totals SET used = 1 WHERE scope = 'bottle' AND name = 'b1' AND provider = 'claude' AND per = 'run'"
    )
    db.execute("DELETE FROM totals WHERE scope = 'bottle' AND name = 'b2' AND provider = 'claude' AND per = 'run'")
    db.close()
    with Reader(path) as reader:
        assert sorted(reader.check()) == [
            "total of bottle b1, claude, run run1 is 1, its rows say 125",
            "total of bottle b2, claude, run run2 is 0, its rows say 21",
        ]


def test_backup(path: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")
    with Reader(path) as reader:
        reader.backup(copy)
        with pytest.raises(LedgerTrouble):
            reader.backup(str(tmp_path / "none" / "copy.db"))
    assert report.usage(path=copy) == report.usage(path=path)


def test_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerTrouble, match="cannot be read") as caught:
        report.usage(path=str(tmp_path / "none.db"))
    assert caught.value.hint
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(LedgerTrouble, match="not a database"):
        report.usage(path=str(tmp_path / "text"))


def test_a_reader_never_writes(path: str) -> None:
    with Reader(path) as reader, pytest.raises(apsw.ReadOnlyError):
        reader._db.execute("DELETE FROM totals")
