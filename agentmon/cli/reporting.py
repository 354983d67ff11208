"""What a report is made of, read from the ledger and the stored events. Read-only; needs their reader's rights."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from agentmon.cli.books import stored_events
from agentmon.errors import AgentmonError
from agentmon.ledger.opening import opened
from agentmon.render.report import Report, refusals, used


def gather(bottle: str, since_ns: int, until_ns: int) -> Report:
    """:param bottle: "" for the whole host.
    :raises AgentmonError: there is no ledger that this user can read.
    """
    with opened() as ledger:
        ways = ("provider", "model", "day") if bottle else ("provider", "bottle", "agent", "model", "day")
        usage = {by: used(ledger.usage(by, since_ns=since_ns, bottle=bottle), by) for by in ways}
        days = Counter(
            {(r["day"], r["provider"]): int(r["weighted"]) for r in ledger.daily(since_ns=since_ns, bottle=bottle)}
        )
        budgets = [b for b in ledger.budgets() if not bottle or (b["scope"], b["name"]) == ("bottle", bottle)]
        cuts = ledger.enforcement(since_ns=since_ns, bottle=bottle)
        approvals = ledger.approvals(since_ns=since_ns, bottle=bottle)
    first: list[str] = []
    listed, more, layers = refusals(_events(bottle, since_ns, first))
    return Report(
        bottle=bottle, since_ns=since_ns, until_ns=until_ns, zone="/".join(dict.fromkeys(time.tzname)), usage=usage,
        days=days, budgets=tuple(budgets), cuts=tuple(cuts), approvals=tuple(approvals), refusals=listed, more=more,
        layers=layers, events_from=first[0] if first else "",
    )  # fmt: skip


def _events(bottle: str, since_ns: int, first: list[str]) -> Iterator[Mapping[str, Any]]:
    """Where there are none to read, the ledger's part is a report all the same."""
    with contextlib.suppress(AgentmonError):
        for event in stored_events(bottle, "", since_ns):
            if not first:
                first.append(str(event["ts"]))
            yield event
