"""The tables as the code would write them now, and what a listing has beside that. Needs CAP_NET_ADMIN, CAP_SYS_ADMIN.

Nothing here knows how libnftables prints a rule: what we want is loaded into a namespace that ends with the listing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from netfilter import look, plan, render
from netfilter.bottle import Bottle
from netfilter.elements import Segments
from netfilter.errors import KernelRefused, TooMuch
from netfilter.language import FAMILY, TABLE, Command, Part, table
from netfilter.netns import namespaces
from netfilter.nfnetlink import Elements
from netfilter.nft import Nft
from netfilter.spec import HostSpec, Learned

_NS = 1_000_000_000
NAT_HELD = "agentmon_nat"
_TIMED = frozenset({"l4", "l6", "r4", "r6", "dial4", "dial6", "span4", "span6"})
_ROOM_BYTES = 1 << 20  # of messages beyond twice what is wanted
_CLOSE_S = 2  # an element so near to its end may be gone on one side already


def host_table(host: HostSpec, bottles: Iterable[Bottle], now_ns: int, more: Iterable[Command]) -> list[Command]:
    """The host's table from nothing, every bottle's chain and sets included.

    :param more: what stands in sets of the host beside (what was dialled, what forwarding switched).
    """
    commands: list[Command] = [table("add"), table("delete"), *render.host_table(host)]
    for bottle in bottles:
        commands += plan.host_side(bottle, now_ns)
        commands += plan.leading(bottle)
    return [*commands, *more]


def inner_table(bottle: Bottle, now_ns: int) -> list[Command]:
    """The bottle's own table from nothing."""
    return plan.whole(bottle, bottle.still_learned(now_ns), now_ns)


@dataclass(slots=True)
class Dialled:
    """Until when the service namespace may dial what."""

    until: dict[Learned, int] = field(default_factory=dict)  # timeout_s 0 → end

    def note(self, entries: Iterable[Learned], now_ns: int) -> None:
        self.until = {key: end for key, end in self.until.items() if end > now_ns}
        for e in entries:
            key = Learned(e.address, e.proto, e.ports, 0)
            self.until[key] = max(now_ns + e.timeout_s * _NS, self.until.get(key, 0))

    def left(self, now_ns: int) -> list[Learned]:
        return [
            Learned(key.address, key.proto, key.ports, max(1, (end - now_ns) // _NS))
            for key, end in self.until.items()
            if end > now_ns
        ]


def still_dialled(nft: Nft) -> list[Learned]:
    """What an earlier instance permitted the service namespace to dial, one port each, with the time that is left."""
    found = []
    for version in render.FAMILIES:
        for listed in nft.listing(f"list set {FAMILY} {TABLE} dial{version}"):
            for member in listed.get("set", {}).get("elem", ()):
                (address, proto, port), left = member["elem"]["val"]["concat"], member["elem"]["expires"]
                found.append(Learned(ip_address(address), proto, ((port, port),), left))
    return found


def dialled(entries: Sequence[Learned], now_ns: int) -> list[Command]:
    """What the service namespace may dial, into empty sets."""
    change = Segments().change(entries, now_ns)
    return [*render.renewals(change, "dial%d"), *render.pieces(change, "span%d")]


def nat_held() -> list[Part]:
    """A table that nobody else can delete, with a NAT chain and a look at conntrack that change nothing: while it
    stands, so do the translations of live flows. It goes with the socket that made it."""
    name = f"{FAMILY} {NAT_HELD}"
    chain = f"add chain {name} keep {{ type nat hook postrouting priority {render.SOURCE_NAT + 1}; policy accept; }}"
    rule = f"add rule {name} keep ct state untracked continue"
    return [Part(line, None) for line in (f"add table {name} {{ flags owner; }}", chain, rule)]


def nat_let_go() -> list[Part]:
    return [Part(f"delete table {FAMILY} {NAT_HELD}", None)]


# ── inside a bottle, whose root may have put there whatever it likes ──


def inner_differing(bottle: Bottle, now_ns: int) -> list[str]:
    """What the bottle's own table has, or lacks, beside what is wanted; in words. Reads little more than is wanted."""
    wanted = namespaces.in_thread(lambda: _read(inner_table(bottle, now_ns)))
    try:
        there = bottle.inner.inside(lambda: look.objects(TABLE, 2 * wanted.size_bytes + _ROOM_BYTES))
    except TooMuch as e:
        return [str(e.strerror)]
    if there is None:
        return [f"table {TABLE} deleted"]
    more = there.objects.pop(look.PARTS) != wanted.objects.pop(look.PARTS)
    return _beside(there.objects, wanted.objects) or ([f"parts of table {TABLE} added"] if more else [])


def _read(wanted: Sequence[Command]) -> look.Read:
    namespaces.unshare()
    made = Elements(TABLE)
    try:
        made.run(wanted, "load the table to compare with")
        found = look.objects(TABLE)
    finally:
        made.close()
    assert found is not None
    return found


# ── the host's beside a listing ──


def differing(nft: Nft, wanted: Sequence[Command]) -> list[str]:
    """What the table has, or lacks, beside `wanted`; in words."""
    try:
        there = _objects(nft.listing(f"list table {FAMILY} {TABLE}"))
    except KernelRefused:
        return [f"table {TABLE} deleted"]
    return _beside(there, namespaces.in_thread(lambda: _loaded(wanted)))


def _beside(there: Mapping[tuple[str, str], Any], expected: Mapping[tuple[str, str], Any]) -> list[str]:
    found = []
    for key in sorted({*there, *expected}):
        noun, name = key
        if key not in there:
            found.append(f"{noun} {name} deleted")
        elif key not in expected:
            found.append(f"{noun} {name} added")
        elif there[key] != expected[key]:
            found.append(f"{noun} {name} changed")
    return found


def _loaded(wanted: Sequence[Command]) -> dict[tuple[str, str], Any]:
    namespaces.unshare()
    nft = Nft()
    nft.run(wanted, "load the table to compare with")
    return _objects(nft.listing(f"list table {FAMILY} {TABLE}"))


def _objects(listed: Iterable[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Objects by kind and name; a chain with its rules in order, a set with its elements in none."""
    found: dict[tuple[str, str], Any] = {}
    for entry in listed:
        ((noun, value),) = entry.items()
        if noun == "rule":
            found["chain", value["chain"]][1].append(_plain(value["expr"]))
        elif noun == "chain":
            found[noun, value["name"]] = ({k: v for k, v in value.items() if k != "handle"}, [])
        elif noun in {"set", "map"}:
            kind = {k: v for k, v in value.items() if k not in {"handle", "elem"}}
            found[noun, value["name"]] = (_plain(kind), frozenset(_elements(value)))
        elif noun == "counter" or noun != "metainfo":
            found[noun, value["name"]] = ()
    return found


def _elements(value: dict[str, Any]) -> Iterable[str]:
    timed = value["name"].partition("_")[0] in _TIMED
    for member in value.get("elem", ()):
        if not timed:
            yield json.dumps(_plain(member), sort_keys=True)
            continue
        inner = member.get("elem", {}) if isinstance(member, dict) else {}
        if inner.get("expires", _CLOSE_S + 1) > _CLOSE_S:
            yield json.dumps(_plain(inner.get("val", member)), sort_keys=True)


def _plain(value: Any) -> Any:
    """Anonymous sets in a fixed order; nothing that counts or passes."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        if "set" in value and isinstance(value["set"], list):
            return {"set": sorted(json.dumps(_plain(v), sort_keys=True) for v in value["set"])}
        return {k: _plain(v) for k, v in value.items()}
    return value
