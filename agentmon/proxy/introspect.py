"""http://agentmon.internal: what a bottle may know of itself. Whose page it is, the connection's source says, and
nothing in the request. Pure, but for look(), which asks ledger and resolver.

/allowlist  its rules and routes: methods, paths, which kind of credential; names of no secret, values of no condition
/budget     the budgets that it is charged to          /healthz  whether what serves it is there
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from agentmon import wire
from agentmon.lookup import Lookups
from agentmon.proxy import bodies
from agentmon.proxy.bottles import Bottle
from agentmon.proxy.exchange import Accounts

ALLOWLIST, BUDGET, HEALTH = "/allowlist", "/budget", "/healthz"
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """`totals`: the ledger's figures, None while it is away. `resolver`: whether it answers."""

    totals: list[dict[str, Any]] | None = None
    resolver: bool = True


async def look(path: str, slot: int, accounts: Accounts, lookups: Lookups) -> Seen:
    """What a page needs of others; within _LOOK_S."""
    if path not in {BUDGET, HEALTH}:
        return Seen()
    totals, resolver = await asyncio.gather(_totals(slot, accounts), lookups.alive(_LOOK_S))
    return Seen(totals, resolver)


async def _totals(slot: int, accounts: Accounts) -> list[dict[str, Any]] | None:
    try:
        async with asyncio.timeout(_LOOK_S):
            return await accounts.totals(slot)
    except TimeoutError:
        return None


def tell(bottle: Bottle, method: str, path: str, seen: Seen) -> tuple[int, bytes, dict[str, str]]:
    """(status, JSON body, headers)."""
    if method not in {"GET", "HEAD"}:
        error = {"type": "method_not_allowed", "message": f"{method[:20]}: these pages are only read."}
        return 405, bodies.encode(error), bodies.HEADERS | {"allow": "GET, HEAD"}
    status, value = _page(bottle, path, seen)
    return status, msgspec.json.encode(value), bodies.HEADERS


def _page(bottle: Bottle, path: str, seen: Seen) -> tuple[int, dict[str, Any]]:
    view, whose = bottle.view, {"bottle": bottle.view.bottle, "mode": mode(bottle)}
    if path == HEALTH:
        services = {"ledger": _up(seen.totals is not None), "resolver": _up(seen.resolver)}
        good = set(services.values()) == {"ok"}
        return 200, {"status": "ok" if good else "degraded", **whose, "services": services}
    if path == ALLOWLIST:
        return 200, {**whose, "rules": list(view.rules), "routes": [_route(route) for route in view.routes]}
    if path == BUDGET:
        if seen.totals is None:
            message = "The usage ledger cannot be reached."
            return 503, {"error": {"type": "ledger_unavailable", "message": message}}
        return 200, {**whose, "cut": bottle.cut, "budgets": seen.totals}
    hint = f"there are {ALLOWLIST}, {BUDGET}, {HEALTH}"
    return 404, {"error": {"type": "not_found", "message": "No such page.", "hint": hint}}


def _route(route: wire.Route) -> dict[str, Any]:
    """What a client needs to know to be let through; conditions by their names."""
    auth = "replaced" if route.auth_credential else "none" if route.auth_none else "own"
    shown: dict[str, Any] = {"host": route.host, "auth": auth}
    shown |= {"methods": list(route.methods) or ["*"], "paths": list(route.paths) or ["/*"]}
    for key, conditions in (("headers", route.headers), ("query", route.query)):
        if conditions:
            shown[key] = {name: "absent" if glob is None else "required" for name, glob in conditions.items()}
    return shown | {"outbound": route.outbound, "inbound": route.inbound, "git_fetch": route.git_fetch}


def _up(answers: bool) -> str:
    return "ok" if answers else "unavailable"


def mode(bottle: Bottle) -> str:
    return "cut" if bottle.cut else bottle.view.mode
