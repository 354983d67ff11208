"""What a policy means, as data: `policy check`, `policy explain`. explain_text.py prints it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentmon.errors import BadInput
from agentmon.policy import explain_own, explain_requests
from agentmon.policy.change import placed
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.manifest import load_chain
from agentmon.policy.merge import Options, effective
from agentmon.policy.rules import Decision, Depth, Index, PolicySet, Rule, RuleError, covers, parse_rule, stripped
from agentmon.policy.rules.grammar import SERVED
from agentmon.policy.rules.ports import ALL, text_of
from agentmon.policy.settings import Settings
from agentmon.providers.declaration import Provider

CHECKED = {
    Depth.DIRECT: "address, port and protocol, in the kernel",
    Depth.NAME: "the TLS server name, by the relay; the connection is not decrypted",
    Depth.INSPECTED: "every request: host, method, path and token usage, by the proxy",
}
UNCHECKED = {
    Depth.DIRECT: "who answers there: any service on these addresses, another customer's of a shared network included",
    Depth.NAME: "what is inside TLS: other hosts of the same server (fronting), paths, content, usage",
    Depth.INSPECTED: "what a request that is allowed says (no scan for secrets yet), and what the server does with it",
}
_LAYERS = {Depth.DIRECT: "bpf, host-nft", Depth.NAME: "relay", Depth.INSPECTED: "proxy"}
GUARD = {
    "off": ("nothing: processes cannot register as guarded", "which native code connects on its own"),
    "observe": (
        "what a process does past its agentmon.guard is reported as a bypass, and goes on as the rules allow",
        "processes without the guard: the rules alone judge them",
    ),
    "strict": (
        "what a process does past its agentmon.guard is refused, whatever the rules allow",
        "processes without the guard: the rules alone judge them",
    ),
}
"""By mode: what it checks, what it does not."""
_PLAIN_PORT = 80
_SLASHES = 3  # of a URL of the front page
_DIRECT_TCP = 443  # the port that is meant where a destination names none


def check(path: Path | str, settings: Settings, providers: Mapping[str, Provider]) -> dict[str, Any]:
    """A manifest and its parents, validated as `run` would: what it opens and what in it is without effect.

    :raises BadInput: with file, line, key and what was expected.
    """
    chain = load_chain(path, settings.bottles_dir)
    policy = effective(settings, chain, Options(name=chain[0].bottle_name or "bottle"), providers)
    return {
        "file": chain[0].file,
        "ok": True,
        "sources": list(policy.sources),
        "rules": len(policy.rules),
        "warnings": warnings(policy),
    }


def warnings(policy: EffectivePolicy) -> list[str]:
    """What is probably not meant: rules and routes without effect."""
    found = []
    allow = Index(rule for rule in policy.rules if not rule.deny)
    deny = Index(rule for rule in policy.rules if rule.deny)
    for this in placed(policy):
        if this.rule.deny:
            continue
        at = f"{this.origin}: " if this.origin else ""
        shadow = next((d for d in deny.around(this.rule) if covers(d, this.rule)), None)
        wider = next((a for a in allow.around(this.rule) if covers(a, this.rule) and not covers(this.rule, a)), None)
        if shadow is not None:
            found.append(f"{at}{this.rule.text} has no effect: {shadow.text} denies it")
        elif wider is not None:
            found.append(f"{at}{this.rule.text} adds nothing: {wider.text} allows it already")
    hosts = [rule.host for rule in policy.rules if rule.host and not rule.deny]
    policies = PolicySet(policy.rules, policy.inspected)
    for route in policy.routes:
        host = route.host
        reached = any(covers_host(pattern, host) or covers_host(host, pattern) for pattern in hosts)
        if not reached or (not host.startswith("*.") and not policies.resolves(host)):
            found.append(f"route {host} has no effect: no rule allows the host (add {host} to allow:)")
    return found


def covers_host(pattern: str, host: str) -> bool:
    """True where a host pattern covers a host or a narrower pattern."""
    return pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def explain(
    policy: EffectivePolicy, dest: str | None = None, providers: Mapping[str, Provider] | None = None
) -> dict[str, Any]:
    """Each rule with its depth and what it does not check; with `dest`, what happens to it and which layer decides.

    :raises BadInput: for a destination that is none.
    """
    if dest is not None:
        return {"bottle": policy.bottle, "dest": destination(policy, dest, providers or {})}
    policies = PolicySet(policy.rules, policy.inspected)
    return {
        "bottle": policy.bottle,
        "sources": list(policy.sources),
        "rules": [_rule(policies, p.rule, p.origin) for p in placed(policy)],
        "inspected": list(policy.inspected),
        "budgets": [
            {
                "scope": s.scope,
                "name": s.name,
                "budgets": [{f: getattr(b, f) for f in b.__struct_fields__} for b in s.budgets],
            }
            for s in policy.scopes
        ],
        "shutdown": policy.shutdown,
        "unreadable": policy.unreadable,
        "guard": dict(zip(("mode", "checks", "unchecked"), (policy.guard, *GUARD[policy.guard]), strict=True)),
        "listen": None if policy.listen is None else list(policy.listen),
        "unix": list(policy.unix),
        "observe": policy.observe,
        "warnings": warnings(policy),
    }


def _rule(policies: PolicySet, rule: Rule, origin: str) -> dict[str, Any]:
    out: dict[str, Any] = {"rule": rule.text, "origin": origin, "verdict": "deny" if rule.deny else "allow"}
    parts = []
    for proto, ports, depth in rule.parts:
        at = depth
        if rule.host and not rule.deny and not rule.wildcard and depth is Depth.NAME:
            at = policies.decide_name(rule.host, ports[0][0], proto).depth or depth
        parts.append((proto, ports, at))
    out["opens" if not rule.deny else "denies"] = [
        {"proto": proto, "ports": "all" if ports == ALL else text_of(ports), "depth": at.name.lower()}
        for proto, ports, at in parts
    ]
    if rule.deny:
        return out
    out["depth"] = parts[0][2].name.lower()
    out["checks"] = [CHECKED[at] for at in dict.fromkeys(at for _, _, at in parts)]
    out["unchecked"] = [UNCHECKED[at] for at in dict.fromkeys(at for _, _, at in parts)]
    metered = [h for h in sorted(policies.inspected) if rule.wildcard and h != rule.host and covers_host(rule.host, h)]
    if metered:
        out["note"] = f"below it, inspected: {', '.join(metered)}"
    return out


def destination(policy: EffectivePolicy, dest: str, providers: Mapping[str, Provider]) -> dict[str, Any]:
    """What would happen to one connection (or request, if `dest` has a path: routes and providers' endpoints count).

    `dest`: host[:port], address[:port], https://host/path, tcp:// and udp:// forms; port 443 if none is named.

    :raises BadInput: for anything else.
    """
    target, path = _target(dest)
    proto = "udp" if target.scheme == "udp" else "tcp"
    port = _DIRECT_TCP if target.ports == ALL else target.ports[0][0]
    policies = PolicySet(policy.rules, policy.inspected)
    out: dict[str, Any] = {"dest": dest, "proto": proto, "port": port}
    if target.network is not None:
        address = target.network.network_address
        out["address"] = str(address)
        if own := explain_own.of_address(address, port, proto):
            return out | own
        decision = policies.decide_address(address, port, proto)
        layer = "bpf, host-nft"
        why = stripped(address)
    else:
        out["host"] = target.host
        if own := explain_own.of_name(target.host, port, proto, policy.bottle):
            return out | own
        decision = (
            policies.decide_name(target.host, port, proto)
            if path is None
            else policies.decide_request(target.host, port, path)
        )
        layer = _LAYERS[decision.depth] if decision.depth else _refusing(policies, target.host, port, proto)
        why = None
    out.update(_decided(policy, decision, layer))
    decrypted = decision.depth is Depth.INSPECTED or policies.is_inspected(target.host)
    if out["verdict"] != "refused" and target.network is None and decrypted:
        tls = target.scheme == "https" or (target.scheme != "http" and port != _PLAIN_PORT)
        if path is not None:
            out.update(explain_requests.request(policy, target.host, port, path, tls=tls, providers=providers))
        else:
            out.update(explain_requests.connection(policy, target.host, tls=tls, providers=providers))
    if why:
        out["why"] = why
    if not decision.allowed and decision.reason == "default":
        out["hint"] = f"agentmon allow {policy.bottle} {_suggested(target, port, proto)}"
    return out


def _refusing(policies: PolicySet, host: str, port: int, proto: str) -> str:
    """Who refuses a name: the resolver, where nothing of it is open; relay's and proxy's addresses take 443 and 80, and
    only the proxy has a host there that is not allowed on both; all else ends in the kernel."""
    resolved = policies.resolves(host)
    if not resolved.allowed:
        return "resolver"
    served = resolved.depth is not Depth.DIRECT and proto == "tcp" and port in SERVED
    return "proxy" if served else "bpf, host-nft"


def _decided(policy: EffectivePolicy, decision: Decision, layer: str) -> dict[str, Any]:
    relaxed = policy.observe and not decision.allowed and decision.reason == "default"
    verdict = "allowed" if decision.allowed else ("observed" if relaxed else "refused")
    out: dict[str, Any] = {"verdict": verdict, "reason": decision.reason, "layer": layer}
    if decision.rule is not None:
        out["rule"] = decision.rule.text
        origins = {p.rule: p.origin for p in placed(policy)}
        out["origin"] = origins.get(decision.rule, "")
    if decision.depth is not None:
        out["depth"] = decision.depth.name.lower()
        out["unchecked"] = UNCHECKED[decision.depth]
    return out


def _target(dest: str) -> tuple[Rule, str | None]:
    """The destination as a deny rule, whose grammar takes protected addresses as well; and the path, if it has one."""
    front = dest.startswith(("https://", "http://")) and dest.count("/") == _SLASHES and dest.endswith("/")
    target = _parsed(dest.removesuffix("/") if front else dest)
    return target, "/" if front else target.path


def _parsed(dest: str) -> Rule:
    if dest.startswith("!"):
        raise BadInput(f"destination {dest!r} is a rule", "leave the '!' out")
    try:
        target = parse_rule("!" + dest)
    except RuleError as e:
        said = e.message.replace(repr("!" + dest), repr(dest))
        raise BadInput(f"destination {dest!r}: {said}", e.hint) from e
    network = target.network
    single = network is None or network.prefixlen == network.max_prefixlen
    one_port = target.ports == ALL or (len(target.ports) == 1 and target.ports[0][0] == target.ports[0][1])
    if target.wildcard or not single or not one_port or (target.path and "*" in target.path):
        raise BadInput(f"destination {dest!r} is more than one", "name one host or address, and one port")
    return target


def _suggested(target: Rule, port: int, proto: str) -> str:
    network = target.network
    if network is not None:
        where = f"[{network.network_address}]" if network.version == 6 else str(network.network_address)
    else:
        where = target.host
    return f"udp://{where}:{port}" if proto == "udp" else f"{where}:{port}"
