"""A running bottle's policy, made again from settings and manifests as they are now. Pure but for reading manifests.

in force at once     rules, routes, what is decrypted, budgets, shutdown, limits, log
at the next start    what the job was started with (NEXT_START); budgets of manifests that it did not extend
as it was            options, and what `agentmon allow` and `deny` changed since: they are put on top again
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from agentmon import wire
from agentmon.errors import BadInput, Refused
from agentmon.policy import change, manifest, merge
from agentmon.policy.checks import Checks
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings
from agentmon.providers.declaration import Provider

NEXT_START = ("guard", "home", "ro", "rw", "unix", "listen", "io_uring", "weights")
_HOST = frozenset({("host", "host"), ("ceiling", "host")})


@dataclass(frozen=True, slots=True)
class Again:
    """`notes`: what of the files is not in force yet, or of `allow` and `deny` not any more; a sentence each."""

    policy: EffectivePolicy
    notes: tuple[str, ...] = ()


def again(policy: EffectivePolicy, settings: Settings, providers: Mapping[str, Provider]) -> Again:
    """The policy as it would be now, in one piece; the same where nothing is known of what it was made of.

    :raises BadInput: with file, line and key. :raises Refused: what the bottle asked for is not given any more.
    """
    origin = policy.origin
    if origin is None:
        return Again(policy)
    read = manifest.reader(origin.texts, settings.bottles_dir)
    chain = manifest.load_chain(origin.file, settings.bottles_dir, read) if origin.file else None
    made = merge.effective(settings, chain, origin.options, providers, Checks.OF_RUNNING)
    made, notes = _changed(replace(made, origin=origin), origin.changes)
    notes += tuple(
        f"{key}: changed in the files, in force when the bottle is started again"
        for key in NEXT_START
        if getattr(made, key) != getattr(policy, key)
    )
    scopes, waiting = _scopes(policy.scopes, made.scopes)
    kept = {key: getattr(policy, key) for key in NEXT_START}
    return Again(replace(made, scopes=scopes, **kept), notes + waiting)


def _changed(policy: EffectivePolicy, changes: tuple[str, ...]) -> tuple[EffectivePolicy, tuple[str, ...]]:
    """With what was allowed and denied since, as far as that is still possible."""
    notes: tuple[str, ...] = ()
    for one in changes:
        try:
            policy = change.with_rule(policy, one[1:], one[0] == "-")
        except (BadInput, Refused) as error:
            notes += (f"agentmon allow {one[1:]}: without effect now: {error.message}",)
    return policy, notes


def _scopes(
    old: tuple[wire.ScopeDef, ...], new: tuple[wire.ScopeDef, ...]
) -> tuple[tuple[wire.ScopeDef, ...], tuple[str, ...]]:
    """A run is charged to the scopes it began with; in these, budgets change. Where a budget would need another scope,
    the bottle's own stay as they were, and the host's change."""
    charged = {(d.scope, d.name) for d in old}
    given = {(d.scope, d.name): d for d in new}
    others = [f"{d.scope} {d.name}" for d in new if d.budgets and (d.scope, d.name) not in charged]
    out = []
    for d in old:
        key = d.scope, d.name
        if key in _HOST or (not others and key in given):
            out.append(given.get(key, d))
        elif others or d.scope == "parent":  # other bottles are charged to a parent, too
            out.append(d)
        else:
            out.append(wire.ScopeDef(d.scope, d.name))
    what = "in force when the bottle is started again; its budgets stay as they were"
    return tuple(out), (f"budget of {', '.join(others)}: {what}",) if others else ()
