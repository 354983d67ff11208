"""Proposals as people read them: lists, events, and a terminal that obeys nothing."""

from __future__ import annotations

from typing import Any

from agentmon.render.approvals import approvals_text, ended_table
from agentmon.render.events import paragraph

ROW: dict[str, Any] = {
    "id": 3, "ts": "2026-01-02T03:04:05.000000000Z", "until": "2026-01-02T03:09:05.000000000Z", "bottle": "build",
    "kind": "secret", "state": "waiting", "host": "api.example", "method": "POST", "path": "/v1\x1b[2J",
    "detector": "github-pat", "place": "body", "context": "token: \x07***", "requests": 2,
}  # fmt: skip
NOW_NS = 1767323105 * 10**9  # 2026-01-02T03:05:05Z


def test_what_waits() -> None:
    text = approvals_text([ROW], NOW_NS)
    assert text.splitlines() == [
        "3  build: POST api.example/v1\\x1b[2J", "   github-pat in body; 4 min 0 s left, 2 requests wait",
        "   token: \\x07***", "   agentmon approvals approve|reject 3 --reason WHY",
    ]  # fmt: skip
    assert approvals_text([], NOW_NS) == ""
    assert "0 µs left" in approvals_text([ROW], NOW_NS * 2)


def test_what_has_ended() -> None:
    decided = ROW | {"subject": "POST api.example", "state": "rejected", "uid": 1000, "reason": "no\x1b"}
    expired = decided | {"id": 4, "state": "expired", "uid": None, "reason": ""}
    head, first, second = ended_table([decided, expired]).splitlines()
    assert head.split() == ["ID", "ASKED", "BOTTLE", "WHAT", "WHERE", "TO", "STATE", "BY", "REASON"]
    assert first.endswith("POST api.example  rejected  uid 1000  no\\x1b") and second.endswith("expired   -")
    assert ended_table([]) == ""


def told(reason: str, **detail: Any) -> str:
    event = {"ts": ROW["ts"], "kind": "approval", "bottle": "build", "host": "api.example", "reason": reason}
    return paragraph(event | {"detail": detail}).partition(": ")[2].strip()


def test_events() -> None:
    where = {"detector": "github-pat", "where": "body", "method": "POST", "path": "/v1"}
    assert told("waiting", id=3, **where) == "proposal 3 waits: github-pat in body, POST api.example/v1"
    assert told("approved", id=3, by="uid:0", said="ours") == "proposal 3 was approved by uid 0: ours"
    assert told("expired", id=3) == "proposal 3 ran out of time"
    assert told("withdrawn", id=3, why="the client went away") == "proposal 3 was withdrawn: the client went away"
    assert told("not asked, refused: the ledger is away") == "not asked, refused: the ledger is away"
