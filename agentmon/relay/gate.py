"""May this bottle speak TLS to this name through the relay? Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentmon.policy.rules import Depth
from agentmon.relay.hello import ALERT_ACCESS_DENIED, ALERT_UNRECOGNIZED_NAME
from agentmon.views import View

DENIED = ALERT_UNRECOGNIZED_NAME


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` as in a policy's Decision (default, deny, protected), or closed, budget, cut, inspected, direct."""

    allowed: bool
    reason: str = ""
    alert: int = 0
    rule: str = ""
    observed: bool = False


def decide(view: View, host: str, port: int) -> Verdict:
    """:param host: canonical, from the hello."""
    if view.mode == "closed":
        return Verdict(False, "closed", ALERT_ACCESS_DENIED)
    if view.mode == "cut":
        return Verdict(False, view.cut_reason, ALERT_ACCESS_DENIED)
    decision = view.policy.decide_name(host, port)
    rule = "" if decision.rule is None else decision.rule.text
    if decision.depth is Depth.INSPECTED:
        # The resolver names the proxy for it: who brings it here tries to have it pass unseen.
        return Verdict(False, "inspected", ALERT_ACCESS_DENIED, rule)
    if decision.depth is Depth.DIRECT:
        # Its own address is open for it; nothing is dialled for what no rule holds to its name.
        return Verdict(False, "direct", ALERT_ACCESS_DENIED, rule)
    if decision.allowed:
        return Verdict(True, rule=rule)
    if view.mode == "observe" and decision.reason == "default":
        return Verdict(not view.policy.is_inspected(host), "default", ALERT_ACCESS_DENIED, observed=True)
    return Verdict(False, decision.reason, DENIED, rule)
