"""What the command line reads by itself, read-only, from the files of ledger and events: it works without a daemon."""

from __future__ import annotations

import json
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentmon import events, paths
from agentmon.errors import AgentmonError, BadInput
from agentmon.ledger import events_store, report
from agentmon.ledger.finding import Finding
from agentmon.ledger.opening import opened
from agentmon.ledger.reader import Reader


def usage_rows(by: str, since_ns: int) -> list[dict[str, Any]]:
    """:raises AgentmonError: there is no ledger that this user can read."""
    return report.usage(by, since_ns=since_ns)


def folded_day(since_ns: int) -> str:
    """The day that `usage --since` begins in, if it is kept as sums and counts as a whole; else ""."""
    with opened() as reader:
        return reader.folded_day(since_ns)


def stored_events(bottle: str, kind: str, since_ns: int) -> Iterator[dict[str, Any]]:
    """The contract's JSON objects, oldest first.

    :raises AgentmonError: there are no events that this user can read; while iterating.
    """
    for _, event in events_store.read(str(paths.EVENTS), bottle=bottle, kind=kind, since_ns=since_ns):
        yield events.to_dict(event)


def ended_approvals(bottle: str, since_ns: int) -> list[dict[str, Any]]:
    """Rows of approvals_v that do not wait any more.

    :raises AgentmonError: there is no ledger that this user can read.
    """
    with opened() as reader:
        rows = reader.approvals(since_ns=since_ns, bottle=bottle)
    return [row for row in rows if row["state"] != "waiting"]


def audit_rows(since_ns: int) -> list[dict[str, Any]]:
    """Rows of audit_v, oldest first, with `detail` as an object and `user`, the name of the uid on this host.

    :raises AgentmonError: there is no ledger that this user can read.
    """
    names: dict[int, str] = {}
    rows = report.audit(since_ns=since_ns)
    for row in rows:
        uid = int(row["uid"])
        row["user"] = names.get(uid) or names.setdefault(uid, _user(uid))
        row["detail"] = json.loads(row["detail"])
    return rows


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def budget_rows() -> list[dict[str, Any]]:
    """:raises AgentmonError: there is no ledger that this user can read."""
    return report.budgets()


def run_summary(run: str, bottle: str, since_ns: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """(provider → token counts, how the run was first cut or None) of one run.

    :raises AgentmonError: there is no ledger that this user can read.
    """
    rows = report.enforcement(since_ns=since_ns, bottle=bottle)
    first = next((row for row in rows if row["run"] == run and _is_cut(row)), None)
    told = ("ts", "policy", "trigger", "by", "latency_ns", "result")
    return report.run_usage(run), {key: first[key] for key in told} if first else None


def _is_cut(row: dict[str, Any]) -> bool:
    """Not a resume, and not an operator's kill."""
    return row["policy"] in {"cutoff", "freeze"} or (row["policy"] == "kill" and row["trigger"] == "budget")


def check_ledger() -> list[Finding]:
    """What was looked at, and what is wrong there.

    :raises AgentmonError: there is no ledger that this user can read.
    """
    with opened() as reader:
        return reader.findings()


def export_ledger(what: str, since_ns: int) -> Iterator[dict[str, Any]]:
    """Rows of one of EXPORTS, oldest first.

    :raises AgentmonError: there is no ledger that this user can read; while iterating.
    """
    with opened() as reader:
        yield from reader.export(what, since_ns=since_ns)


def back_up_ledger(to: Path) -> None:
    """:raises BadInput: `to` cannot be written. :raises AgentmonError: there is no ledger."""
    with opened() as reader:
        if not isinstance(reader, Reader):
            raise BadInput("the ledger is in a PostgreSQL database", "pg_dump copies it: docs/ledger.md, Many hosts")
        if to.exists() and not to.is_file():
            raise BadInput(f"{to}: is no file", "name a file to copy to")
        try:
            reader.backup(str(to))
        except AgentmonError as e:
            raise BadInput(e.message, "name a new file, in a directory that can be written and has room for it") from e
