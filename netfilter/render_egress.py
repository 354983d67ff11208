"""The bottle's own look at what its device sends, past every hook for sockets: AF_PACKET frames too. Pure.

Frames of IPv4 and IPv6 with the bottle's own addresses and MAC pass, and its own ARP; where they go is judged by the
host. Needs a kernel from 5.16 with CONFIG_NETFILTER_EGRESS; without it the host alone drops such frames.
"""

from __future__ import annotations

from typing import Any

from netfilter.language import ACCEPT, DROP, Part, differs, equal, field, word
from netfilter.spec import BottleNet

TABLE = "netdev agentmon"
_PLACE = {"family": "netdev", "table": "agentmon"}


def inner_egress(net: BottleNet, device: str) -> list[Part]:
    """The table from nothing; `device` has to be there."""
    words = f'type filter hook egress device "{device}" priority 0; policy drop;'
    hook = {"type": "filter", "hook": "egress", "prio": 0, "dev": device, "policy": "drop"}
    own = [equal(field("ip", "saddr"), word(str(net.addr4)))]
    own.append(equal(Part("arp saddr ip", _arp()), word(str(net.addr4))))
    own += [equal(field("ip6", "saddr"), word(str(net.addr6)))] if net.addr6 is not None else []
    return [
        *(_table(verb) for verb in ("add", "delete", "add")),
        Part(f"add chain {TABLE} egress {{ {words} }}", {"add": {"chain": {**_PLACE, "name": "egress", **hook}}}),
        _rule(differs(field("ether", "saddr"), word(net.mac_bottle)), DROP),
        *(_rule(source, ACCEPT) for source in own),
    ]


def _arp() -> dict[str, Any]:
    return {"payload": {"protocol": "arp", "field": "saddr ip"}}


def _table(verb: str) -> Part:
    return Part(f"{verb} table {TABLE}", {verb: {"table": {"family": "netdev", "name": "agentmon"}}})


def _rule(*parts: Part) -> Part:
    words = " ".join(p.text for p in parts)
    return Part(
        f"add rule {TABLE} egress {words}",
        {"add": {"rule": {**_PLACE, "chain": "egress", "expr": [p.json for p in parts]}}},
    )
