"""`agentmon usage`: exact sums, whose days, how much of it is estimated; the same as a table, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentmon import wire
from agentmon.ledger.book import Sweep
from agentmon.ledger.state import Now
from tests.support.ledger_book import Book
from tests.support.ledger_rig import ROOT, START, A


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six requests around a midnight of Berlin, one of them estimated and never told, one told in part."""
    root = tmp_path_factory.mktemp("root")
    place = root / "var/lib/agentmon/ledger"
    place.mkdir(parents=True)
    book = Book(place)
    book.open(1)
    for n, at in enumerate(("2026-03-28T22:30", "2026-03-28T22:45", "2026-03-28T23:30", "2026-03-29T21:30",
                            "2026-03-29T22:30", "2026-03-30T10:00")):  # fmt: skip
        book.now = Now(ns(at), START.boot_ns + n)
        hold = book.reserve(1, 7, 3, f"k{n}")
        if n == 1:
            book.all([(Sweep(frozenset({A})), A)])
        else:
            row = wire.Usage("claude", "opus", f"r{n}", 10**n, output=1, complete=n != 2)
            book.ask(wire.Settle, hold.hold, row)
    book.store.close()
    return root


def usage(root: Path, *args: str) -> tuple[str, str]:
    environment = {**os.environ, "AGENTMON_ROOT": str(root), "PYTHONPATH": str(ROOT), "TZ": "Europe/Berlin"}
    argv = [sys.executable, "-m", "agentmon.cli", "usage", *args]
    done = subprocess.run(argv, capture_output=True, env=environment, check=True)
    return done.stdout.decode(), done.stderr.decode()


def test_days_are_the_hosts_and_shares_are_shown(root: Path) -> None:
    out, err = usage(root, "--by", "day")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][-4:] == ["WEIGHTED", "ESTIMATED", "INCOMPLETE", "ESTIMATE"]
    assert [(line[0], line[1], *line[6:]) for line in lines[1:]] == [
        ("2026-03-28", "2", "12", "50%", "50%", "+600%", "±600%"),  # 7 for 1
        ("2026-03-29", "2", "1,102", "-", "50%", "-99%", "±99%"),  # 7 for 1000
        ("2026-03-30", "2", "110,002", "-", "-", "-100%", "±100%"),
        ("all", "6", "111,116", "17%", "33%", "-100%", "±100%"),
    ]
    assert err == "note: days of this host's time zone (CET/CEST)\n"


def test_csv_and_json_say_the_same(root: Path) -> None:
    objects = [json.loads(line) for line in usage(root, "--by", "day", "--json")[0].splitlines()]
    assert [(o["day"], o["weighted"], o["zone"], o["rows"]) for o in objects] == [
        ("2026-03-28", 12, "CET/CEST", 2), ("2026-03-29", 1102, "CET/CEST", 2), ("2026-03-30", 110002, "CET/CEST", 2),
    ]  # fmt: skip
    out, err = usage(root, "--by", "day", "--csv")
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert err == "" and rows == [{key: str(o[key]) for key in rows[0]} for o in objects]
    assert {"zone", "estimated", "incomplete", "input_estimated", "input_told", "input_missed"} <= rows[0].keys()


def test_since_in_a_day_that_is_kept_as_a_sum_counts_all_of_it_and_says_so(root: Path) -> None:
    since = ("--since", "2026-03-29T12:00:00Z", "--by", "model")
    out, err = usage(root, *since, "--json")
    assert json.loads(out)["weighted"] == 1001 + 110002 and err == ""
    book = Book(root / "var/lib/agentmon/ledger")
    code = f"from agentmon.ledger.store import Store; print(Store({book.path!r}).fold({ns('2026-03-29T22:00')}))"
    environment = {**os.environ, "TZ": "Europe/Berlin"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"
    out, err = usage(root, *since, "--json")
    assert json.loads(out)["weighted"] == 1102 + 110002
    assert "usage of 2026-03-29 is kept as the sum of the day" in err and "before 2026-03-29T12:00:00Z" in err
    assert json.loads(usage(root, "--since", "2026-03-29T22:10:00Z", "--json")[0])["weighted"] == 110002
