"""`agentmon events` for people: groups, filters, and each by itself; from the stored events, without a daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from agentmon import events
from agentmon.events import Event
from agentmon.ledger.events_store import EventStore
from agentmon.render.event_groups import grouped

ROOT = Path(__file__).parents[2]
START_NS = 1_800_000_000 * 10**9


def refused(host: str, seconds: int, pid: int = 7, **fields: Any) -> Event:
    plain = {"bottle": "b", "reason": "default", "layer": "resolver", "comm": "curl", "pid": pid, "host": host}
    event = Event("dns", "refused", **(plain | fields), ts_ns=START_NS + seconds * 10**9)
    return Event(**{name: getattr(event, name) for name in event.__struct_fields__} | {"hint": events.hint(event)})


SEEN = [
    refused("x.example", 0, count=1),
    refused("y.example", 1),
    Event("policy", bottle="b", reason="allow z.example", layer="daemon", ts_ns=START_NS + 2 * 10**9),
    refused("x.example", 3, count=4),
    Event("policy", bottle="b", reason="allow z.example", layer="daemon", ts_ns=START_NS + 4 * 10**9),
    refused("x.example", 65, pid=8),
    refused("x.example", 66, comm="wget"),
    refused("x.example", 67, bottle="c"),
    Event(
        "connect", "observed", "c", "default", "bpf", comm="go", proto="tcp", dst="198.51.100.1", port=443,
        detail={"names": ["w.z.example"]}, ts_ns=START_NS + 68 * 10**9,
    ),
    Event(
        "connect", "observed", "c", "default", "bpf", comm="go", proto="tcp", dst="198.51.100.2", port=443,
        detail={"names": ["w.z.example"]}, ts_ns=START_NS + 69 * 10**9,
    ),
]  # fmt: skip


def test_the_same_thing_is_told_once_with_how_often_and_when() -> None:
    text = grouped([events.to_dict(event) for event in SEEN], UTC)
    assert text.splitlines() == [
        "08:00:01 b: curl (pid 7) asked for y.example: refused by the resolver, no rule allows it",
        "    allow it: agentmon allow b y.example",
        "08:00:02 b: policy changed: allow z.example",
        "08:00:04 b: policy changed: allow z.example",
        "08:00:00–08:01:05 b: curl (2 processes) asked for x.example: refused by the resolver, no rule allows it"
        " (6 times)",
        "    allow it: agentmon allow b x.example",
        "08:01:06 b: wget (pid 7) asked for x.example: refused by the resolver, no rule allows it",
        "    allow it: agentmon allow b x.example",
        "08:01:07 c: curl (pid 7) asked for x.example: refused by the resolver, no rule allows it",
        "    allow it: agentmon allow c x.example",
        "08:01:08–08:01:09 c: go connected to 198.51.100.2:443 (w.z.example): let through under OBSERVE by bpf, no rule"
        " allows it (2 times)",
    ]
    assert grouped([]) == ""


Run = Callable[..., str]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`agentmon events` with these options, on SEEN."""
    root = tmp_path_factory.mktemp("events")
    directory = root / "var/lib/agentmon/events"
    directory.mkdir(parents=True)
    store = EventStore(str(directory / "events.db"), max_age_s=100 * 365 * 86_400)
    store.append(SEEN)
    store.close()
    env = os.environ | {"AGENTMON_ROOT": str(root), "AGENTMON_SETTINGS": str(root / "none.yml"), "TZ": "UTC"}

    def run(*options: str) -> str:
        command = [sys.executable, "-m", "agentmon.cli", "events", *options]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout

    return run


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ((), 10),
        (("--bottle", "c"), 3),
        (("--kind", "policy"), 2),
        (("--verdict", "observed"), 2),
        (("--layer", "daemon"), 2),
        (("--host", "x.example", "--bottle", "b"), 4),
        (("--host", "*.z.example"), 2),
        (("--host", "198.51.100.1"), 1),
        (("--since", "2027-01-15T08:01:06Z"), 4),
        (("--verdict", "allowed"), 0),
    ],
)
def test_filters(shown: Run, options: tuple[str, ...], count: int) -> None:
    assert len([json.loads(line) for line in shown("--json", *options).splitlines()]) == count


def test_grouped_is_for_people_and_each_is_there_on_request(shown: Run) -> None:
    assert "curl (2 processes) asked for x.example" in shown("--bottle", "b") and "(6 times)" in shown()
    assert shown("--each", "--host", "x.example").count("asked for x.example") == 5
