"""Which route of a bottle a request goes by: the first, in the manifest's order, that covers it. Pure.

A host that no route names needs none; one that a route names needs a route that covers the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_plus

from agentmon import wire
from agentmon.policy.rules import path_matches
from agentmon.providers.match import host_matches


@dataclass(frozen=True, slots=True)
class Uncovered:
    """No route covers it: what the first of the host's routes that says no has against it."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What routes look at. `path`: normalised; `query`: as it came; `headers`: as they came, repeated ones too."""

    method: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def choose(routes: Sequence[wire.Route], host: str, asked: Asked) -> wire.Route | Uncovered | None:
    """:param host: canonical. None: no route is about this host."""
    first: Uncovered | None = None
    for route in routes:
        if not host_matches(route.host, host):
            continue
        against = _against(route, host, asked)
        if against is None:
            return route
        first = first or against
    return first


def _against(route: wire.Route, host: str, asked: Asked) -> Uncovered | None:
    method, path = asked.method, asked.path
    if route.methods and method not in route.methods:
        return Uncovered("method", f"Method {method[:20]} is not allowed for {host} by this bottle's routes.")
    if route.paths and not any(path_matches(pattern, path) for pattern in route.paths):
        return Uncovered("path", f"Path {path} is not allowed for {host} by this bottle's routes.")
    name = _unmet(route.headers, [(_dashed(key), value) for key, value in asked.headers]) if route.headers else None
    if name is not None:
        return Uncovered("header", f"Header {name} is missing, or not what this bottle's routes ask for at {host}.")
    name = (
        _unmet(route.query, _pairs(asked.query, "&")) or _unmet(route.query, _pairs(asked.query, "&;"))
        if route.query
        else None
    )
    if name is not None:
        return Uncovered("query", f"Query parameter {name} is not what this bottle's routes ask for at {host}.")
    return None


def _unmet(wanted: Mapping[str, str | None], found: Iterable[tuple[str, str]]) -> str | None:
    """The first condition that does not hold. A value that comes twice has to match twice: servers differ in which
    they read."""
    there: dict[str, list[str]] = {}
    for key, value in found:
        there.setdefault(key, []).append(value)
    for name, glob in wanted.items():
        values = there.get(name, [])
        if bool(values) is (glob is None) or not all(_glob(glob or "").fullmatch(value) for value in values):
            return name
    return None


def _pairs(query: str, separators: str) -> list[tuple[str, str]]:
    """Decoded; how `;` is read differs among servers, so both readings are asked for."""
    pieces = [piece.partition("=") for piece in re.split(f"[{separators}]", query) if piece]
    return [(unquote_plus(key), unquote_plus(value)) for key, _, value in pieces]


def _dashed(header: str) -> str:
    """Lower case, and `_` as `-`: some servers take them for the same."""
    return header.strip().lower().replace("_", "-")


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
