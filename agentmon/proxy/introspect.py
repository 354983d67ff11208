"""http://agentmon.internal: what a bottle may know of itself. Pure; the budget's figures are handed in."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmon.proxy.bottles import Bottle

BUDGET = "/budget"


def tell(bottle: Bottle, path: str, totals: list[dict[str, Any]] | None) -> tuple[int, bytes]:
    """(status, JSON body). `totals`: the ledger's figures for /budget, None while it is away."""
    view = bottle.view
    if path == "/healthz":
        return 200, msgspec.json.encode({"status": "ok", "bottle": view.bottle, "mode": mode(bottle)})
    if path == "/allowlist":
        return 200, msgspec.json.encode({"bottle": view.bottle, "mode": mode(bottle), "rules": list(view.rules)})
    if path == BUDGET:
        if totals is None:
            return 503, msgspec.json.encode(
                {"error": {"type": "ledger_unavailable", "message": "The usage ledger cannot be reached."}}
            )
        return 200, msgspec.json.encode({"bottle": view.bottle, "cut": bottle.cut, "budgets": totals})
    known = ["/allowlist", BUDGET, "/healthz"]
    return 404, msgspec.json.encode(
        {"error": {"type": "not_found", "message": "No such page.", "hint": f"there are {', '.join(known)}"}}
    )


def mode(bottle: Bottle) -> str:
    return "cut" if bottle.cut else bottle.view.mode
