"""Windows over changes of clocks, ends of months, leap days, and clocks that are set: each row counts in its own."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon import wire
from agentmon.ledger import budget
from agentmon.ledger.reader import Reader
from agentmon.ledger.state import Now
from tests.support.ledger_book import Book
from tests.support.ledger_rig import HOUR_NS, START, scope
from tests.support.ledger_rig import budget as of

SECOND_NS = 10**9
# whole, half and quarter hours; clocks changed at midnight, by half an hour, never; both hemispheres
ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu",
         "Pacific/Auckland", "America/Santiago", "Asia/Beirut")  # fmt: skip
MOMENTS = st.integers(
    int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
)


def local(day: date, zone: ZoneInfo, fold: int) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=zone, fold=fold).timestamp()


@given(MOMENTS, st.sampled_from(ZONES))
@settings(max_examples=400)
def test_a_moment_lies_in_the_windows_it_is_counted_in(moment: int, name: str) -> None:
    """Windows are cut here from their names, by local midnights."""
    zone = ZoneInfo(name)
    keys = budget.windows(moment * SECOND_NS, zone)
    day, week = date.fromisoformat(keys["day"]), date.fromisoformat(keys["week"])
    month = date.fromisoformat(keys["month"] + "-01")
    spans = [
        (day, day + timedelta(days=1)),
        (week, week + timedelta(days=7)),
        (month, (month + timedelta(days=31)).replace(day=1)),
    ]
    for first, end in spans:
        assert local(first, zone, 0) <= moment < local(end, zone, 1)
    assert week.weekday() == 0 and keys["day"].startswith(keys["month"])
    hour = datetime.fromisoformat(keys["hour"].replace("Z", "+00:00"))
    assert 0 <= moment - hour.timestamp() < 3600


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23), ("Europe/Berlin", "2026-10-25", 25), ("Europe/Berlin", "2028-02-29", 24),
        ("America/Havana", "2026-03-08", 23), ("America/Havana", "2026-11-01", 25),
        ("Asia/Kathmandu", "2026-03-29", 24),
    ],
)  # fmt: skip
def test_a_day_has_as_many_hours_as_it_has(zone: str, day: str, hours: int) -> None:
    first = date.fromisoformat(day)
    begin, end = (int(local(at, ZoneInfo(zone), fold)) for at, fold in ((first, 0), (first + timedelta(days=1), 1)))
    seen = [budget.windows(moment * SECOND_NS, ZoneInfo(zone)) for moment in range(begin - 60, end + 60, 60)]
    inside = [keys for keys in seen if keys["day"] == day]
    assert end - begin == hours * 3600 and len(inside) == hours * 60
    assert set(Counter(keys["hour"] for keys in inside).values()) == {60} and seen[0]["day"] != day != seen[-1]["day"]


@contextlib.contextmanager
def host_zone(name: str) -> Iterator[None]:
    was = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if was is not None:
            os.environ["TZ"] = was
        time.tzset()


STEPS = st.one_of(
    st.sampled_from([1, 59, 3600, 86400, 7 * 86400, 31 * 86400]),
    st.integers(-40 * 86400, 40 * 86400),  # somebody sets the clock
)


@given(
    zone=st.sampled_from(ZONES),
    began=st.one_of(
        MOMENTS,
        st.sampled_from(
            ["2026-03-29T00:59:58", "2026-10-25T00:59:58", "2026-11-01T04:59:58", "2028-02-28T23:59:58"]
        ).map(lambda text: int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())),
    ),
    moves=st.lists(
        st.tuples(STEPS, st.integers(1, 50), st.sampled_from(["claude", "codex"]), st.booleans()), max_size=20
    ),
)
@settings(max_examples=30, deadline=None)
def test_totals_are_the_rows_of_their_window_wherever_the_clock_goes(
    zone: str, began: int, moves: list[tuple[int, int, str, bool]]
) -> None:
    """Also after a restart, and in a batch that begins before the window's end."""
    with host_zone(zone), tempfile.TemporaryDirectory() as directory:
        book = Book(Path(directory))
        book.now = Now(began * SECOND_NS, START.boot_ns)
        book.open(1, scope("host", "host", *(of("*", 1 << 40, per) for per in budget.PERIODS[1:])))
        for n, (step, tokens, provider, restart) in enumerate(moves):
            book.spend(1, tokens, f"r{n}", provider)
            book.now = Now(max(0, book.now.wall_ns + step * SECOND_NS), book.now.boot_ns + max(0, step) * SECOND_NS)
            if restart:
                book.store.close()
        expected: Counter[tuple[str, str]] = Counter()
        for ts_ns, weighted in book.reads("SELECT ts_ns, weighted FROM usage"):
            for key in budget.windows(ts_ns, ZoneInfo(zone)).items():
                expected[key] += weighted
        kept = book.reads(
            """SELECT per, "window", used FROM totals WHERE scope = 'host' AND provider = '*' AND per <> 'run'"""
        )
        assert {(per, window): used for per, window, used in kept} == dict(expected)
        now = budget.windows(book.now.wall_ns, ZoneInfo(zone))
        lines = {line["per"]: line["used"] for line in book.ask(wire.Totals, 1).value if line["scope"] == "host"}
        assert lines == {per: expected[per, window] for per, window in now.items()}
        with Reader(book.path) as reader:
            assert reader.check() == []
        book.store.close()


@pytest.mark.parametrize(
    ("per", "last"),
    [("hour", "2026-10-25T00:59:59"), ("day", "2028-02-28T22:59:59"), ("week", "2026-03-29T21:59:59"),
     ("month", "2028-02-29T22:59:59")],
)  # fmt: skip
def test_a_spent_budget_admits_from_the_first_second_of_the_next_window(tmp_path: Path, per: str, last: str) -> None:
    with host_zone("Europe/Berlin"):
        book = Book(tmp_path)
        end_ns = int(datetime.fromisoformat(last).replace(tzinfo=UTC).timestamp()) * SECOND_NS
        book.now = Now(end_ns - HOUR_NS // 60, START.boot_ns)
        book.open(1, scope("host", "host", of("claude", 10, per)))
        book.spend(1, 10, "a")
        book.now = Now(end_ns, START.boot_ns + 1)
        assert isinstance(book.reserve(1, 1, 0, "b"), wire.Denied)
        book.now = Now(end_ns + SECOND_NS, START.boot_ns + 2)
        assert isinstance(book.reserve(1, 1, 0, "c"), wire.Granted)
        book.now = Now(end_ns, START.boot_ns + 3)  # and the clock goes back
        assert isinstance(book.reserve(1, 1, 0, "d"), wire.Denied)
        book.store.close()
