"""Names that the resolver proposes: checked once more, opened on every layer, then acknowledged (DESIGN 3, 4).

The resolver is unprivileged and parses hostile bytes, so what it says is a proposal: the name must be permitted for
that bottle, every address must be one that may be opened, and an address that a name or inspected rule of the
bottle also resolves to is not opened as direct.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from ipaddress import ip_address

from agentmon import wire
from agentmon.compile import learned, policy_set
from agentmon.control.state import Bottle
from agentmon.daemon.learned import Address, Book
from agentmon.daemon.names import Names
from agentmon.policy.effective import LIMITS, EffectivePolicy
from agentmon.policy.rules import Depth, PolicySet, stripped
from ebpf.spec import Entry
from netfilter.spec import Learned, Netfilter

FLOOR_S = 30
MAX_ADDRESSES = 64  # of one answer
MAX_TIMEOUT_S = 86_400
FULL = "addresses"  # the reason of what is left out because the bottle has too many


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
        self._fenced: dict[int, set[Address]] = {}  # slot → held addresses that a direct rule covers
        self._served: dict[int, Book] = {}  # of names that relay or proxy dials
        self._sets: dict[int, tuple[EffectivePolicy, PolicySet]] = {}  # slot → its policy, made ready to be asked
        self._opened: dict[int, Book] = {}  # of direct names

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
        for name, addresses in self._opened.get(bottle.slot, Book()).items():
            for address, until in addresses.items():
                left_s = max(0, int(until - now))
                more_nft, more_bpf = learned(policies, name, (address,), left_s, held=held)
                nft += more_nft
                bpf += more_bpf if left_s else []
        return nft, bpf

    def _held(self, slot: int, now: float) -> Container[Address]:
        """Addresses that a name or inspected rule of the bottle resolves to: never opened as direct (DESIGN 3)."""
        return self._served.get(slot, Book()).open_at(now)

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
        left_out = ""
        held = self._held(bottle.slot, time.monotonic())
        usable = tuple(address for address in usable if address not in held)
        self.names.note(bottle.slot, message.name, usable)
        if decision.allowed:  # otherwise observe mode: the kernel layers relax the allowlist themselves
            timeout_s = _timeout(message.ttl_s)
            usable, left_out = self._room(self._opened, bottle, message.name, usable, timeout_s)
            nft, bpf = learned(policies, message.name, usable, timeout_s)
            if nft:
                self._netfilter.learn(bottle.slot, nft)
            if bpf:
                self._bpf_learn(bottle.slot, bpf)
        return _committed(message, usable, left_out)

    def _for_service(self, bottle: Bottle, message: wire.Commit, usable: tuple[Address, ...]) -> wire.Committed:
        policies = self._policies(bottle)
        for port in message.ports:
            decision = policies.decide_name(message.name, port)
            if not decision.allowed or decision.depth is Depth.DIRECT:
                return wire.Committed(message.id, (), decision.reason or "not a name rule")
        usable = tuple(a for a in usable if not any(policies.denies_address(a, p, "tcp") for p in message.ports))
        ports = tuple((port, port) for port in message.ports)
        timeout_s = _timeout(message.ttl_s)
        usable, left_out = self._room(self._served, bottle, message.name, usable, timeout_s)
        self._fence(bottle, policies, usable)
        self._netfilter.permit_service([Learned(address, "tcp", ports, timeout_s) for address in usable])
        return _committed(message, usable, left_out)

    @staticmethod
    def _room(
        books: dict[int, Book], bottle: Bottle, name: str, usable: tuple[Address, ...], timeout_s: int
    ) -> tuple[tuple[Address, ...], str]:
        """What there is room for, noted; and FULL where that is not all."""
        now = time.monotonic()
        most = bottle.policy.limits.get("addresses", LIMITS["addresses"])
        taken = books.setdefault(bottle.slot, Book()).open(name, usable, now, now + timeout_s, most)
        return taken, FULL if len(taken) < len(usable) else ""

    def _fence(self, bottle: Bottle, policies: PolicySet, addresses: tuple[Address, ...]) -> None:
        """Deny what a direct rule, or a direct name's answer, would open although a deeper rule holds it."""
        book = self._opened.get(bottle.slot, Book())
        opened = book.addresses()
        fenced = self._fenced.setdefault(bottle.slot, set())
        new = {a for a in addresses if a in opened or _directly(policies, a)} - fenced
        if new:
            fenced |= new
            book.drop(new)
            self._refence(bottle)

    def fenced(self, slot: int) -> frozenset[Address]:
        """Addresses to be denied beside the policy's own denies."""
        return frozenset(self._fenced.get(slot, ()))


def _committed(message: wire.Commit, usable: tuple[Address, ...], left_out: str) -> wire.Committed:
    return wire.Committed(message.id, tuple(map(str, usable)), left_out or ("" if usable else "no usable address"))


def _directly(policies: PolicySet, address: Address) -> bool:
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
