"""What the agent reads when agentmon answers instead of the server: the contract's error objects and their headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentmon.wire import Denied

HEADERS = {"content-type": "application/json", "x-should-retry": "false", "cache-control": "no-store"}
Error = dict[str, Any]


def egress_denied(message: str, host: str, hint: str = "") -> Error:
    """403: refused by policy."""
    return {"type": "egress_denied", "message": message, "host": host, "hint": hint}


def budget_exhausted(spent: Mapping[str, Any]) -> Error:
    """403: `spent` has scope, provider, tokens, used (and more) of the budget that refused; `held` where that is all
    that is in the way."""
    budget = f"The {spent.get('scope', 'bottle')} budget for {spent.get('provider', 'this provider')}"
    used = f"{spent.get('used', 0)} of {spent.get('tokens', 0)} tokens used"
    if "held" in spent:
        message = f"{budget} is taken by requests in flight: {used}, {spent['held']} held. Send fewer at once."
    else:
        message = f"{budget} is spent: {used}. Retrying does not help; ask the operator."
    error: Error = {"type": "budget_exhausted", "message": message}
    for key in ("scope", "name", "provider", "tokens", "used", "held", "per"):
        if key in spent:
            error[key] = spent[key]
    return error


def spent_of(denied: Denied) -> dict[str, Any]:
    """The fields budget_exhausted() wants, from the ledger's answer."""
    spent = {
        "scope": denied.scope, "name": denied.name, "provider": denied.provider,
        "tokens": denied.tokens, "used": denied.used, "per": denied.per,
    }  # fmt: skip
    return spent | {"held": denied.held} if denied.waits else spent


def cut_off(spent: Mapping[str, Any], host: str, bottle: str) -> Error:
    """The error of a bottle that was cut: by its budget, or (nothing spent) by its operator."""
    if spent:
        return budget_exhausted(spent)
    hint = f"the operator can: agentmon resume {bottle}"
    return egress_denied("This bottle was cut off by its operator.", host, hint)


def inbound_blocked(host: str, rule: str, says: str) -> Error:
    """403: what the server answered was kept from the agent."""
    message = f"The answer of {host} {says} ({rule}); it was not passed on."
    return {"type": "inbound_blocked", "message": message, "host": host, "rule": rule}


def answer_unreadable(host: str, why: str) -> Error:
    """403: its usage cannot be read, and the policy has such answers broken off (`unreadable: cut`)."""
    message = f"The answer of {host} cannot be metered ({why}) and was broken off. Retrying does not help."
    hint = "the operator can: unreadable: settle, in the settings"
    return {"type": "answer_unreadable", "message": message, "host": host, "hint": hint}


def ledger_unavailable() -> Error:
    """503: what cannot be recorded is not forwarded."""
    return {
        "type": "ledger_unavailable",
        "message": "The usage ledger cannot be reached, so metered requests are refused until it answers.",
    }


def upstream_failed(host: str, why: str) -> Error:
    """502: permitted, but the server could not be reached or did not prove its name."""
    return {"type": "upstream_unreachable", "message": f"{host}: {why}", "host": host}


def event(error: Error) -> bytes:
    """The contract's event in a stream of no provider's."""
    return b"event: error\ndata: " + encode(error) + b"\n\n"


def encode(error: Error) -> bytes:
    """The JSON body around an error object."""
    return msgspec.json.encode({"error": error})
