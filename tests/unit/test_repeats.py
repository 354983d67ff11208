"""repeats.py and reporting.py: one event, then counts; bounded; hints only where a rule would help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentmon.daemon.eventlog import EventLog
from agentmon.events import Event, hint
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


def refused(reason: str, **fields: Any) -> Event:
    return Event("connect", "refused", "b", reason, "bpf", **{"proto": "tcp", "port": 443, **fields})


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (refused("policy", dst="198.51.100.7"), "agentmon allow b tcp://198.51.100.7:443"),
        (refused("default", dst="2001:db8::7", proto="udp", port=53), "agentmon allow b udp://[2001:db8::7]:53"),
        (refused("default", host="x.example"), "agentmon allow b x.example:443"),
        (refused("default", host="x.example", port=80), "agentmon allow b x.example"),
        (refused("default", host="$(reboot)"), ""),
        (refused("default", dst="10.213.0.2"), ""),  # the services' own
        (refused("default", dst="fd61:6d6f:6e::2"), ""),
        (refused("default", dst="198.51.100.7", proto="icmp", port=0), ""),
        (refused("default", dst="not an address"), ""),
        (refused("default"), ""),
        (refused("budget", dst="198.51.100.7"), "agentmon resume b"),
        (refused("budget", detail={"used": 500, "tokens": 400}), "agentmon resume b --budget 1000"),
        (refused("cut", hint="agentmon resume BOTTLE"), "agentmon resume b"),
        (refused("method", host="x.example", hint="add it"), "add it"),
        (Event("request", "observed", "b", "client-tls", hint="roots"), "roots"),
        (Event("daemon", "refused", "", "default", host="x.example"), ""),
    ],
)
def test_a_hint_is_a_command_only_where_one_helps(event: Event, expected: str) -> None:
    assert hint(event) == expected


@pytest.mark.parametrize(
    "reason",
    [
        *("deny", "inspected", "direct", "not-tls", "no-sni", "sni", "bad-sni", "bad-name", "slow", "rate", "limit"),
        *("closed", "protected", "spoof", "family", "netns", "unknown", "method", "path", "endpoint", "host", "plain"),
        *("credential", "upgrade"),
    ],
)
def test_no_rule_is_proposed_for_what_no_rule_changes(tmp_path: Path, reason: str) -> None:
    sent: list[dict[str, Any]] = []
    Reporter(sent.append).note(16, refused(reason, host="x.example", dst="198.51.100.7"))
    assert "hint" not in sent[0]
    log = EventLog(str(tmp_path / "events.db"), max_bytes=1 << 20, max_age_s=60)
    try:
        assert log.add(Event(**sent[0])).hint == ""
    finally:
        log.close()


def test_an_expired_address_has_a_hint_that_is_no_command() -> None:
    assert "look the name up again" in hint(refused("expired", dst="198.51.100.7"))


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Event("socket", "refused", "b", "listen", "bpf", proto="udp", port=53), "`listen: [udp:53]`"),
        (Event("connect", "refused", "b", "unix", "bpf", path="/srv/x.sock"), "`unix: [/srv/x.sock]`"),
        (Event("connect", "refused", "b", "unix", "bpf", path="../x"), "absolute path"),
        (Event("connect", "refused", "b", "unix", "bpf", path="/srv/../x\n"), "absolute path"),
        (Event("bypass", "refused", "b", "unvouched", "bpf", dst="203.0.113.1", port=1), "`guard: observe`"),
        (Event("bypass", "refused", "b", "default", "bpf", dst="203.0.113.1", port=1), "agentmon allow b "),
    ],
)
def test_what_only_a_manifest_changes_is_said_so(event: Event, said: str) -> None:
    assert said in hint(event)
    assert "\n" not in hint(event)
    assert hint(Event(event.kind, "observed", "b", event.reason, path=event.path, port=event.port)) == ""
