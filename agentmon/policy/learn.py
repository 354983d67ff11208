"""`policy learn`: the smallest set of rules that would have allowed what was seen, each with its evidence. Pure.

    events ─ learn_needs ─▶ needs ─ what the policy allows or denies already, how each host can be held ─▶ rules

A host is proposed by name where that can be, and never more of it than was used. What is not proposed is told with the
word for why: a reason of an event, or

    sorting   libc connects UDP while it sorts addresses   lookup    nothing connected after it
    own       an address of agentmon's services            others    too much at once to be told one by one
    no-port   no rule speaks of this protocol              no-place  the destination is not known
    held      its address is also a named host's           served    its host is held by name, on 443 and 80 only
    no-rule   it cannot be written as a rule               conflict  it contradicts a rule
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from agentmon.policy.learn_needs import Evidence, Need, Needs, Unmet, needs
from agentmon.policy.rules import Decision, Depth, PolicySet, Rule, RuleError, conflicts, parse_rule
from agentmon.policy.rules.grammar import SERVED

VERDICTS = frozenset({"observed", "refused"})
WIDER_FROM = 4  # names below one domain before a wildcard is mentioned
_SECURE = 443
_PATH_TOLD = 200  # characters of a path that an event has at most


@dataclass(frozen=True, slots=True)
class Known:
    """What the bottle's policy says already: rules, deny rules included, and the hosts that are inspected."""

    rules: tuple[Rule, ...] = ()
    inspected: tuple[str, ...] = ()


@dataclass(slots=True)
class _Plan:
    known: Known
    policies: PolicySet
    rules: dict[Rule, Evidence] = field(default_factory=dict)
    needs: dict[Rule, Need] = field(default_factory=dict)
    unmet: dict[Unmet, Evidence] = field(default_factory=dict)

    def leave(self, what: str, because: str, evidence: Evidence) -> None:
        self.unmet.setdefault(Unmet(what, because), Evidence()).merge(evidence)


def learn(
    bottle: str, events: Iterable[Mapping[str, Any]], known: Known, verdicts: frozenset[str] = VERDICTS
) -> dict[str, Any]:
    """{"bottle", "events", "first", "last", "verdicts", "rules", "wider", "not_proposed"}; the same whatever the order
    of the events.

    :param events: the contract's JSON objects, of this bottle.
    """
    found = needs(events, verdicts)
    plan = _Plan(known, PolicySet(known.rules, known.inspected), unmet=dict(found.unmet))
    _propose(plan, found)
    return {
        "bottle": bottle,
        "events": found.events,
        "first": found.first,
        "last": found.last,
        "verdicts": sorted(verdicts),
        "rules": [_shown_rule(rule, plan.rules[rule]) for rule in sorted(plan.rules, key=lambda r: _order(plan, r))],
        "wider": _wider(plan),
        "not_proposed": [_shown_unmet(unmet, plan.unmet[unmet]) for unmet in sorted(plan.unmet)],
    }


def _propose(plan: _Plan, found: Needs) -> None:
    open_needs = {need: seen for need, seen in found.needs.items() if _is_open_question(plan, need, seen)}
    direct = {need.host for need in open_needs if need.host and not need.served}
    direct |= {n.host for n in open_needs if n.host and plan.policies.resolves(n.host).depth is Depth.DIRECT}
    by_name = {need.host for need in open_needs if need.host} - direct
    for need, seen in sorted(open_needs.items()):
        holder = min((seen.names - {need.host}) & by_name, default="")
        if need.host in direct and _is_served(plan, need.host):
            plan.leave(need.where, "served", seen)
        elif holder and need.host not in by_name:
            plan.leave(f"{need.where} ({holder})", "held", seen)
        else:
            _write(plan, need, seen, direct=need.host in direct)
    _drop_conflicts(plan)


def _is_open_question(plan: _Plan, need: Need, seen: Evidence) -> bool:
    """Whether the policy neither allows it by now nor denies it."""
    said = _decide(plan.policies, need)
    if said.reason == "deny" and said.rule is not None:
        plan.leave(f"{need.where} ({said.rule.text})", "deny", seen)
    elif said.reason == "protected":
        plan.leave(need.where, "protected", seen)
    return said.reason == "default"


def _decide(policies: PolicySet, need: Need) -> Decision:
    if need.address:
        return policies.decide_address(ip_address(need.address), need.port, need.proto)
    if need.path and need.served:
        return policies.decide_request(need.host, need.port, need.path)
    return policies.decide_name(need.host, need.port, need.proto)


def _is_served(plan: _Plan, host: str) -> bool:
    """Whether the host has to be, or is, answered with an address of relay or proxy."""
    resolved = plan.policies.resolves(host)
    return plan.policies.is_inspected(host) or (resolved.allowed and resolved.depth is not Depth.DIRECT)


def _write(plan: _Plan, need: Need, seen: Evidence, *, direct: bool) -> None:
    path = need.path if plan.policies.decide_name(need.host, need.port).allowed else ""
    place = need.host or (f"[{need.address}]" if ":" in need.address else need.address)
    if need.served and path:
        text = f"{'https' if need.port == _SECURE else 'http'}://{place}{path}"
    elif need.proto == "udp":
        text = f"udp://{place}:{need.port}"
    elif direct and need.port in SERVED:
        text = f"tcp://{place}:{need.port}"
    else:
        text = f"{place}:{need.port}"
    try:
        if "*" in path or len(path) >= _PATH_TOLD:
            raise RuleError("the rule would allow more, or less, than this path")
        rule = parse_rule(text)
    except RuleError:
        plan.leave(need.where, "no-rule", seen)
        return
    plan.needs[rule] = need
    plan.rules.setdefault(rule, Evidence()).merge(seen)


def _drop_conflicts(plan: _Plan) -> None:
    for conflict in conflicts((*plan.known.rules, *plan.rules), plan.known.inspected):
        wrong = [r for r in (conflict.direct, conflict.served) if isinstance(r, Rule) and r in plan.rules]
        for rule in wrong[:1]:
            plan.leave(plan.needs[rule].where, "conflict", plan.rules.pop(rule))


def _order(plan: _Plan, rule: Rule) -> tuple[Any, ...]:
    """Names by their labels from the right, then addresses."""
    need = plan.needs[rule]
    if need.host:
        return (0, need.host.split(".")[::-1], need.proto, need.port, rule.text)
    address = ip_address(need.address)
    return (1, [str(address.version)], int(address), need.port, rule.text)


def _wider(plan: _Plan) -> list[dict[str, Any]]:
    """Wildcards that would cover several rules alike: to be mentioned, not to be proposed."""
    below: dict[tuple[str, str], set[str]] = {}
    for rule, need in plan.needs.items():
        parent = need.host.partition(".")[2]
        if rule in plan.rules and "." in parent and rule.path is None:
            below.setdefault((parent, rule.text.replace(need.host, f"*.{parent}", 1)), set()).add(need.host)
    return [{"rule": text, "names": sorted(n)} for (_, text), n in sorted(below.items()) if len(n) >= WIDER_FROM]


def _shown_rule(rule: Rule, seen: Evidence) -> dict[str, Any]:
    return {
        "rule": rule.text,
        "depth": rule.depth.name.lower(),
        **_shown(seen),
        "assumed_port": seen.assumed,
        "or": sorted(seen.either),
    }


def _shown_unmet(unmet: Unmet, seen: Evidence) -> dict[str, Any]:
    return {"what": unmet.what, "because": unmet.because, "rule": seen.rule, **_shown(seen)}


def _shown(seen: Evidence) -> dict[str, Any]:
    return {
        "count": seen.count,
        "first": seen.first,
        "last": seen.last,
        "processes": sorted(seen.processes),
        "layers": sorted(seen.layers),
        "verdicts": sorted(seen.verdicts),
    }
