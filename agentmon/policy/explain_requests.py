"""What the proxy would say to requests to a host that it decrypts: its own decision, asked for every method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentmon import wire
from agentmon.credentials.secret import Secret
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import PolicySet
from agentmon.providers import match
from agentmon.providers.declaration import Provider
from agentmon.proxy.bottles import Bottle
from agentmon.proxy.decide import Allow, Facts, Refuse, decide

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")  # HEAD passes where nothing else does: it says nothing
_PLAIN_PORT = 80


def request(
    policy: EffectivePolicy, host: str, port: int, path: str, *, tls: bool, providers: Mapping[str, Provider]
) -> dict[str, Any]:
    """{"methods": those that pass, if not all of METHODS}, or verdict, reason, message and hint of the refusal."""
    view = wire.BottleView(
        slot=0, bottle=policy.bottle, run="", addr4="", mode="observe" if policy.observe else "enforce",
        inspected=policy.inspected, routes=tuple(_any_request(route) for route in policy.routes),
    )  # fmt: skip
    given = {route.auth_credential: Secret("-") for route in policy.routes if route.auth_credential}
    bottle = Bottle(view, PolicySet(policy.rules, policy.inspected), {}, given)
    asked = tuple(dict.fromkeys((*_named(policy, host, providers), *METHODS)))
    said = {m: decide(bottle, Facts(m, path, port, host if tls else None, (host,)), providers) for m in asked}
    passing = [method for method, verdict in said.items() if isinstance(verdict, Allow)]
    if passing:
        limits = _limits(policy, host, ("headers", "query"))
        found: dict[str, Any] = {} if set(METHODS) <= set(passing) else {"methods": passing}
        return found | ({"requests": limits} if limits else {})
    refusal = next(verdict for verdict in said.values() if isinstance(verdict, Refuse))
    return {
        "verdict": "refused",
        "reason": refusal.reason,
        "layer": "proxy",
        "message": str(refusal.error["message"]),
        "hint": refusal.hint,
    }


def connection(policy: EffectivePolicy, host: str, *, tls: bool, providers: Mapping[str, Provider]) -> dict[str, Any]:
    """{"requests": what of them passes} where the connection itself does; a refusal where none can."""
    provider = match.owner(providers, host)
    if provider is not None and not tls:
        return request(policy, host, _PLAIN_PORT, "/", tls=False, providers=providers)
    limits = _limits(policy, host, ("methods", "paths", "headers", "query"))
    if provider is not None:
        limits += [f"{e.method} {e.path}: {e.metering.value}" for e in provider.endpoints]
        limits.append(f"all others of {provider.name}: refused, since they cannot be metered")
    return {"requests": limits} if limits else {}


def _any_request(route: wire.Route) -> wire.Route:
    """The route for a request of which no header and no query is known."""
    return msgspec.structs.replace(route, headers={}, query={})


def _limits(policy: EffectivePolicy, host: str, keys: tuple[str, ...]) -> list[str]:
    """What the host's routes hold requests to, one line for each of these keys that one has."""
    held = [
        (key, getattr(route, key)) for route in policy.routes if match.host_matches(route.host, host) for key in keys
    ]
    return [f"{key}: {', '.join(_shown(values))}" for key, values in held if values]


def _shown(values: Iterable[str] | Mapping[str, str | None]) -> list[str]:
    if not isinstance(values, Mapping):
        return list(values)
    return [f"no {name}" if glob is None else f"{name}={glob}" for name, glob in values.items()]


def _named(policy: EffectivePolicy, host: str, providers: Mapping[str, Provider]) -> list[str]:
    """Methods that a route or the provider's declaration names: theirs are the telling refusals."""
    provider = match.owner(providers, host)
    named = [method for route in policy.routes if match.host_matches(route.host, host) for method in route.methods]
    return named + [e.method for e in (provider.endpoints if provider else ()) if e.method not in {"*", "HEAD"}]
