"""The demo's judgement: a run as it should be has no problems; every single fault is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from agentmon.cli.demo import look, show, verdict
from agentmon.cli.demo.play import BUDGET, Seen


def event(**data: Any) -> dict[str, Any]:
    common = {
        "verdict": "refused",
        "pid": 7,
        "comm": "curl",
        "reason": "policy",
        "layer": "bpf",
        "hint": "agentmon allow",
    }
    return common | {"ts": "2026-01-01T00:00:00.000000000Z", "kind": "connect"} | data


def row(call: dict[str, Any], **data: Any) -> dict[str, Any]:
    keys = ("input", "cache_read", "cache_write", "output", "complete")
    number = int(call["id"].removeprefix("msg_"))
    mine = {"id": number, "ts_ns": 10**18 + number * 10**6, "provider": "claude", "weighted": BUDGET // 3}
    return mine | {key: call[key] for key in keys} | {"request_id": call["id"], "source": "wire"} | data


def good() -> Seen:
    served = [
        {"id": f"msg_{n}", "input": 100, "cache_read": 0, "cache_write": 0, "output": n, "complete": n != 3}
        for n in range(4)
    ]
    calls = [
        {"client": client, "host": "h.example", "streamed": streamed, "status": 200}
        for client, streamed in (
            ("anthropic", False),
            ("anthropic", True),
            ("openai", True),
            ("curl", False),
            ("curl", False),
        )
    ]
    attempts: list[dict[str, Any]] = [
        {"attempt": "curl", "host": "www.forbidden.example", "worked": False, "said": "curl: (6)"},
        {"attempt": "ctypes-connect", "dst": "203.0.113.20", "port": 443, "worked": False, "said": "EPERM"},
        {"attempt": "udp-sendto", "dst": "203.0.113.30", "port": 53, "worked": False, "said": "EPERM"},
        {"attempt": "dns", "host": "data.forbidden.example", "worked": False, "said": "not known"},
    ]
    detail = {"type": "budget_exhausted", "scope": "bottle", "tokens": BUDGET, "used": BUDGET + 10}
    return Seen(
        bottle="demo-1",
        ready_ms=300.0,
        start=dict.fromkeys(look.NAMES, "there"),
        calls=calls,
        attempts=attempts,
        cut={
            "status": 403, "type": "budget_exhausted", "detail": detail, "calls": 6, "refused_after_ms": 12.0,
            "stream": {"type": "budget_exhausted", "ended_ns": 10**18 + 12 * 10**6},
        },
        resumed={"status": 200},
        events=[
            event(kind="dns", host="www.forbidden.example"),
            event(dst="203.0.113.20", port=443),
            event(dst="203.0.113.30", port=53, kind="send"),
            event(kind="dns", host="data.forbidden.example"),
        ],
        usage=[row(call) for call in served[:3]] + [row(served[3], output=9, source="estimate")],
        enforcement=[{"policy": "cutoff", "latency_ns": 4_200_000}],
        counters={"forbidden": {}, "dns": {}, "served": {"calls": served}},
        summary={"refused": {"bpf": 2, "resolver": 2}},
    )  # fmt: skip


def test_a_good_run_has_no_problems_and_the_contracts_keys() -> None:
    seen = good()
    assert verdict.problems(seen) == []
    result = json.loads(json.dumps(verdict.as_json(seen)))
    assert {"ready_ms", "start", "calls", "refused", "cutoff", "ledger", "leftovers"} <= set(result)
    assert set(result["calls"][0]) == {"client", "host", "streamed", "status", "input", "output"}
    assert [r["attempt"] for r in result["refused"]] == ["curl", "ctypes-connect", "udp-sendto", "dns"]
    assert all(r["receiver_bytes"] == 0 and r["event"]["comm"] == "curl" for r in result["refused"])
    assert {"scope", "budget", "used", "latency_ns", "status", "type", "resumed"} <= set(result["cutoff"])
    assert (result["cutoff"]["latency_ns"], result["cutoff"]["resumed"]) == (4_200_000, True)
    assert result["cutoff"]["stream_ended_ns_after"] == 9_000_000  # BUDGET // 3 thrice is less: the fourth row crosses
    assert result["ledger"]["tokens"] == result["ledger"]["provider_tokens"] == 303
    assert "All as it should be." in show.text(seen, [])


def set_(name: str, value: Any) -> Callable[[Seen], None]:
    return lambda seen: setattr(seen, name, value)


def change(name: str, **data: Any) -> Callable[[Seen], None]:
    return lambda seen: getattr(seen, name).update(data)


def change_at(name: str, index: int, **data: Any) -> Callable[[Seen], None]:
    return lambda seen: getattr(seen, name)[index].update(data)


FAULTS: list[tuple[Callable[[Seen], None], str]] = [
    (set_("start", {}), "its netns could not be seen"),
    (change("start", programs=False), "its programs could not be seen"),
    (set_("calls", []), "expected 5 calls"),
    (change_at("calls", 2, status=403, error="denied"), "openai to h.example: status 403"),
    (set_("attempts", []), "expected 4 attempts"),
    (change_at("attempts", 1, worked=True, said="connected"), "ctypes-connect was not refused"),
    (set_("events", []), "udp-sendto: no event"),
    (change_at("events", 3, comm="", hint=""), "dns: its event does not say comm, hint"),
    (change_at("events", 1, verdict="allowed"), "ctypes-connect: no event"),
    (change("counters", forbidden={"203.0.113.30": {"bytes": 34}}), "udp-sendto: 34 bytes arrived"),
    (change("counters", forbidden={"2001:db8:2::10": {"bytes": 80}}), "curl: 80 bytes arrived"),
    (change("counters", dns={"data.forbidden.example A udp": 1}), "dns: 28 bytes arrived"),
    (change("cut", status=429), "429 'budget_exhausted', not 403"),
    (change("cut", detail={"tokens": 5}), "does not name the budget"),
    (change("cut", stream={"type": "", "error": "still running"}), "stream in flight did not end"),
    (change("cut", refused_after_ms=9000.0), "went on for 9000.0 ms"),
    (set_("enforcement", []), "no row of the cut"),
    (change_at("enforcement", 0, latency_ns=21_000_000), "took 21.0 ms"),
    (change("cut", stream={"type": "budget_exhausted", "ended_ns": 0}), "cannot be compared"),
    (lambda seen: seen.usage.clear(), "cannot be compared"),
    (change("cut", stream={"type": "budget_exhausted", "ended_ns": 10**18 + 254 * 10**6}), "251.0 ms after the row"),
    (change("cut", stream={"type": "budget_exhausted", "ended_ns": 10**18}), "-3.0 ms after the row"),
    (set_("resumed", {"status": 403, "error": "no"}), "after resume: 403 no"),
    (change_at("usage", 1, output=7), "msg_1: the provider counts 101 tokens, the ledger 107"),
    (change_at("usage", 3, input=1), "msg_3: the provider counts 100 input tokens, the ledger 1"),
    (lambda seen: seen.usage.pop(), "served msg_3"),
    (change_at("usage", 0, request_id="msg_x"), "row for msg_x, the provider never served it"),
    (set_("leftovers", ["link: left behind: am16"]), "left behind: link"),
]


@pytest.mark.parametrize(("fault", "found"), FAULTS, ids=[found for _, found in FAULTS])
def test_every_fault_is_found(fault: Callable[[Seen], None], found: str) -> None:
    seen = good()
    fault(seen)
    problems = verdict.problems(seen)
    assert any(found in problem for problem in problems), problems
    text = show.text(seen, problems)
    assert f"NOT as it should be, {len(problems)} findings" in text
