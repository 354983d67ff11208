"""What `policy learn` reads: a bottle's events and its policy, from the daemon, or from what the last one stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentmon.cli.control import ask, reachable, stream
from agentmon.errors import AgentmonError, BadInput
from agentmon.policy.change import placed
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.learn import Known, learn
from agentmon.policy.merge import SETTINGS_ORIGIN
from agentmon.policy.rules import parse_rule
from agentmon.providers.declaration import Provider
from agentmon.render.learn import learned_manifest


def learned(
    bottle: str,
    since_ns: int,
    verdicts: frozenset[str],
    base: tuple[Path, EffectivePolicy] | None,
    providers: dict[str, Provider],
) -> dict[str, Any]:
    """As policy.learn.learn(), with "manifest".

    :param base: the manifest the bottle ran with, which the new one extends.
    :raises BadInput: nothing is known of such a bottle. :raises AgentmonError: its events cannot be read.
    """
    running = reachable()
    seen = list(_events(running, bottle=bottle, since_ns=since_ns))
    known, kept = (_known(base[1]), None) if base else _running(bottle) if running else (None, None)
    if not seen and known is None:
        raise BadInput(
            f"no events of a bottle {bottle!r} are stored", "run it with --observe first; agentmon events shows what is"
        )
    if known is None:
        known = Known((), tuple(sorted(host for p in providers.values() for host in p.hosts)))
    found = learn(bottle, seen, known, verdicts)
    extends = str(base[0].absolute()) if base else ""
    lost = _lost(running, str(found["first"]), str(found["last"]), bottle)
    return found | {"lost": lost, "manifest": learned_manifest(found, extends=extends, kept=kept, lost=lost)}


def _events(running: bool, **args: Any) -> Iterator[dict[str, Any]]:
    if running:
        answers = stream("events", follow=False, **args)
        return (event for event in answers if isinstance(event, dict) and "kind" in event)
    from agentmon.cli.books import stored_events

    return stored_events(args.get("bottle", ""), args.get("kind", ""), args.get("since_ns", 0))


def _known(policy: EffectivePolicy) -> Known:
    return Known(tuple(this.rule for this in placed(policy)), policy.inspected)


def _running(bottle: str) -> tuple[Known, Sequence[str]] | tuple[None, None]:
    """What a running bottle's policy says, and of it what a manifest has to repeat; (None, None): it has ended."""
    try:
        said = ask("explain", bottle=bottle, dest=None)
    except BadInput:
        return None, None
    rules = tuple(parse_rule(str(rule["rule"])) for rule in said["rules"])
    kept = [str(r["rule"]) for r in said["rules"] if not str(r["origin"]).startswith(SETTINGS_ORIGIN)]
    return Known(rules, tuple(said["inspected"])), kept


def _lost(running: bool, first: str, last: str, bottle: str) -> int:
    """Events of that time that could not be recorded, where this user may know; of most it is not known whose."""
    count = 0
    with contextlib.suppress(AgentmonError):
        for event in _events(running, kind="lost"):
            if first <= str(event["ts"]) <= last and event.get("bottle") in {None, bottle}:
                count += int(event.get("count") or 1)
    return count
