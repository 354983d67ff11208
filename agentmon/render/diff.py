"""`policy diff` for people: `+` more than before, `-` less, `~` otherwise, whatever way it is written. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmon.render.words import listed

_CHECKED = {"direct": "direct: address and port", "name": "by TLS name", "inspected": "inspected"}


def diff_text(data: Mapping[str, Any]) -> str:
    """:param data: from policy.diff.diff()."""
    if data["same"]:
        return "no difference" + (" but in how rules are written" if data["added"] or data["removed"] else "")
    lines = [f"+ {_place(c)}: newly reachable, {_CHECKED[c['after']]}" for c in data["opened"]]
    lines += [f"- {_place(c)}: no longer reachable" for c in data["closed"]]
    lines += [f"+ {_place(c)}: checked less deeply, {_depths(c)}" for c in data["shallower"]]
    lines += [f"- {_place(c)}: checked more deeply, {_depths(c)}" for c in data["deeper"]]
    for path in data["paths"]:
        lines += [f"+ {path['place']}:{path['port']}{_path(p)}: newly allowed path" for p in path["opened"]]
        lines += [f"- {path['place']}:{path['port']}{_path(p)}: no longer allowed path" for p in path["closed"]]
    lines += [f"+ {name}: may lead to private addresses" for name in data["private"]["opened"]]
    lines += [f"- {name}: may no longer lead to private addresses" for name in data["private"]["closed"]]
    lines += [_route(route) for route in data["routes"]]
    lines += [f"- budget {line}" for line in data["budgets_removed"]]
    lines += [f"+ budget {line}" for line in data["budgets_added"]]
    lines += [f"~ {key}: {_value(before)} → {_value(after)}" for key, (before, after) in data["changed"].items()]
    return "\n".join([*lines, "live flows that are no longer allowed end" if data["removal"] else "live flows go on"])


def _place(change: Mapping[str, Any]) -> str:
    ports = "all ports" if change["ports"] == "all" else change["ports"]
    return f"{change['place']} {change['proto'].upper()} {ports}"


def _depths(change: Mapping[str, Any]) -> str:
    return f"{_CHECKED[change['before']]} → {_CHECKED[change['after']]}"


def _path(pattern: str) -> str:
    return " all other paths" if pattern == "*" else pattern


def _route(route: Mapping[str, Any]) -> str:
    if route["before"] is None:
        return f"~ route {route['host']}: new, {_settings(route['after'])}"
    if route["after"] is None:
        return f"~ route {route['host']}: gone, it was {_settings(route['before'])}"
    return f"~ route {route['host']}: {_settings(route['before'])} → {_settings(route['after'])}"


def _settings(route: Mapping[str, Any]) -> str:
    return listed(f"{key} {_value(value)}" for key, value in sorted(route.items())) or "inspected, without limits"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "not limited" if value is None else str(value) or "none"
