"""Which route of a bottle a request goes by: the first, in the manifest's order, that covers it. Pure.

A host that no route names needs none; one that a route names needs a route that covers the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentmon import wire
from agentmon.policy.rules import path_matches
from agentmon.providers.match import host_matches


@dataclass(frozen=True, slots=True)
class Uncovered:
    """No route covers it: what the first of the host's routes that says no has against it."""

    reason: str
    message: str


def choose(routes: Sequence[wire.Route], host: str, method: str, path: str) -> wire.Route | Uncovered | None:
    """:param host: canonical. :param path: normalised. None: no route is about this host."""
    first: Uncovered | None = None
    for route in routes:
        if not host_matches(route.host, host):
            continue
        against = _against(route, host, method, path)
        if against is None:
            return route
        first = first or against
    return first


def _against(route: wire.Route, host: str, method: str, path: str) -> Uncovered | None:
    if route.methods and method not in route.methods:
        return Uncovered("method", f"Method {method[:20]} is not allowed for {host} by this bottle's routes.")
    if route.paths and not any(path_matches(pattern, path) for pattern in route.paths):
        return Uncovered("path", f"Path {path} is not allowed for {host} by this bottle's routes.")
    return None
