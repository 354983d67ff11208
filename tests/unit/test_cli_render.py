"""What people read: tables, sentences, single values."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest

from agentmon.render.bottles import bottles_table
from agentmon.render.budgets import budgets_table
from agentmon.render.events import paragraph, sentence
from agentmon.render.table import table, width
from agentmon.render.usage import usage_csv, usage_table
from agentmon.render.words import clock, command, duration, listed, printable, tokens


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (850_000, "850 µs"),
        (12_300_000, "12.3 ms"),
        (4_200_000_000, "4.2 s"),
        (200_000_000_000, "3 min 20 s"),
        (18_720 * 10**9, "5 h 12 min"),
        (183_600 * 10**9, "2 d 3 h"),
        (0, "0 µs"),
    ],
)
def test_duration(ns: int, text: str) -> None:
    assert duration(ns) == text


def test_single_values() -> None:
    assert (tokens(1_234_567), tokens(None)) == ("1,234,567", "-")
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")
    assert clock("2026-01-02T03:04:05.000000006Z", UTC) == "03:04:05"
    assert clock("\x1b[2J") == "\\x1b[2J"
    assert command(["sh", "-c", "x" * 100], 10) == "sh -c xxx…"


def test_what_a_job_wrote_cannot_drive_the_terminal() -> None:
    assert printable("ok \x1b]0;evil\x07\n") == "ok \\x1b]0;evil\\x07\\x0a"
    event = {
        "kind": "dns",
        "verdict": "refused",
        "comm": "a\x1b[31m",
        "host": "x\r\n",
        "layer": "resolver",
        "reason": "default",
    }
    assert "\x1b" not in paragraph(event) and "\r" not in paragraph(event)


def test_table_aligns_and_counts_terminal_columns() -> None:
    assert table(("A", "N"), [("x", "1"), ("long", "22")], right=frozenset({1})) == "A      N\nx      1\nlong  22\n"
    assert table(("A",), []) == ""
    assert (width("日本"), width("é")) == (4, 1)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            {
                "kind": "dns",
                "verdict": "refused",
                "comm": "curl",
                "pid": 12,
                "host": "www.forbidden.example",
                "layer": "resolver",
                "reason": "default",
            },
            "curl (pid 12) asked for www.forbidden.example: refused by the resolver, no rule allows it",
        ),
        (
            {
                "kind": "connect",
                "verdict": "refused",
                "comm": "python3",
                "pid": 7,
                "dst": "198.51.100.7",
                "port": 443,
                "proto": "tcp",
                "layer": "bpf",
                "reason": "default",
                "count": 3,
            },
            "python3 (pid 7) tried to connect to 198.51.100.7:443: refused by bpf, no rule allows it (3 times)",
        ),
        (
            {
                "kind": "send",
                "verdict": "refused",
                "dst": "2001:db8::1",
                "port": 53,
                "proto": "udp",
                "layer": "host-nft",
                "reason": "deny",
                "rule": "!udp://[2001:db8::1]:53",
            },
            "a process tried to send a datagram to [2001:db8::1]:53/udp: refused by host-nft, a rule denies it (!udp://[2001:db8::1]:53)",
        ),
        (
            {
                "kind": "connect",
                "verdict": "observed",
                "comm": "x",
                "host": "a.example",
                "dst": "203.0.113.1",
                "port": 80,
                "layer": "bpf",
                "reason": "default",
            },
            "x connected to a.example:80 (203.0.113.1): let through under OBSERVE by bpf, no rule allows it",
        ),
        (
            {
                "kind": "bypass",
                "verdict": "refused",
                "comm": "python3",
                "pid": 9,
                "dst": "203.0.113.1",
                "port": 443,
                "layer": "bpf",
                "reason": "unvouched",
                "library": "/usr/lib/libffi.so.8",
            },
            "python3 (pid 9) bypassed its guard to 203.0.113.1:443: refused by bpf, its guard did not see it"
            " (called by /usr/lib/libffi.so.8)",
        ),
        (
            {"kind": "bypass", "verdict": "observed", "comm": "x", "dst": "::1", "layer": "bpf", "reason": "unvouched"},
            "x bypassed its guard to [::1]: let through by bpf (guard: observe), its guard did not see it",
        ),
        (
            {"kind": "connect", "verdict": "refused", "path": "/srv/\x1b.sock", "layer": "bpf", "reason": "unix"},
            "a process tried to connect to /srv/\\x1b.sock: refused by bpf, no rule allows this unix socket",
        ),
        (
            {
                "kind": "socket",
                "verdict": "refused",
                "dst": "0.0.0.0",
                "port": 80,
                "layer": "bpf",
                "reason": "listen",
            },
            "a process tried to bind a socket to 0.0.0.0:80: refused by bpf, no rule lets it listen on this port",
        ),
        (
            {"kind": "escape", "verdict": "observed", "comm": "cat", "pid": 5, "layer": "daemon", "reason": "stranger"},
            "cat (pid 5) is in the bottle's network namespace, and it is a process of the host",
        ),
        (
            {"kind": "request", "verdict": "allowed", "comm": "x", "host": "a.example", "layer": "proxy"},
            "x requested a.example: allowed by the proxy",
        ),
        (
            {
                "kind": "cutoff",
                "reason": "budget",
                "detail": {"by": "bottle:b", "used": 1200, "tokens": 1000, "latency_ns": 3_100_000},
            },
            "the bottle was cut: its token budget is spent (1,200 of 1,000 tokens), after 3.1 ms",
        ),
        ({"kind": "lost", "count": 40}, "40 events were lost"),
        (
            {"kind": "count", "verdict": "observed", "host": "api.example.com", "reason": "timeout", "count": 3},
            "api.example.com did not say what a request brings in (timeout): agentmon's own estimate is held (3 times)",
        ),
        ({"kind": "policy", "verdict": "refused", "reason": "bad file"}, "policy not changed: bad file"),
        (
            {"kind": "connect", "verdict": "refused", "dst": "::1", "reason": ""},
            "a process tried to connect to [::1]: refused, no reason given",
        ),
    ],
)
def test_sentences(event: dict[str, Any], text: str) -> None:
    assert sentence(event) == text


SPENT = {"scope": "bottle", "name": "b", "provider": "claude", "tokens": 20_000, "used": 20_360, "per": "run"}


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        (
            "cutoff",
            {"reason": "budget", "detail": {"by": "bottle:b", **SPENT}},
            "the bottle was cut: its token budget is spent (20,360 of 20,000 claude tokens)",
        ),
        (
            "freeze",
            {"reason": "budget", "detail": {"by": "agent:a", **SPENT, "scope": "agent", "name": "a"}},
            "the bottle was frozen: the token budget of agent a is spent (20,360 of 20,000 claude tokens)",
        ),
        ("cutoff", {"reason": "operator", "detail": {"by": "uid:0", **SPENT}}, "the bottle was cut by uid 0"),
        ("kill", {"reason": "operator", "detail": {"by": "uid:0"}}, "the bottle was ended by uid 0"),
        ("kill", {"reason": "too late"}, "the bottle was ended: too late"),
        ("resume", {"reason": "operator", "detail": {"by": "uid:0", "tokens": 0}}, "the bottle was resumed by uid 0"),
        (
            "resume",
            {"reason": "operator", "detail": {"by": "uid:7", "tokens": 400000}},
            "the bottle was resumed by uid 7, with a budget of 400,000 tokens",
        ),
        (
            "threshold",
            {"reason": "80% of bottle b", "detail": SPENT},
            "80% of the budget of bottle b is used (20,360 of 20,000 claude tokens)",
        ),
        (
            "policy",
            {"verdict": "observed", "reason": "deny x.example", "detail": {"by": "uid:0"}},
            "policy changed: deny x.example by uid 0",
        ),
        (
            "usage",
            {"detail": {"provider": "claude", "model": "m", "input": 1200, "output": 0, "cache_read": 5}},
            "used 1,200 input, 5 cache-read and 0 output tokens of claude m",
        ),
        (
            "usage",
            {"detail": {"input": 1, "output": 2, "source": "estimate", "complete": False}},
            "used 1 input and 2 output tokens (estimated and cut short)",
        ),
        ("usage", {}, "used tokens"),
        ("lost", {"reason": "settle: no ledger"}, "something could not be recorded: settle: no ledger"),
        ("daemon", {"reason": "ready", "pid": 7}, "the daemon is ready (pid 7)"),
        ("daemon", {"reason": "adopted"}, "taken over from an earlier daemon"),
        ("daemon", {"reason": "not committed", "host": "x.example"}, "x.example: not committed"),
        ("tamper", {"verdict": "refused", "reason": "rules", "count": 2}, "rules (2 times)"),
    ],
)
def test_states_have_their_own_verbs(kind: str, fields: dict[str, Any], text: str) -> None:
    assert sentence({"kind": kind, "layer": "daemon", **fields}) == text


@pytest.mark.parametrize("kind", ["connect", "send", "packet", "dns", "request", "websocket", "socket", "escape"])
def test_a_refusal_without_a_destination_is_a_sentence_too(kind: str) -> None:
    for detail in ({}, {"others": True}):
        text = sentence({"kind": kind, "verdict": "refused", "layer": "relay", "reason": "limit", "detail": detail})
        assert " to:" not in text and " for:" not in text and "  " not in text
        assert text.endswith(": refused by the relay, a limit of the bottle is reached")


@pytest.mark.parametrize(
    "reason",
    [
        *("default", "policy", "deny", "cut", "closed", "protected", "family", "expired", "spoof", "netns", "budget"),
        *(
            "unknown",
            "unvouched",
            "listen",
            "unix",
            "no-sni",
            "bad-sni",
            "sni",
            "not-tls",
            "bad-name",
            "inspected",
            "direct",
            "slow",
            "limit",
        ),
        *("method", "path", "endpoint", "host", "plain", "credential", "upgrade", "rate"),
    ],
)
def test_every_reason_reads_as_english(reason: str) -> None:
    said = sentence({"kind": "request", "verdict": "refused", "layer": "proxy", "reason": reason, "host": "x.example"})
    why = said.partition("refused by the proxy, ")[2]
    assert len(why.split()) > 2, why


def test_what_a_layer_cannot_know_is_not_said() -> None:
    event = {"kind": "connect", "verdict": "refused", "layer": "bpf", "reason": "budget", "dst": "203.0.113.1"}
    assert sentence(event).endswith("refused by bpf, the bottle is cut off")


def test_not_every_observed_event_is_of_observe_mode() -> None:
    event = {"kind": "request", "verdict": "observed", "layer": "proxy", "reason": "client-tls", "host": "x.example"}
    assert sentence(event) == (
        "a process broke off its TLS handshake with the proxy for x.example: "
        "it does not trust the proxy's certificate, or gave up"
    )
    event = {"kind": "connect", "verdict": "allowed", "layer": "relay", "reason": "unreachable", "host": "x.example"}
    assert sentence(event) == (
        "a process tried to connect to x.example: allowed by the relay, but the destination cannot be reached"
    )


def test_paragraph_ends_with_the_command_that_would_allow_it() -> None:
    event = {
        "ts": "2026-01-02T03:04:05.0Z",
        "bottle": "b",
        "kind": "dns",
        "verdict": "refused",
        "comm": "curl",
        "host": "a.example",
        "layer": "resolver",
        "reason": "default",
        "hint": "agentmon allow b a.example",
    }
    assert paragraph(event, UTC) == (
        "03:04:05 b: curl asked for a.example: refused by the resolver, no rule allows it\n"
        "    allow it: agentmon allow b a.example\n"
    )
    assert paragraph({"kind": "daemon"}, UTC).endswith(" -: the daemon says nothing more\n")
    told = paragraph(event | {"hint": "add the method"}, UTC)
    assert told.endswith("\n    hint: add the method\n")


BUDGETS = [
    {
        "scope": "bottle",
        "name": "b",
        "provider": "claude",
        "per": "run",
        "tokens": 1000,
        "used": 10,
        "held": 5,
        "remaining": 985,
    },
    {
        "scope": "host",
        "name": "host",
        "provider": "claude",
        "per": "month",
        "tokens": None,
        "used": 10,
        "held": 5,
        "remaining": None,
    },
]


def test_bottles_show_the_tightest_budget_and_observe() -> None:
    row = {
        "bottle": "b",
        "phase": "running",
        "observe": True,
        "started_ns": 0,
        "processes": [7, 8, 9],
        "budgets": BUDGETS,
        "addr4": "10.213.0.16",
        "command": ["make", "test"],
    }
    text = bottles_table([row], 60 * 10**9)
    assert text.splitlines()[1].split() == [
        "b",
        "running",
        "OBSERVE",
        "1",
        "min",
        "0",
        "s",
        "3",
        "10",
        "985",
        "10.213.0.16",
        "make",
        "test",
    ]
    assert "-  10.213.0.16" in bottles_table([row | {"budgets": []}], 0)
    assert bottles_table([], 0) == ""


def test_budgets_without_a_limit_show_what_was_used() -> None:
    assert budgets_table(BUDGETS).splitlines()[2].split() == ["host", "host", "claude", "month", "-", "10", "5", "-"]


USAGE = [
    {"model": "m1", "requests": 2, "input": 100, "cache_write": 0, "cache_read": 5, "output": 50, "weighted": 150},
    {"model": "m2", "requests": 1, "input": 1, "cache_write": 0, "cache_read": 0, "output": 1, "weighted": 2},
]


def test_usage_has_a_sum_and_a_csv() -> None:
    assert usage_table(USAGE, "model").splitlines()[-1].split() == ["all", "3", "101", "0", "5", "51", "152"]
    assert len(usage_table(USAGE[:1], "model").splitlines()) == 2
    assert usage_csv(USAGE, "model").splitlines()[1] == "m1,2,100,0,5,50,150"
    assert usage_table([], "model") == usage_csv([], "model") == ""
