"""What a bottle is told about a name: one pure decision, before anything is asked.

    closed, or no host name      denied
    cut                          names the proxy serves: proxy (it explains); every other: denied, reason budget or cut
    allowed, name rule           relay's address            inspected: proxy's address
    allowed, direct              to be asked upstream
    unlisted, mode observe       to be asked upstream, observed
    anything else                denied

Names are compared in canonical form; paths play no part here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from agentmon.policy.rules import Depth
from agentmon.views import View


class Kind(Enum):
    DENIED = "denied"
    SERVICE = "service"
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Plan:
    """`addresses`: of a service, both families. `exact`: private addresses are acceptable. `observed`: only observe
    mode lets it pass. `reason` and `rule` say why it is denied."""

    kind: Kind
    addresses: tuple[str, ...] = ()
    exact: bool = False
    observed: bool = False
    reason: str = ""
    rule: str = ""


def decide(name: str, view: View, internal: Mapping[str, str]) -> Plan:
    """:param name: canonical, or "" for what cannot be a host name. :param internal: agentmon's own names → "proxy"."""
    services = {"proxy": view.wire.proxy, "relay": view.wire.relay}
    if view.mode == "closed" or not name:
        return Plan(Kind.DENIED, reason="bad-name" if view.mode != "closed" else "closed")
    if name in internal:
        return Plan(Kind.SERVICE, services[internal[name]])
    decision = view.policy.resolves(name)
    rule = "" if decision.rule is None else decision.rule.text
    if view.mode == "cut" and (not decision.allowed or decision.depth is not Depth.INSPECTED):
        return Plan(Kind.DENIED, reason=view.cut_reason)
    if not decision.allowed:
        if view.mode == "observe" and decision.reason == "default" and not view.policy.is_inspected(name):
            return Plan(Kind.UPSTREAM, observed=True)
        return Plan(Kind.DENIED, reason=decision.reason, rule=rule)
    if decision.depth is Depth.INSPECTED:
        return Plan(Kind.SERVICE, services["proxy"], rule=rule)
    if decision.depth is Depth.NAME:
        return Plan(Kind.SERVICE, services["relay"], rule=rule)
    return Plan(Kind.UPSTREAM, exact=view.policy.names_exactly(name), rule=rule)
