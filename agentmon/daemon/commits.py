"""Names that the resolver proposes: checked once more, opened on every layer, then acknowledged (DESIGN 3, 4).

The resolver is unprivileged and parses hostile bytes, so what it says is a proposal: the name must be permitted for
that bottle, every address must be one that may be opened, and an address that a name or inspected rule of the
bottle also resolves to is not opened as direct.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

from agentmon import wire
from agentmon.compile import learned, policy_set
from agentmon.control.state import Bottle
from agentmon.daemon.names import Names
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import Depth, PolicySet, stripped
from ebpf.spec import Entry
from netfilter.spec import Learned, Netfilter

FLOOR_S = 30
MAX_ADDRESSES = 64  # of one answer
MAX_TIMEOUT_S = 86_400
MAX_REMEMBERED = 256  # addresses of one direct name whose flows are carried over epochs


class Commits:
    """Decides and applies proposals.

    :param bpf_learn: the eBPF side's learn().
    :param refence: called when an address that is open as direct turns out to be held: put the rules in force anew.
    """

    def __init__(self, netfilter: Netfilter, bpf_learn: Callable[..., None], refence: Callable[[Bottle], None]) -> None:
        self.names = Names()
        self._netfilter = netfilter
        self._bpf_learn = bpf_learn
        self._refence = refence
        self._fenced: dict[int, set[IPv4Address | IPv6Address]] = {}  # slot → held addresses that a direct rule covers
        self._served: dict[int, dict[IPv4Address | IPv6Address, float]] = {}  # slot → address of a relayed name → until
        self._sets: dict[int, tuple[EffectivePolicy, PolicySet]] = {}  # slot → its policy, made ready to be asked
        self._opened: dict[int, dict[str, dict[IPv4Address | IPv6Address, float]]] = {}  # slot → direct name → until

    def forget(self, slot: int) -> None:
        self.names.forget(slot)
        self._served.pop(slot, None)
        self._opened.pop(slot, None)
        self._fenced.pop(slot, None)
        self._sets.pop(slot, None)

    def _policies(self, bottle: Bottle) -> PolicySet:
        known = self._sets.get(bottle.slot)
        if known is None or known[0] is not bottle.policy:
            known = self._sets[bottle.slot] = (bottle.policy, policy_set(bottle.policy))
        return known[1]

    def carried(self, bottle: Bottle) -> tuple[list[Learned], list[Entry]]:
        """What the names that the policy still allows had resolved to, with the time that is left: for a new epoch.
        An address whose time is over opens nothing (timeout 0), but its live flows are still allowed."""
        policies, now = self._policies(bottle), time.monotonic()
        held = self._held(bottle.slot, now)
        nft: list[Learned] = []
        bpf: list[Entry] = []
        for name, addresses in self._opened.get(bottle.slot, {}).items():
            for address, until in addresses.items():
                left_s = max(0, int(until - now))
                more_nft, more_bpf = learned(policies, name, (address,), left_s, held=held)
                nft += more_nft
                bpf += more_bpf if left_s else []
        return nft, bpf

    def _held(self, slot: int, now: float) -> set[IPv4Address | IPv6Address]:
        """Addresses that a name or inspected rule of the bottle resolves to: never opened as direct (DESIGN 3)."""
        return {address for address, until in self._served.get(slot, {}).items() if until >= now}

    def commit(self, bottle: Bottle | None, message: wire.Commit) -> wire.Committed:
        """Open what may be opened; the answer names exactly that. Committed in nft and BPF when it returns.

        :raises OSError: the kernel refused; nothing may be answered to the bottle.
        """
        if bottle is None:
            return wire.Committed(message.id, (), "no such bottle")
        policies = self._policies(bottle)
        usable = tuple(
            address for text in message.addresses[:MAX_ADDRESSES] if stripped(address := ip_address(text)) is None
        )
        if message.purpose == "service":
            return self._for_service(bottle, message, usable)
        decision = policies.resolves(message.name)
        if not decision.allowed and not bottle.policy.observe:
            return wire.Committed(message.id, (), decision.reason)
        if decision.allowed and decision.depth is not Depth.DIRECT:
            return wire.Committed(message.id, (), "answered with the service address")
        now = time.monotonic()
        held = self._held(bottle.slot, now)
        usable = tuple(address for address in usable if address not in held)
        self.names.note(bottle.slot, message.name, usable)
        if decision.allowed:  # otherwise observe mode: the kernel layers relax the allowlist themselves
            timeout_s = _timeout(message.ttl_s)
            opened = self._opened.setdefault(bottle.slot, {}).setdefault(message.name, {})
            for address in usable:  # the newest last, the oldest forgotten: a name that moves on cannot fill memory
                opened.pop(address, None)
                opened[address] = now + timeout_s
            while len(opened) > MAX_REMEMBERED:
                del opened[next(iter(opened))]
            nft, bpf = learned(policies, message.name, usable, timeout_s)
            if nft:
                self._netfilter.learn(bottle.slot, nft)
            if bpf:
                self._bpf_learn(bottle.slot, bpf)
        return wire.Committed(message.id, tuple(map(str, usable)), "" if usable else "no usable address")

    def _for_service(
        self, bottle: Bottle, message: wire.Commit, usable: tuple[IPv4Address | IPv6Address, ...]
    ) -> wire.Committed:
        policies = self._policies(bottle)
        for port in message.ports:
            decision = policies.decide_name(message.name, port)
            if not decision.allowed or decision.depth is Depth.DIRECT:
                return wire.Committed(message.id, (), decision.reason or "not a name rule")
        usable = tuple(a for a in usable if not any(policies.denies_address(a, p, "tcp") for p in message.ports))
        ports = tuple((port, port) for port in message.ports)
        timeout_s = _timeout(message.ttl_s)
        served = self._served.setdefault(bottle.slot, {})
        until = time.monotonic() + timeout_s
        for address in usable:
            served[address] = until
        self._fence(bottle, policies, usable)
        self._netfilter.permit_service([Learned(address, "tcp", ports, timeout_s) for address in usable])
        return wire.Committed(message.id, tuple(map(str, usable)), "" if usable else "no usable address")

    def _fence(self, bottle: Bottle, policies: PolicySet, addresses: tuple[IPv4Address | IPv6Address, ...]) -> None:
        """Deny what a direct rule, or a direct name's answer, would open although a deeper rule holds it."""
        opened = {a for known in self._opened.get(bottle.slot, {}).values() for a in known}
        fenced = self._fenced.setdefault(bottle.slot, set())
        new = {a for a in addresses if a in opened or _directly(policies, a)} - fenced
        if new:
            fenced |= new
            for known in self._opened.get(bottle.slot, {}).values():
                for address in new:
                    known.pop(address, None)
            self._refence(bottle)

    def fenced(self, slot: int) -> frozenset[IPv4Address | IPv6Address]:
        """Addresses to be denied beside the policy's own denies."""
        return frozenset(self._fenced.get(slot, ()))


def _directly(policies: PolicySet, address: IPv4Address | IPv6Address) -> bool:
    """Whether a network rule opens any port of `address`."""
    return any(
        rule.network is not None
        and not rule.deny
        and address.version == rule.network.version
        and address in rule.network
        for rule in policies.rules
    )


def _timeout(ttl_s: int) -> int:
    return min(max(ttl_s, FLOOR_S), MAX_TIMEOUT_S)
