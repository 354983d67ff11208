"""Chains of others that drop what is forwarded: no accept of ours undoes a drop in another chain of the hook. Pure.

Docker's FORWARD has the policy drop, firewalld's ends with a reject; both would refuse a bottle what its policy allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from netfilter.language import TABLE
from netfilter.spec import PASS_MARK

_ENDS = ("drop", "reject")


@dataclass(frozen=True, slots=True)
class Blocker:
    """One base chain on the forward hook. `why`: its policy, or how its last rule ends."""

    family: str
    table: str
    chain: str
    why: str
    docker: bool = False  # a chain DOCKER-USER, where administrators put rules of their own, is there

    def describe(self) -> str:
        return f"chain {self.chain} of table {self.family} {self.table} drops what is forwarded ({self.why})"

    def remedy(self, pools: Iterable[str]) -> str:
        """The command that lets what carries our mark pass there."""
        if self.docker:
            return "sudo agentmon setup docker"
        if self.table == "firewalld":
            sources = " ".join(f"--add-source={pool}" for pool in pools)
            return f"sudo firewall-cmd --permanent --zone=trusted {sources}; sudo firewall-cmd --reload"
        mark = f"{PASS_MARK:#x}"
        place = f"{self.family} {self.table} {self.chain}"
        return f"sudo nft insert rule {place} meta mark '&' {mark} == {mark} accept"


def blockers(listed: Iterable[dict[str, Any]]) -> list[Blocker]:
    """Of the objects that `list ruleset` prints as JSON. A chain whose drop has conditions is not one."""
    chains: dict[tuple[str, str, str], dict[str, Any]] = {}
    last: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    names: set[tuple[str, str, str]] = set()
    for entry in listed:
        if "chain" in entry:
            chain = entry["chain"]
            key = (chain["family"], chain["table"], chain["name"])
            names.add(key)
            if chain.get("hook") == "forward" and chain["table"] != TABLE and chain["family"] in {"ip", "ip6", "inet"}:
                chains[key] = chain
        elif "rule" in entry:
            rule = entry["rule"]
            last[rule["family"], rule["table"], rule["chain"]] = rule.get("expr", [])
    found = []
    for key, chain in chains.items():
        why = "policy drop" if chain.get("policy") == "drop" else _ending(last.get(key, []))
        if why:
            found.append(Blocker(*key, why, (key[0], key[1], "DOCKER-USER") in names))
    return sorted(found, key=lambda b: (b.family, b.table, b.chain))


def _ending(statements: list[dict[str, Any]]) -> str:
    """How a rule without conditions ends; "" for one with conditions, or that ends otherwise."""
    if not statements or any("match" in s or "xt" in s or "vmap" in s for s in statements):
        return ""
    return next((f"its last rule: {word}" for word in _ENDS if word in statements[-1]), "")
