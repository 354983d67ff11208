"""Deciding one destination by one list of rules. Pure: rules, names and addresses in, a verdict out.

The rules' tables are held by closures (a bound method would show them as its `__self__`), and a Judge is a tuple: there
is nothing to assign to.
"""

from __future__ import annotations

from collections import namedtuple

from agentmon.policy.rules import PolicySet, Rule, RuleError, canonical_host, parse_rule
from agentmon.policy.rules.hosts import LOOPBACK_NAMES
from agentmon.policy.rules.ranges import stripped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NamedTuple

    from agentmon.guard.targets import Address
    from agentmon.policy.rules import Decision

    class Judge(NamedTuple):
        rules: tuple[Rule, ...]
        texts: tuple[str, ...]
        by_name: Callable[[str, int, str], Decision]
        by_address: Callable[[Address, int, str], Decision]
        denies: Callable[[Address, int, str], Rule | None]
        resolves: Callable[[str], Decision]

    class Verdict(NamedTuple):
        reason: str
        host: str
        rule: str
        detail: str
else:
    Judge = namedtuple("Judge", "rules texts by_name by_address denies resolves")
    Verdict = namedtuple("Verdict", "reason host rule detail")

ALLOW = "allow"


def of_texts(texts: Iterable[str | Rule]) -> Judge:
    """A Judge of the rules that `texts` say; a `Rule` may stand for its text.

    :raises RuleError: with the place in the list, and what to write instead.
    """
    if isinstance(texts, str):
        raise RuleError("allow is one text, not a list of rules", f"write allow=[{texts!r}]")
    if not hasattr(texts, "__iter__"):
        raise RuleError(f"allow is {type(texts).__name__}, not a list of rules", 'write allow=["api.example.com:443"]')
    rules: dict[str, Rule] = {}
    for number, text in enumerate(texts):
        try:
            rule = text if isinstance(text, Rule) else parse_rule(text)
        except RuleError as e:
            raise RuleError(f"allow[{number}]: {e.message}", e.hint) from None
        rules.setdefault(rule.text, rule)
    return of_rules(tuple(rules.values()))


def of_rules(rules: tuple[Rule, ...]) -> Judge:
    policy = PolicySet(rules)
    texts = tuple(rule.text for rule in rules)

    def by_name(host: str, port: int, proto: str) -> Decision:
        return policy.decide_name(host, port, proto)

    def by_address(address: Address, port: int, proto: str) -> Decision:
        return policy.decide_address(address, port, proto)

    def denies(address: Address, port: int, proto: str) -> Rule | None:
        return policy.denies_address(address, port, proto)

    def resolves(host: str) -> Decision:
        return policy.resolves(host)

    return Judge(rules, texts, by_name, by_address, denies, resolves)


def named(judge: Judge, host: str, port: int, proto: str) -> Verdict:
    """May `host`, a name, be connected to?"""
    return _verdict(judge.by_name(host, port, proto), host)


def looked_up(judge: Judge, host: str) -> Verdict:
    """May `host` be looked up?"""
    return _verdict(judge.resolves(host), host)


def addressed(judge: Judge, address: Address, names: tuple[str, ...], port: int, proto: str) -> Verdict:
    """May `address` be connected to, by a rule for it, or for one of the `names` that led to it?"""
    decision = judge.by_address(address, port, proto)
    last = names[-1] if names else ""
    if decision.reason != "default":
        host = "" if decision.allowed else last
        return _verdict(decision, host, address)
    denied = None
    for name in reversed(names):
        found = judge.by_name(name, port, proto)
        if found.allowed:
            return _verdict(found, name)
        if found.reason == "deny" and denied is None:
            denied = _verdict(found, name)
    return denied or _verdict(decision, last, address)


def led_to(judge: Judge, host: str, address: Address, port: int, proto: str) -> Verdict:
    """May `address` be used for `host`, which is allowed itself? Not where no rule could, nor where one denies it."""
    why = stripped(address)
    if why is not None:
        return Verdict(why if why == "loopback" else "protected", host, "", why)
    rule = judge.denies(address, port, proto)
    return Verdict("deny", host, rule.text, "") if rule is not None else Verdict(ALLOW, host, "", "")


def usable(goals: tuple[Address, ...]) -> list[Address]:
    """Those that are not protected: loopback, link-local, metadata and their like."""
    return [goal for goal in goals if stripped(goal) is None]


def opens(judge: Judge, host: str, goals: tuple[Address, ...], port: int, proto: str) -> Verdict:
    """Is there a way to `host` at all, of those that its lookup gave? `port` 0: any; `proto` "": TCP or UDP."""
    left = usable(goals)
    if not left:
        return led_to(judge, host, goals[0], port, proto or "tcp")
    if port == 0:
        return Verdict(ALLOW, host, "", "")
    protos = (proto,) if proto else ("tcp", "udp")
    verdicts = [named(judge, host, port, each) for each in protos]
    for verdict in verdicts:
        if verdict.reason == ALLOW:
            return verdict
    for goal in left:
        for each in protos:
            if judge.by_address(goal, port, each).allowed:
                return Verdict(ALLOW, host, "", "")
    return verdicts[0]


def _verdict(decision: Decision, host: str, address: Address | None = None) -> Verdict:
    rule = decision.rule.text if decision.rule is not None else ""
    if decision.reason != "protected":
        return Verdict(decision.reason, host, rule, "")
    if address is None:
        return Verdict("loopback" if loopback_name(host) else "protected", host, rule, "these")
    why = stripped(address) or "protected"
    unspecified = why == "unspecified"  # Linux connects these to loopback
    return Verdict("loopback" if why == "loopback" or unspecified else "protected", host, rule, why)


def loopback_name(host: str) -> bool:
    """`localhost` and its kin, however it is spelled."""
    try:
        name = canonical_host(host)
    except RuleError:
        return False
    return name in LOOPBACK_NAMES or name.endswith(".localhost")


def spoken_of(judge: Judge, address: Address, names: tuple[str, ...]) -> Verdict:
    """Is `address` open on any port at all? For reverse lookups, whose question is the address."""
    if stripped(address) is not None:
        return _verdict(judge.by_address(address, 1, "tcp"), "", address)
    for rule in judge.rules:
        network = rule.network
        if not rule.deny and network is not None and network.version == address.version and address in network:
            return Verdict(ALLOW, "", rule.text, "")
    for name in names:
        if judge.resolves(name).allowed:
            return Verdict(ALLOW, name, "", "")
    return Verdict("default", names[-1] if names else "", "", "")
