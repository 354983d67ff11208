"""`agentmon top`: the dashboard, or one look at what it shows."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import click

from agentmon.cli.console import emit, emit_json, example
from agentmon.errors import BadInput

_BACK_NS = 600 * 1_000_000_000  # refusals of the last ten minutes count from the start


@click.command(epilog=example("agentmon top", "agentmon top --once --json"))
@click.option("--once", is_flag=True, help="Print what it shows, once.")
@click.option("--json", "as_json", is_flag=True, help="With --once: one object.")
def top(once: bool, as_json: bool) -> None:
    """Watch bottles, budgets, requests, refusals and approvals in a terminal, and act on them.

    Keys: c cut, f freeze, r resume, k kill, b budget, a approve, x reject, / search, s sort, p pause, h high contrast,
    ? help, q quit; the mouse works too. Without the right to act, actions say so. NO_COLOR is honoured.
    """
    from agentmon.cli.control import ask, stream
    from agentmon.tui import source
    from agentmon.tui.model import Model

    model = Model()
    since = time.time_ns() - _BACK_NS
    if once:
        from agentmon.render import top as render

        for event in _stored(since):
            model.told(event)
        view = model.view(source.look(ask))
        if as_json:
            emit_json(render.as_object(view))
        else:
            emit(render.text(view))
        return
    if as_json:
        raise click.UsageError("--json goes with --once")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("the dashboard needs a terminal", "agentmon top --once, or --once --json for scripts")
    from agentmon.tui.app import Top

    app = Top(partial(source.look, ask), partial(source.act, ask), model)
    following = source.Following(stream, model.told, since)
    try:
        app.run()
    finally:
        following.stop()


def _stored(since_ns: int) -> Iterable[Mapping[str, Any]]:
    from agentmon.cli.books import stored_events
    from agentmon.errors import AgentmonError

    try:
        return list(stored_events("", "", since_ns))
    except AgentmonError:
        return []
