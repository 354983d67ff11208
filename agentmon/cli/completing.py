"""What a shell can complete: bottles by name, where a daemon answers. Never an error."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem


def bottles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For `shell_complete=` of an argument or option that names a running bottle."""
    from agentmon.cli.control import ask

    try:
        rows: list[dict[str, Any]] = ask("ps")
    except Exception:  # noqa: BLE001 - a completion that complains writes into the person's command line
        return []
    return [
        CompletionItem(row["bottle"], help=f"{row['phase']}: {' '.join(row['command'])[:60]}")
        for row in rows
        if str(row["bottle"]).startswith(incomplete)
    ]
