"""What comes of destinations that no rule speaks of: a bottle's own loopback, agentmon's own name and addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

from agentmon.addresses import Pool
from agentmon.events import OWN
from agentmon.policy.rules.grammar import SERVED
from agentmon.policy.rules.hosts import OWN_NAME

_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1"))
_HOSTS_FILE = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})  # and the bottle's name: launch/etc.py
_KERNEL = "bpf, host-nft"
_HTTP = 80
_DNS = 53


def of_name(host: str, port: int, proto: str, bottle: str) -> dict[str, Any] | None:
    """verdict, reason, layer and why of what a bottle's /etc/hosts has, and of agentmon's own name; None for others."""
    if host in _HOSTS_FILE or host == bottle:
        return _loopback() | {"why": "the bottle's /etc/hosts has it, and its loopback device is its own"}
    if host != OWN_NAME:
        return None
    if proto == "tcp" and port == _HTTP:
        why = "agentmon's own pages for the bottle: /healthz, /budget, /allowlist"
        return {"verdict": "allowed", "reason": "own", "layer": "proxy", "why": why}
    layer = "proxy" if proto == "tcp" and port in SERVED else _KERNEL
    return {"verdict": "refused", "reason": "own", "layer": layer, "why": "agentmon's own name answers HTTP on port 80"}


def of_address(address: IPv4Address | IPv6Address, port: int, proto: str) -> dict[str, Any] | None:
    """The same of loopback and of agentmon's own addresses."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if mapped is None and any(address in network for network in _LOOPBACK):
        return _loopback() | {"why": "a bottle's loopback device is its own; the host's is out of its reach"}
    if not any(address in network for network in OWN):
        return None
    pool = Pool()
    asks_resolver = address in pool.resolver.all() and port == _DNS
    asks_relay = address in pool.relay.all() and proto == "tcp" and port in SERVED
    if asks_resolver or asks_relay:
        layer = "resolver" if asks_resolver else "proxy" if port == _HTTP else "relay"
        why = "an address of agentmon's services: the name that is asked for there decides"
        return {"verdict": "allowed", "reason": "own", "layer": layer, "why": why}
    return {"verdict": "refused", "reason": "own", "layer": _KERNEL, "why": "an address of agentmon's or of a bottle's"}


def _loopback() -> dict[str, Any]:
    return {"verdict": "allowed", "reason": "own", "layer": "bpf, bottle-nft"}
