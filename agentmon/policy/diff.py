"""`policy diff`: what changes from one policy to another, by meaning: reach, depth, paths, routes, budgets. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import msgspec

from agentmon import wire
from agentmon.policy.change import is_removal
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.reach import Change, changes, private_changes
from agentmon.policy.rules import Depth, PolicySet, Rule, path_matches
from agentmon.policy.rules.grammar import SERVED
from agentmon.policy.rules.relate import patterns_above

_FACTS = (
    "shutdown", "guard", "observe", "home", "ro", "rw", "unix", "listen", "io_uring", "limits", "provider", "agent",
    "weights", "log", "unreadable",
)  # fmt: skip
_DEPTHS = {"": 0} | {depth.name.lower(): int(depth) for depth in Depth}
_TEXTUAL = (
    "added",
    "removed",
    "inspected_added",
    "inspected_removed",
    "removal",
)  # how it is written, not what it does


def diff(a: EffectivePolicy, b: EffectivePolicy) -> dict[str, Any]:
    """What changes from `a` to `b`.

    opened, closed        {"place", "proto", "ports", "before", "after"}: newly reachable, no longer reachable
    shallower, deeper     the same, of what both reach: how deep it was and will be checked
    paths                 {"place", "port", "opened", "closed"}: path patterns of a host whose requests are inspected
    private               {"opened", "closed"}: names that may lead to private addresses from now on, or no longer
    routes                {"host", "before", "after"}: None where there is none
    budgets_added, budgets_removed, changed      budgets; other keys: [before, after]
    added, removed, inspected_added, inspected_removed      rules and hosts as they are written
    removal               true: something that `a` allowed may be refused by `b`, so live flows may end
    same                  true: nothing of the above but how rules are written
    """
    before, after = PolicySet(a.rules, a.inspected), PolicySet(b.rules, b.inspected)
    found = changes(before, after)
    opened, closed = private_changes(before, after)
    data: dict[str, Any] = {
        "opened": [c.shown for c in found if not c.before],
        "closed": [c.shown for c in found if not c.after],
        "shallower": [c.shown for c in found if c.after and _depth(c) < 0],
        "deeper": [c.shown for c in found if c.before and _depth(c) > 0],
        "paths": _paths(before, after),
        "private": {"opened": opened, "closed": closed},
        "routes": _routes(a.routes, b.routes),
        "budgets_added": sorted(_budgets(b) - _budgets(a)),
        "budgets_removed": sorted(_budgets(a) - _budgets(b)),
        "changed": {
            f.name: [getattr(a, f.name), getattr(b, f.name)]
            for f in fields(EffectivePolicy)
            if f.name in _FACTS and getattr(a, f.name) != getattr(b, f.name)
        },
        "added": _texts(b.rules, a.rules),
        "removed": _texts(a.rules, b.rules),
        "inspected_added": sorted(set(b.inspected) - set(a.inspected)),
        "inspected_removed": sorted(set(a.inspected) - set(b.inspected)),
        "removal": is_removal(a, b),
    }
    return data | {"same": not any(_says(value) for key, value in data.items() if key not in _TEXTUAL)}


def _says(value: Any) -> bool:
    return any(value.values()) if isinstance(value, Mapping) else bool(value)


def _depth(change: Change) -> int:
    """Below 0: checked less deeply than before."""
    if not change.before or not change.after:
        return 0
    return _DEPTHS[change.after] - _DEPTHS[change.before]


def _texts(rules: Sequence[Rule], known: Sequence[Rule]) -> list[str]:
    there = frozenset(known)
    return [rule.text for rule in rules if rule not in there]


# ── paths ──


def _paths(before: PolicySet, after: PolicySet) -> list[dict[str, Any]]:
    hosts = {rule.host for rule in (*before.rules, *after.rules) if rule.path is not None}
    out = []
    for host in sorted(hosts):
        for port in sorted(SERVED):
            was, will = _open_paths(before, host, port), _open_paths(after, host, port)
            if was is None or will is None:  # opened or closed as a whole, and told so
                continue
            opened, closed = _more(will, was), _more(was, will)
            if opened or closed:
                out.append({"place": host, "port": port, "opened": opened, "closed": closed})
    return out


def _open_paths(policies: PolicySet, host: str, port: int) -> tuple[frozenset[str], frozenset[str]] | None:
    """(allowed, denied) path patterns; "*" where a rule allows all; None: the host is not reachable on this port."""
    above = set(patterns_above(host))
    mine = [rule for rule in policies.rules if rule.host in above and rule.depth_at("tcp", port)]
    if any(rule.deny and rule.path is None for rule in mine):
        return None
    allowed = frozenset(rule.path or "*" for rule in mine if not rule.deny)
    return (allowed, frozenset(rule.path or "" for rule in mine if rule.deny)) if allowed else None


def _more(these: tuple[frozenset[str], frozenset[str]], those: tuple[frozenset[str], frozenset[str]]) -> list[str]:
    """What `these` allow and `those` do not: patterns that none of theirs covers, and those that only they deny."""
    allowed = {path for path in these[0] if not any(_covers(other, path) for other in those[0])}
    return sorted(allowed) + sorted(path for path in those[1] if not any(_covers(other, path) for other in these[1]))


def _covers(wide: str, narrow: str) -> bool:
    return wide in {"*", narrow} or (narrow != "*" and path_matches(wide, narrow))


# ── routes, budgets ──


def _routes(before: Sequence[wire.Route], after: Sequence[wire.Route]) -> list[dict[str, Any]]:
    was, will = _placed(before), _placed(after)
    places = [place for place in sorted(was.keys() | will.keys()) if was.get(place) != will.get(place)]
    return [{"host": p[0], "before": _plain(was.get(p)), "after": _plain(will.get(p))} for p in places]


def _placed(routes: Sequence[wire.Route]) -> dict[tuple[str, int], wire.Route]:
    """By host and, since the first that covers a request decides, place among the routes of that host."""
    counts: Counter[str] = Counter()
    out = {}
    for route in routes:
        out[route.host, counts[route.host]] = route
        counts[route.host] += 1
    return out


def _plain(route: wire.Route | None) -> dict[str, Any] | None:
    if route is None:
        return None
    return {key: value for key, value in msgspec.to_builtins(route).items() if key != "host"}


def _budgets(policy: EffectivePolicy) -> set[str]:
    return {
        f"{s.scope} {s.name}: {b.provider} {b.tokens} per {b.per}{' (shadow)' if b.shadow else ''}"
        for s in policy.scopes
        for b in s.budgets
    }
