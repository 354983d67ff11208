"""`agentmon resume`: a stopped bottle goes on. One that is only on disk starts again, with this command as its own."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import click

from agentmon import paths, wire
from agentmon.blocking import BlockingChannel
from agentmon.cli.completing import bottles
from agentmon.cli.console import example, notice
from agentmon.cli.control import connect, connect_or_start, raised
from agentmon.cli.operator import operate, report
from agentmon.cli.pump import Pump
from agentmon.cli.run import finish, reattach
from agentmon.errors import DaemonUnreachable
from agentmon.events import now_ns


@click.command(
    epilog=example(
        "agentmon resume build-17 --budget 400000", "agentmon resume build-17 --budget claude=400000",
        "agentmon resume --all",
    )
)  # fmt: skip
@click.argument("bottle", required=False, shell_complete=bottles)
@click.option("--all", "every", is_flag=True, help="Every bottle that is cut or frozen and still has its processes.")
@click.option("--budget", metavar="TOKENS|P=TOKENS", help="The bottle's new budget, in all, not in addition.")
@click.option("--saved-policy", is_flag=True, help="Go on although a manifest has changed since it was frozen (root).")
@click.option("--json", "as_json", is_flag=True, help="Data instead of text.")
def resume(bottle: str | None, every: bool, budget: str | None, saved_policy: bool, as_json: bool) -> int:
    """Let a cut or frozen BOTTLE go on. After a spent budget it needs a larger one.

    Says which way it came back. "thawed": its processes go on where they stopped. "restarted": the host was booted
    since, or its command line ended; its command starts again, with the files it had when it was frozen, and is
    connected to this terminal as with `run`: streams, signals and the exit status.
    """
    more: dict[str, Any] = {"budget": budget} if budget else {}
    if bottle is None or every:
        return operate("resume", bottle, every, as_json, **more)
    terminal = os.isatty(0) and os.isatty(1)
    size = os.get_terminal_size(1) if terminal else os.terminal_size((80, 24))
    more |= {"tty": terminal, "rows": size.lines or 24, "cols": size.columns or 80, "saved_policy": saved_policy}
    began_ns = now_ns()
    channel = _connect()
    try:
        request = wire.Request(channel.next_id(), "resume", {"bottle": bottle, **more})
        first = _answer(channel, request)
    except (ConnectionError, wire.WireError) as e:
        raise DaemonUnreachable(f"the daemon went away: {e}", "agentmon ps") from None
    if "slot" not in first:
        return report("resume", bottle, first, as_json)
    notice(f"{bottle}: resumed (restarted: its processes were gone, its files are those it was frozen with)")
    slot, fds = int(first["slot"]), channel.fds
    channel.fds = []
    outcome = Pump(channel, request.id, slot, fds, partial(reattach, slot, str(first["run"]))).run()
    return finish(outcome, dict(outcome.summary), None, bottle, began_ns)


def _connect() -> BlockingChannel:
    """A daemon is started for what is saved, as `run` does."""
    try:
        return connect()
    except DaemonUnreachable:
        if os.geteuid() == 0 and paths.SAVED.is_dir() and any(paths.SAVED.iterdir()):
            return connect_or_start()
        raise


def _answer(channel: BlockingChannel, request: wire.Request) -> dict[str, Any]:
    """What was done; with `slot` where the command was started, whose descriptors are in channel.fds then.

    :raises AgentmonError: the daemon's.
    """
    channel.send(request)
    while True:
        message = channel.recv()
        if getattr(message, "id", None) != request.id:
            continue
        if isinstance(message, wire.Reply) and message.error:
            channel.close()
            raise raised(message.error)
        value = getattr(message, "value", None)
        if isinstance(value, dict):
            return value
