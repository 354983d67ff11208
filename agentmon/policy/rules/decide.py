"""Deciding: a set of rules, built once, asked per name and per address.

Names are found by hash (the name, then "*." and each suffix), addresses by hash per prefix length in use: the cost
does not depend on the number of rules. A deny wins over every allow. Nothing that is unknown is allowed.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from agentmon.policy.rules import ports as port_sets
from agentmon.policy.rules.grammar import HTTPS, SERVED, Depth, Rule, host_pattern, path_matches
from agentmon.policy.rules.hosts import RuleError, canonical_host, reserved
from agentmon.policy.rules.ports import Ports
from agentmon.policy.rules.ranges import stripped
from agentmon.policy.rules.relate import patterns_above

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentmon.policy.rules.ranges import Address


class Decision:
    """`reason`: allow · default (no rule says so) · deny (`rule` does) · protected (no rule could say so).

    `depth` is None where not allowed; `rule` is the one that decided, if one did.
    """

    __slots__ = ("allowed", "depth", "reason", "rule")

    def __init__(self, allowed: bool, depth: Depth | None, rule: Rule | None, reason: str) -> None:
        self.allowed = allowed
        self.depth = depth
        self.rule = rule
        self.reason = reason

    def __bool__(self) -> bool:
        return self.allowed

    def __repr__(self) -> str:
        return f"Decision(allowed={self.allowed}, depth={self.depth!r}, rule={self.rule!r}, reason={self.reason!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decision):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


_DEFAULT = Decision(False, None, None, "default")
_PROTECTED = Decision(False, None, None, "protected")


class _Bucket:
    """The rules of one host pattern or one network."""

    __slots__ = ("allow", "deny")

    def __init__(self) -> None:
        self.allow: list[Rule] = []
        self.deny: list[Rule] = []

    def add(self, rule: Rule) -> None:
        (self.deny if rule.deny else self.allow).append(rule)


class PolicySet:
    """Rules ready to be asked. `inspected`: host patterns that are decrypted although their rule is a name rule;
    a `*` inside a label stands for letters, digits and hyphens there (regions of a provider).

    Methods take names in any spelling; what is no name is refused, not an error.
    """

    def __init__(self, rules: Iterable[Rule], inspected: Iterable[str] = ()) -> None:
        self.rules = tuple(rules)
        patterns = dict.fromkeys(inspected)
        within = [p for p in patterns if "*" in p.removeprefix("*.")]
        self.inspected = frozenset(p if p in within else host_pattern(p) for p in patterns)
        self._within = [p.split(".") for p in within]
        self._numbers = {rule: number for number, rule in enumerate(self.rules)}
        self._names: dict[str, _Bucket] = {}
        self._networks: dict[int, dict[int, dict[int, _Bucket]]] = {4: {}, 6: {}}  # version → prefix length → network
        for rule in self.rules:
            if rule.network is None:
                self._names.setdefault(rule.host, _Bucket()).add(rule)
            else:
                by_length = self._networks[rule.network.version].setdefault(rule.network.prefixlen, {})
                by_length.setdefault(int(rule.network.network_address), _Bucket()).add(rule)

    def number(self, rule: Rule) -> int:
        """The rule's index, as kernel entries carry it."""
        return self._numbers[rule]

    # ── names ────────────────────────────────────────────────────────────

    def resolves(self, name: str) -> Decision:
        """May `name` be answered? With the proxy's address (INSPECTED), the relay's (NAME), or its own (DIRECT)."""
        host = self._host(name)
        return _DEFAULT if host is None else self._resolved(host)

    def _resolved(self, host: str) -> Decision:
        """resolves() of a canonical name."""
        if reserved(host):
            return _PROTECTED
        opened = self._open(host)
        if not opened:
            denied = next((r for b in self._buckets(host) for r in b.deny if r.path is None), None)
            return Decision(False, None, denied, "deny") if denied else _DEFAULT
        served = [(rule, depth) for rule, _, ports, depth in opened if depth is not Depth.DIRECT and ports == HTTPS]
        if not served:  # port 80 alone, or direct
            served = [(rule, depth) for rule, _, _, depth in opened if depth is not Depth.DIRECT]
        if self.is_inspected(host) or (served and self._has_paths(host, 443)):
            rule = max(served, key=lambda pair: pair[1])[0] if served else opened[0][0]
            return Decision(True, Depth.INSPECTED, rule, "allow")
        if not served:
            return Decision(True, Depth.DIRECT, opened[0][0], "allow")
        rule, depth = max(served, key=lambda pair: pair[1])
        return Decision(True, depth, rule, "allow")

    def decide_name(self, name: str, port: int, proto: str = "tcp") -> Decision:
        """May `name` be connected to? Paths are not looked at: a rule with a path opens the host for inspection."""
        return self._decide(name, port, proto, None)

    def decide_request(self, name: str, port: int, path: str) -> Decision:
        """May a request for `path` (normalised, without query) be made to `name`? What the proxy asks."""
        return self._decide(name, port, "tcp", path)

    def _decide(self, name: str, port: int, proto: str, path: str | None) -> Decision:
        host = self._host(name)
        if host is None:
            return _DEFAULT
        if reserved(host):
            return _PROTECTED
        best: tuple[Depth, Rule] | None = None
        for bucket in self._buckets(host):
            for rule in bucket.deny:
                if rule.depth_at(proto, port) and _on_path(rule, path):
                    return Decision(False, None, rule, "deny")
            for rule in bucket.allow:
                depth = rule.depth_at(proto, port)
                if depth and (path is None or rule.path is None or path_matches(rule.path, path)):
                    best = (depth, rule) if best is None or depth > best[0] else best
        if best is None:
            return _DEFAULT
        depth, rule = best
        if proto == "tcp" and port in SERVED and (self.is_inspected(host) or self._has_paths(host, port)):
            depth = Depth.INSPECTED
        return Decision(True, depth, rule, "allow")

    def direct_parts(self, name: str) -> list[tuple[Rule, str, Ports]]:
        """What an address learned for `name` opens: (rule, proto, ports), without what deny rules take away.

        Empty for a name that is answered with a service address: its own addresses are never opened.
        """
        host = self._host(name)
        if host is None or self._resolved(host).depth is not Depth.DIRECT:
            return []
        return [(rule, proto, ports) for rule, proto, ports, _ in self._open(host)]

    def direct_ports(self, name: str) -> list[tuple[str, Ports]]:
        """direct_parts merged by protocol."""
        by_proto: dict[str, list[tuple[int, int]]] = {}
        for _, proto, ports in self.direct_parts(name):
            by_proto.setdefault(proto, []).extend(ports)
        return [(proto, port_sets.merged(by_proto[proto])) for proto in sorted(by_proto)]

    def names_exactly(self, name: str) -> bool:
        """True where an allow rule names this host itself: only then may it lead to a private address."""
        host = self._host(name)
        bucket = None if host is None else self._names.get(host)
        return bucket is not None and bool(bucket.allow)

    def is_inspected(self, name: str) -> bool:
        host = self._host(name)
        if host is None or not self.inspected:
            return False
        if any(key in self.inspected for key in patterns_above(host)):
            return True
        labels = host.split(".")
        return any(len(p) == len(labels) and all(map(_label_fits, p, labels)) for p in self._within)

    def _host(self, name: str) -> str | None:
        if name in self._names and not name.startswith("*"):
            return name
        try:
            return canonical_host(name)
        except RuleError:
            return None

    def _buckets(self, host: str) -> Iterator[_Bucket]:
        for key in patterns_above(host):
            bucket = self._names.get(key)
            if bucket is not None:
                yield bucket

    def _open(self, host: str) -> list[tuple[Rule, str, Ports, Depth]]:
        """Every part of every matching allow rule, minus what is denied; most specific pattern first."""
        buckets = list(self._buckets(host))
        denied = [part for b in buckets for r in b.deny if r.path is None for part in r.parts]
        out = []
        for bucket in buckets:
            for rule in bucket.allow:
                for proto, ports, depth in rule.parts:
                    left = ports
                    for deny_proto, deny_ports, _ in denied:
                        left = port_sets.without(left, deny_ports) if deny_proto == proto else left
                    if left:
                        out.append((rule, proto, left, depth))
        return out

    def _has_paths(self, host: str, port: int) -> bool:
        return any(
            rule.path is not None and rule.depth_at("tcp", port)
            for bucket in self._buckets(host)
            for rule in (*bucket.allow, *bucket.deny)
        )

    # ── addresses ────────────────────────────────────────────────────────

    def decide_address(self, address: Address, port: int, proto: str) -> Decision:
        """May a packet go to `address`, by rules that name addresses? A mapped IPv4 address is judged as IPv4."""
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if stripped(address):
            return _PROTECTED
        found = None
        for bucket in self._covering(address):
            for rule in bucket.deny:
                if rule.depth_at(proto, port):
                    return Decision(False, None, rule, "deny")
            if found is None:
                found = next((rule for rule in bucket.allow if rule.depth_at(proto, port)), None)
        return Decision(True, Depth.DIRECT, found, "allow") if found else _DEFAULT

    def denies_address(self, address: Address, port: int, proto: str) -> Rule | None:
        """The deny rule that covers `address`: asked also before an address of a permitted name is dialled."""
        for bucket in self._covering(address):
            for rule in bucket.deny:
                if rule.depth_at(proto, port):
                    return rule
        return None

    def _covering(self, address: Address) -> Iterator[_Bucket]:
        number, width = int(address), address.max_prefixlen
        for length, buckets in self._networks[address.version].items():
            shift = width - length
            bucket = buckets.get(number >> shift << shift)
            if bucket is not None:
                yield bucket


def _label_fits(pattern: str, label: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return pattern == label
    return len(label) > len(before) + len(after) and label.startswith(before) and label.endswith(after)


def _on_path(deny: Rule, path: str | None) -> bool:
    """Also where only some servers take `path` for one that is denied: without case, with // as /, without ;parameters
    and a slash at its end."""
    if deny.path is None:
        return True
    if path is None:
        return False
    pattern = deny.path.lower()
    segments = [segment.partition(";")[0] for segment in path.lower().split("/")]
    plain = "/" + "/".join(segment for segment in segments if segment)
    return any(path_matches(pattern, reading) for reading in (path.lower(), plain, plain + "/"))


class Conflict:
    """A direct rule and something served by relay or proxy (a rule, or an inspected host pattern) that share a host."""

    __slots__ = ("direct", "served")

    def __init__(self, direct: Rule, served: Rule | str) -> None:
        self.direct = direct
        self.served = served

    def message(self) -> str:
        if isinstance(self.served, Rule):
            return f"{self.direct.text} is direct, but {self.served.text} holds the same host by name"
        return f"{self.direct.text} is direct, but {self.served} is inspected: its traffic must go through the proxy"

    def hint(self) -> str:
        if isinstance(self.served, Rule):
            return (
                "a host is answered with one address, its own or the relay's: give the direct rule the host's address "
                "or network (198.51.100.0/24:22), or make every rule of the host direct (tcp://host:443)"
            )
        return f"take the rule out, or write {self.direct.host}:443"


def conflicts(rules: Iterable[Rule], inspected: Iterable[str] = ()) -> list[Conflict]:
    """Direct rules whose host overlaps that of a name or inspected rule, or an inspected host; linear in the rules."""
    served: dict[str, Rule | str] = {}
    direct: dict[str, list[Rule]] = {}
    for rule in rules:
        if rule.deny or rule.network is not None:
            continue
        if rule.depth is Depth.DIRECT:
            direct.setdefault(rule.host, []).append(rule)
        else:
            served.setdefault(rule.host, rule)
    served.update((pattern, pattern) for pattern in inspected)
    served_above = ((d, s) for d in direct for s in patterns_above(d) if s in served)
    direct_above = ((d, s) for s in served for d in patterns_above(s) if d in direct)
    pairs = dict.fromkeys((*served_above, *direct_above))
    return [Conflict(rule, served[s]) for d, s in pairs for rule in direct[d]]
