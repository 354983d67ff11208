"""What the event log leaves out with `log: off`, whoever reports it, and what it tells all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentmon.daemon.eventlog import EventLog
from agentmon.events import Event

TRAFFIC = [
    ("connect", "bpf"), ("send", "bpf"), ("socket", "bpf"), ("dns", "resolver"), ("connect", "relay"),
    ("packet", "host-nft"), ("request", "proxy"), ("websocket", "proxy"),
]  # fmt: skip
TOLD = [
    ("cutoff", "daemon"),
    ("policy", "daemon"),
    ("escape", "bpf"),
    ("bypass", "bpf"),
    ("lost", "bpf"),
    ("usage", ""),
]


def written(tmp_path: Path, log: str, kind: str, layer: str) -> tuple[list[dict[str, Any]], list[str], int]:
    """(what a follower saw, the kinds on disk, refusals counted) of one refusal"""
    events = EventLog(str(tmp_path / "events.db"), max_bytes=1 << 20, max_age_s=60, log=log)
    seen: list[dict[str, Any]] = []
    events.follow(seen.append)
    try:
        events.add(Event(kind, "refused", "b", layer=layer, reason="default"))
        asyncio.run(events.flushed())
        stored = [row["kind"] for row in events.query(bottle="b", kind="", since_ns=0)]
        return seen, stored, sum(events.refused.get("b", {}).values())
    finally:
        events.close()


@pytest.mark.parametrize(("kind", "layer"), TRAFFIC)
def test_off_leaves_traffic_out_and_counts_it(tmp_path: Path, kind: str, layer: str) -> None:
    assert written(tmp_path, "off", kind, layer) == ([], [], 1)


@pytest.mark.parametrize(("kind", "layer"), TOLD)
def test_off_tells_what_happens_to_bottles(tmp_path: Path, kind: str, layer: str) -> None:
    seen, stored, _ = written(tmp_path, "off", kind, layer)
    assert [event["kind"] for event in seen] == stored == [kind]


@pytest.mark.parametrize("log", ["blocks", "full"])
@pytest.mark.parametrize(("kind", "layer"), TRAFFIC)
def test_otherwise_refusals_are_told(tmp_path: Path, log: str, kind: str, layer: str) -> None:
    seen, stored, counted = written(tmp_path, log, kind, layer)
    assert ([event["kind"] for event in seen], stored, counted) == ([kind], [kind], 1)
