"""What the `alert:` command is told, and that a bottle full of events cannot keep the host busy with it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from agentmon.daemon.alerts import BURST, KINDS, REFILL_S, Alerts
from agentmon.daemon.eventlog import EventLog
from agentmon.daemon.hook import Hook
from agentmon.events import Event


class Told:
    """Stands for the hook, and the clock."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.now_s = 5.0

    def tell(self, what: dict[str, Any]) -> None:
        self.got.append(what)

    def alerts(self) -> Alerts:
        return Alerts(self, lambda: self.now_s)  # type: ignore[arg-type]


def test_a_noisy_bottle_is_bounded_and_no_other_one_waits_for_it() -> None:
    told = Told()
    alerts = told.alerts()
    for n in range(1000):
        alerts.saw({"kind": "tamper", "bottle": "noisy", "reason": str(n)})
    alerts.saw({"kind": "cutoff", "bottle": "other"})
    assert len(told.got) == BURST + 1 and told.got[-1] == {"kind": "cutoff", "bottle": "other"}
    told.now_s += REFILL_S
    alerts.saw({"kind": "kill", "bottle": "noisy"})
    alerts.saw({"kind": "kill", "bottle": "noisy"})
    assert told.got[BURST + 1 :] == [{"kind": "kill", "bottle": "noisy", "left_out": 990}]
    for n in range(5000):
        alerts.saw({"kind": "tamper", "bottle": f"b{n}"})
    assert len(alerts._purses) == 1000


def test_the_command_gets_each_kind_as_the_events_show_it(tmp_path: Path) -> None:
    """Through the log and a real command; a usage event is none of its business."""
    out = tmp_path / "out"

    async def body() -> None:
        log = EventLog(str(tmp_path / "events.db"), max_bytes=1 << 20, max_age_s=60, log="off")
        hook = Hook("alert", lambda: ("/bin/sh", "-c", f"cat >> {out}"), log.add)
        log.follow(Alerts(hook).saw)
        log.add(Event("usage", "observed", bottle="one"))
        for kind in sorted(KINDS):
            log.add(Event(kind, "refused", bottle="one", layer="daemon", reason="why", detail={"by": "uid:0"}))
        await hook.settled(10.0)
        log.close()

    asyncio.run(body())
    rows = sorted(map(json.loads, out.read_text().splitlines()), key=lambda row: row["kind"])
    assert [row["kind"] for row in rows] == sorted(KINDS)
    assert all(row["ts"].endswith("Z") and (row["bottle"], row["reason"]) == ("one", "why") for row in rows)


def test_the_last_alerts_are_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    async def body(script: str) -> None:
        hook = Hook("alert", lambda: ("/bin/sh", "-c", script), [].append)
        hook.tell({})
        async with asyncio.timeout(10):
            await hook.settled(0.3)
            await hook.close()

    asyncio.run(body(f"touch {tmp_path}/quick"))
    assert (tmp_path / "quick").exists()
    asyncio.run(body("sleep 60"))
