"""What the command line reads from the ledger's file by itself, read-only: it works without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentmon import paths
from agentmon.ledger import report
from agentmon.ledger.reader import Reader


def usage_rows(by: str, since_ns: int) -> list[dict[str, Any]]:
    """:raises AgentmonError: there is no ledger that this user can read."""
    return report.usage(by, since_ns=since_ns)


def budget_rows() -> list[dict[str, Any]]:
    """:raises AgentmonError: there is no ledger that this user can read."""
    return report.budgets()


def check_ledger() -> list[str]:
    """What is wrong, one line each.

    :raises AgentmonError: there is no ledger that this user can read.
    """
    with Reader(str(paths.LEDGER)) as reader:
        return reader.check()


def back_up_ledger(to: Path) -> None:
    """:raises AgentmonError: no ledger, or `to` cannot be written."""
    with Reader(str(paths.LEDGER)) as reader:
        reader.backup(str(to))
