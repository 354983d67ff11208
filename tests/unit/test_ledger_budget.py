"""Windows, weights, governing scopes, room and thresholds: pure arithmetic."""

from __future__ import annotations

import itertools
import re
import time
from datetime import UTC, datetime
from importlib import resources
from zoneinfo import ZoneInfo

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import wire
from agentmon.ledger import budget
from tests.support.ledger_rig import budget as of
from tests.support.ledger_rig import usage


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


def test_weights_are_per_mille_and_the_sum_is_floored() -> None:
    weights = budget.Weights.of({"output": 5000, "cache_read": 100})
    row = wire.Usage("claude", input=3, cache_read=19, cache_write_5m=2, cache_write_1h=1, output=2, reasoning=2)
    assert weights.weigh(row) == (3000 + 1900 + 3000 + 10000) // 1000
    assert budget.Weights.of({}).weigh(wire.Usage("claude", cache_read=9)) == 0


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 3000), st.integers(0, 3000))
def test_a_shrunk_estimate_weighs_no_more_than_the_hold(i: int, o: int, tokens: int, w_in: int, w_out: int) -> None:
    weights = budget.Weights.of({"input": w_in, "output": w_out})
    held = min(tokens, weights.hold(i, o))
    small_i, small_o = weights.shrink(i, o, held)
    assert 0 <= small_i <= i and 0 <= small_o <= o
    assert weights.weigh(wire.Usage("claude", input=small_i, output=small_o)) <= held


@pytest.mark.parametrize(
    ("at", "zone", "expected"),
    [
        ("2026-01-01T00:30", "UTC", ("2026-01-01T00:00Z", "2026-01-01", "2025-12-29", "2026-01")),
        ("2025-12-31T23:30", "Europe/Berlin", ("2025-12-31T23:00Z", "2026-01-01", "2025-12-29", "2026-01")),
        ("2026-07-05T20:10", "Asia/Kolkata", ("2026-07-05T19:30Z", "2026-07-06", "2026-07-06", "2026-07")),
        ("2026-10-25T00:10", "Europe/Berlin", ("2026-10-25T00:00Z", "2026-10-25", "2026-10-19", "2026-10")),
        ("2026-10-25T01:10", "Europe/Berlin", ("2026-10-25T01:00Z", "2026-10-25", "2026-10-19", "2026-10")),
    ],
)
def test_windows_in_the_zone(at: str, zone: str, expected: tuple[str, ...]) -> None:
    assert tuple(budget.windows(ns(at), ZoneInfo(zone)).values()) == expected


def test_a_repeated_local_hour_is_two_windows() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first, second = (budget.windows(ns(f"2026-10-25T0{h}:30"), berlin)["hour"] for h in (0, 1))
    assert first != second


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia"])
def test_the_view_computes_the_same_windows(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every half hour of days around a change of clocks, a month's and a year's end."""
    schema = resources.files("agentmon.ledger").joinpath("schema.sql").read_text()
    expression = re.search(r"CASE b\.per(.*?)END AS \"window\"", schema, re.DOTALL)
    assert expression is not None
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        db = apsw.Connection(":memory:")
        for day in ("2026-03-28", "2026-10-24", "2025-12-30", "2026-02-28"):
            for step in range(0, 3 * 48):
                at = ns(f"{day}T00:07") + step * 1800 * 10**9
                stamp = f"'{datetime.fromtimestamp(at // 10**9, UTC):%Y-%m-%d %H:%M:%S}'"
                case = expression[1].replace("'now'", stamp)
                for per, key in budget.windows(at).items():
                    assert db.execute(f"SELECT CASE ? {case} END", (per,)).get == key, (per, stamp)
    finally:
        monkeypatch.undo()
        time.tzset()


SHAPES: list[tuple[wire.BudgetDef, ...]] = [
    (),
    (of("claude", 1),),
    (of("*", 2),),
    (of("codex", 3),),
    (of("claude", 4), of("*", 5)),
    (of("claude", 6, shadow=True),),
]


def test_governing_for_all_combinations() -> None:
    """The nearest scope with a real budget for claude or "*", and each ceiling; written here as a search outwards."""
    for shapes in itertools.product(SHAPES, repeat=5):
        scopes = [(scope, "x", shape) for scope, shape in zip(budget.SCOPES, shapes, strict=True)]
        real = [[b for b in shape if b.provider in ("claude", "*") and not b.shadow] for shape in shapes]
        inner = next((i for i in range(4) if real[i]), None)
        expected = [] if inner is None else [(budget.SCOPES[inner], "x", b) for b in real[inner]]
        expected += [("ceiling", "x", b) for b in real[4]]
        assert budget.governing(scopes, "claude") == expected


@pytest.mark.parametrize(
    ("tokens", "before", "after", "reached"),
    [
        (1000, 0, 799, 0), (1000, 0, 800, 80), (1000, 799, 949, 90), (1000, 0, 999, 99), (1000, 950, 989, 0),
        (1000, 999, 1000, 100), (1000, 0, 5000, 100), (1000, 1000, 2000, 0), (0, 0, 1, 100), (0, 0, 0, 0),
        (1000, 900, 850, 0), (1, 0, 1, 100),
    ],
)  # fmt: skip
def test_thresholds(tokens: int, before: int, after: int, reached: int) -> None:
    assert budget.threshold(tokens, before, after) == reached


def test_room_is_never_negative() -> None:
    assert budget.room(10, 3, 4) == 3
    assert budget.room(10, 30, 4) == 0


@pytest.mark.parametrize(
    "wrong", [of("claude", 1, "year"), of("claude", -1), of("claude", 1 << 62), of("", 1), of("x" * 65, 1)]
)
def test_what_is_no_budget(wrong: wire.BudgetDef) -> None:
    assert budget.problem(wrong)
    assert not budget.problem(of("*", 0, "week"))


def test_usage_of_the_rig_is_a_usage() -> None:
    assert usage(1, 2, "r").output == 2
