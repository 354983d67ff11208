"""repeats.py and reporting.py: one event, then counts; bounded; hints only where a rule would help."""

from __future__ import annotations

from typing import Any

from agentmon.events import Event
from agentmon.repeats import MAX_KEYS, PERIOD_NS, Repeats
from agentmon.reporting import Reporter

EVENT = Event("dns", "refused", "b", "default", "resolver", host="x.example")


def test_first_now_then_counted_then_forgotten() -> None:
    repeats = Repeats()
    first = repeats.note(16, "x", EVENT, 0)
    assert first is not None
    assert first.count == 1
    assert [repeats.note(16, "x", EVENT, i) for i in range(1, 4)] == [None] * 3
    assert repeats.flush(PERIOD_NS - 1, 7) == []
    (more,) = repeats.flush(PERIOD_NS, 7)
    assert (more.count, more.host, more.ts_ns) == (3, "x.example", 7)
    assert repeats.flush(PERIOD_NS + 1, 7) == []
    assert repeats.flush(3 * PERIOD_NS, 7) == []
    assert repeats.note(16, "x", EVENT, 3 * PERIOD_NS) is not None


def test_too_many_different_things_are_counted_together_per_bottle() -> None:
    repeats = Repeats()
    shown = [e for i in range(MAX_KEYS + 50) if (e := repeats.note(16, i, EVENT, 0))]
    assert len(shown) == MAX_KEYS + 1
    assert (shown[-1].host, shown[-1].detail, shown[-1].reason) == ("", {"others": True}, "default")
    assert repeats.note(17, "x", EVENT, 0) is not None
    assert [e.count for e in repeats.flush(PERIOD_NS, 1)] == [49]


def test_drop_reports_what_was_counted() -> None:
    repeats = Repeats()
    for _ in range(3):
        repeats.note(16, "x", EVENT, 0)
    assert [e.count for e in repeats.drop(16, 5)] == [2]
    assert repeats.drop(16, 5) == []


def test_reporter_adds_time_and_hint() -> None:
    sent: list[dict[str, Any]] = []
    reporter = Reporter(sent.append)
    reporter.note(16, EVENT)
    reporter.note(16, EVENT)
    reporter.note(16, Event("connect", "refused", "b", "inspected", "relay", host="y.example", port=443))
    reporter.flush()
    assert [e["host"] for e in sent] == ["x.example", "y.example"]
    assert sent[0]["hint"] == "agentmon allow b x.example"
    assert sent[0]["ts_ns"] > 0
    assert "hint" not in sent[1]
    reporter.drop(16)
    assert sent[2]["count"] == 1
