"""nftables statements and commands, each as nft(8) text and as libnftables-json(5). Pure.

A rule is a list of parts; a command says what it is in both languages, so that the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any, NamedTuple

from netfilter.batch import Members
from netfilter.elements import Element

FAMILY, TABLE = "inet", "agentmon"
_T = f"{FAMILY} {TABLE}"
TUPLE = {4: ("ipv4_addr", "inet_proto", "inet_service"), 6: ("ipv6_addr", "inet_proto", "inet_service")}


class Part(NamedTuple):
    """An expression, a statement, or a whole command."""

    text: str
    json: Any


Command = Part | Members


def text(commands: Iterable[Command]) -> str:
    """One transaction for nft -f and libnftables."""
    return "\n".join(written(c).text for c in commands)


def json(commands: Iterable[Command]) -> dict[str, Any]:
    """The same transaction for libnftables' JSON parser."""
    return {"nftables": [{"metainfo": {"json_schema_version": 1}}, *(written(c).json for c in commands)]}


def written(command: Command) -> Part:
    """A command in both languages; a batch of elements is kept in numbers until somebody wants to read it."""
    if isinstance(command, Part):
        return command
    members = (destination(element, seconds) for element, seconds in command.batch.rows())
    return elements(command.verb, command.set_name, members)[0]


# ── expressions ──


def meta(key: str) -> Part:
    bare = key in {"iifname", "oifname"}
    return Part(key if bare else f"meta {key}", {"meta": {"key": key}})


def field(protocol: str, name: str) -> Part:
    return Part(f"{protocol} {name}", {"payload": {"protocol": protocol, "field": name}})


def ct(key: str) -> Part:
    return Part(f"ct {key}", {"ct": {"key": key}})


def masked(part: Part, mask: int) -> Part:
    return Part(f"{part.text} & {mask:#010x}", {"&": [part.json, mask]})


def union(part: Part, bits: int) -> Part:
    return Part(f"{part.text} | {bits:#010x}", {"|": [part.json, bits]})


def joined(*parts: Part) -> Part:
    return Part(" . ".join(p.text for p in parts), {"concat": [p.json for p in parts]})


def number(value: int) -> Part:
    return Part(f"{value:#010x}", value)


def word(value: str) -> Part:
    return Part(value, value)


def named(set_name: str) -> Part:
    return Part(f"@{set_name}", f"@{set_name}")


def network(net: IPv4Network | IPv6Network) -> Part:
    base = inet_ntop(AF_INET if net.version == 4 else AF_INET6, net.network_address.packed)  # str differs by Python
    if net.prefixlen == net.max_prefixlen:
        return word(base)
    return Part(f"{base}/{net.prefixlen}", {"prefix": {"addr": base, "len": net.prefixlen}})


def choice(members: Iterable[Part]) -> Part:
    members = tuple(members)
    return Part(f"{{ {', '.join(m.text for m in members)} }}", {"set": [m.json for m in members]})


def address_type() -> Part:
    """Is the destination one of the host's own, a broadcast or a multicast address?"""
    return Part("fib daddr type", {"fib": {"result": "type", "flags": ["daddr"]}})


# ── statements ──


def equal(left: Part, right: Part) -> Part:
    bitwise = isinstance(left.json, dict) and "&" in left.json
    return Part(f"{left.text} {'== ' if bitwise else ''}{right.text}", _match("==", left, right))


def differs(left: Part, right: Part) -> Part:
    return Part(f"{left.text} != {right.text}", _match("!=", left, right))


def state(*names: str) -> Part:
    return Part(f"ct state {','.join(names)}", _match("in", ct("state"), Part("", list(names))))


def _match(op: str, left: Part, right: Part) -> dict[str, Any]:
    return {"match": {"op": op, "left": left.json, "right": right.json}}


def put(key: Part, value: Part) -> Part:
    """`meta mark set …`, `ct mark set …`."""
    return Part(f"{key.text} set {value.text}", {"mangle": {"key": key.json, "value": value.json}})


def vmap(key: Part, map_name: str) -> Part:
    return Part(f"{key.text} vmap @{map_name}", {"vmap": {"key": key.json, "data": f"@{map_name}"}})


def goto(chain: str) -> Part:
    return Part(f"goto {chain}", {"goto": {"target": chain}})


def counted(counter: str) -> Part:
    return Part(f"counter name {counter}", {"counter": counter})


def dnat(version: int, address: str) -> Part:
    family = "ip" if version == 4 else "ip6"
    return Part(f"dnat {family} to {address}", {"dnat": {"family": family, "addr": address}})


ACCEPT, DROP = Part("accept", {"accept": None}), Part("drop", {"drop": None})
MASQUERADE = Part("masquerade", {"masquerade": None})
RESET = Part("reject with tcp reset", {"reject": {"type": "tcp reset"}})
PROHIBITED = Part("reject with icmpx type admin-prohibited", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}})


# ── commands ──


def table(verb: str) -> Part:
    return Part(f"{verb} table {_T}", {verb: {"table": {"family": FAMILY, "name": TABLE}}})


def chain(verb: str, name: str) -> Part:
    """A chain that others jump to; verb: add, flush, delete."""
    return Part(f"{verb} chain {_T} {name}", {verb: {"chain": _object(name)}})


def base_chain(name: str, kind: str, hook: str, priority: int, policy: str) -> Part:
    words = f"type {kind} hook {hook} priority {priority}; policy {policy};"
    fields = {"type": kind, "hook": hook, "prio": priority, "policy": policy}
    return Part(f"add chain {_T} {name} {{ {words} }}", {"add": {"chain": {**_object(name), **fields}}})


def rule(chain_name: str, *parts: Part) -> Part:
    place = {"family": FAMILY, "table": TABLE, "chain": chain_name}
    words = " ".join(p.text for p in parts)
    return Part(f"add rule {_T} {chain_name} {words}", {"add": {"rule": {**place, "expr": [p.json for p in parts]}}})


def add_set(name: str, types: Sequence[str], *flags: str) -> Part:
    words = f"type {' . '.join(types)};" + (f" flags {', '.join(flags)};" if flags else "")
    fields: dict[str, Any] = {"type": list(types) if len(types) > 1 else types[0]}
    if flags:
        fields["flags"] = list(flags)
    return Part(f"add set {_T} {name} {{ {words} }}", {"add": {"set": {**_object(name), **fields}}})


def add_map(name: str, key: str) -> Part:
    """A verdict map."""
    fields = {"type": key, "map": "verdict"}
    return Part(f"add map {_T} {name} {{ type {key} : verdict; }}", {"add": {"map": {**_object(name), **fields}}})


def flush_set(name: str) -> Part:
    return Part(f"flush set {_T} {name}", {"flush": {"set": _object(name)}})


def delete_set(name: str) -> Part:
    return Part(f"delete set {_T} {name}", {"delete": {"set": _object(name)}})


def counter(verb: str, name: str) -> Part:
    return Part(f"{verb} counter {_T} {name}", {verb: {"counter": _object(name)}})


def elements(verb: str, set_name: str, members: Iterable[Part]) -> list[Part]:
    """Add or delete; nothing for no members."""
    members = tuple(members)
    if not members:
        return []
    words = ", ".join(m.text for m in members)
    fields = {**_object(set_name), "elem": [m.json for m in members]}
    return [Part(f"{verb} element {_T} {set_name} {{ {words} }}", {verb: {"element": fields}})]


def device(name: str) -> Part:
    return Part(f'"{name}"', name)


def leads_to(key: Part, verdict: Part) -> Part:
    """An element of a verdict map."""
    return Part(f"{key.text} : {verdict.text}", [key.json, verdict.json])


def destination(element: Element, timeout_s: int = 0) -> Part:
    """An element of an `address . protocol . port` set."""
    low, high = element.low, element.high
    port = Part(str(low), low) if low == high else Part(f"{low}-{high}", {"range": [low, high]})
    net = network(element.network)
    key = joined(net, word(element.proto), port)
    if not timeout_s:
        return key
    return Part(f"{key.text} timeout {timeout_s}s", {"elem": {"val": key.json, "timeout": timeout_s}})


def _object(name: str) -> dict[str, Any]:
    return {"family": FAMILY, "table": TABLE, "name": name}
