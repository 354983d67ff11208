"""`agentmon posture`, and the same as `agentmon self-check egress`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
import msgspec

from agentmon.cli.console import emit, emit_json, example, notice
from agentmon.errors import AgentmonError

_EXAMPLE = example("sudo agentmon posture", "sudo agentmon posture --canary --json")


def _options(command: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One object; docs/posture.schema.json describes it."),
        click.option("--markdown", is_flag=True, help="Markdown."),
        click.option("--canary", is_flag=True, help="Also let a throw-away bottle attack itself (root)."),
    ):
        command = option(command)
    return command


def _posture(canary: bool, markdown: bool, as_json: bool) -> int:
    """Look at what agentmon's promises rest on, on this host, now: kernel, network, files, services, every bottle.

    Exit status 0: all is good; 1: something to look at, or something that could not be seen; 2: a failure. Works
    without a daemon and before installation; without root much is 'unknown'.
    """
    from agentmon.posture import judge
    from agentmon.posture.gather import gather
    from agentmon.render import posture as render

    if markdown and as_json:
        raise click.UsageError("--json and --markdown: choose one")
    began_ns = time.monotonic_ns()
    found = judge.findings(gather(_ask))
    attempts = None
    if canary:
        from agentmon.posture import canary as bird

        finding, attempts = bird.run(_events)
        found.append(finding)
    took_ms = (time.monotonic_ns() - began_ns) // 1_000_000
    if as_json:
        emit_json(msgspec.to_builtins(render.as_object(found, attempts, time.time_ns(), took_ms)))
    elif markdown:
        emit(render.markdown(found, attempts))
    else:
        emit(render.text(found, attempts))
        if not canary:
            notice("nothing was tried against a bottle: --canary does")
    return judge.exit_code(found)


@click.command(epilog=_EXAMPLE, help=_posture.__doc__)
@_options
def posture(canary: bool, markdown: bool, as_json: bool) -> int:
    return _posture(canary, markdown, as_json)


@click.group("self-check", epilog=example("sudo agentmon self-check egress"))
def self_check() -> None:
    """The same report, by the name that the guard's users know."""


@self_check.command("egress", epilog=example("sudo agentmon self-check egress --canary"), help=_posture.__doc__)
@_options
def egress(canary: bool, markdown: bool, as_json: bool) -> int:
    return _posture(canary, markdown, as_json)


def _ask(op: str) -> Any:
    from agentmon.cli.control import ask

    return ask(op)


def _events(bottle: str) -> Iterable[Mapping[str, Any]]:
    from agentmon.cli.books import stored_events
    from agentmon.cli.control import reachable, stream

    if reachable():
        return [e for e in stream("events", bottle=bottle, since_ns=0, follow=False) if isinstance(e, dict)]
    try:
        return list(stored_events(bottle, "", 0))
    except AgentmonError:
        return []
