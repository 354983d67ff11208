"""What netfilter is told: frozen, validated values, and the protocol that the kernel edge and the fake both keep.

Addresses are ipaddress objects, ports are inclusive (lo, hi) pairs in host order, times are integer seconds
unless the name says otherwise. IPv4 and IPv6 entries stand in the same tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal, NamedTuple, Protocol

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Proto = Literal["tcp", "udp"]

EPOCH_MASK = 0x00FF_FFFF  # the field of the conntrack mark that carries a bottle's epoch
PASS_MARK = 0x0100_0000  # the packet-mark bit without which the routing backstop refuses to forward


class Mode(Enum):
    """What a bottle's host chain does with a new flow."""

    CLOSED = "closed"  # nothing passes, services included
    ENFORCE = "enforce"
    OBSERVE = "observe"  # the allowlist is relaxed; protected destinations stay refused
    CUT = "cut"  # only resolver and proxy


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One service a bottle may always reach."""

    address: Address
    proto: Proto
    port: int
    survives_cut: bool  # resolver and proxy: yes; relay: no


@dataclass(frozen=True, slots=True)
class Direct:
    """A direct rule: `network` on `ports` of `proto`. All ports: ((1, 65535),)."""

    network: Network
    proto: Proto
    ports: tuple[tuple[int, int], ...] = ((1, 65535),)


class Learned(NamedTuple):
    """An address that a permitted name resolved to, usable for `timeout_s` from the commit (an answer renews it).

    A tuple, since thousands are made, hashed and compared at a change.
    """

    address: Address
    proto: Proto
    ports: tuple[tuple[int, int], ...]
    timeout_s: int  # 0: opens nothing now, but flows to it that live are still allowed


@dataclass(frozen=True, slots=True)
class HostSpec:
    """Facts that hold for every bottle of the host."""

    pool4: IPv4Network
    pool6: IPv6Network | None
    gateway4: IPv4Address
    gateway6: IPv6Address | None
    service_netns: str
    service_veth: str
    service_addresses: tuple[
        Address, ...
    ]  # all live on the service namespace's eth0; [0] of each family is its own source address
    upstream_dns: tuple[tuple[Address, int], ...] = ()  # (address, port), UDP and TCP, that the resolver may ask
    service_dials: tuple[tuple[Address, int], ...] = ()  # (address, port), TCP, that services need at all times


@dataclass(frozen=True, slots=True)
class Foreign:
    """A namespace that others made and agentmon holds: `dns` is where its queries are led, at most one a family."""

    dns: tuple[Address, ...] = ()
    device: str = "agentmon0"  # our device in there, beside its own


@dataclass(frozen=True, slots=True)
class Holding:
    """Which ways out of a foreign namespace the host side shuts: `shut` by host device, and what it cannot (`open`, by
    the device inside): those the rules inside and the cgroup programs hold alone."""

    shut: tuple[str, ...] = ()
    open: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BottleNet:
    """The links and addresses of one bottle; everything follows from the slot (agentmon.addresses)."""

    slot: int
    netns: str
    veth: str
    mac_host: str
    mac_bottle: str
    addr4: IPv4Address
    addr6: IPv6Address | None
    gateway4: IPv4Address
    gateway6: IPv6Address | None
    foreign: Foreign | None = None


@dataclass(frozen=True, slots=True)
class BottleRules:
    """One bottle's policy, as packets see it. `deny` wins over `allow` and over learned addresses."""

    slot: int
    epoch: int  # 1 … EPOCH_MASK, never reused on this host
    mode: Mode
    services: tuple[Endpoint, ...] = ()
    allow: tuple[Direct, ...] = ()
    deny: tuple[Direct, ...] = ()
    learned: tuple[Learned, ...] = field(default=())  # carried over when the chain is switched


class Netfilter(Protocol):
    """What the daemon uses. Every call is one atomic change or raises and leaves the previous state in force.

    Errors: :class:`netfilter.errors.KernelRefused` (an OSError: errno kept, the refused operation described),
    :class:`netfilter.errors.Missing` (a kernel feature or package is not there; says which).
    All `delete_*` and `close_*` calls are idempotent and need nothing but the slot.
    """

    def open_host(self, host: HostSpec) -> None:
        """Make the host table (everything closed), routing backstop, service namespace with its addresses, and
        forwarding on the interfaces concerned; idempotent, adopts what is there without a window."""

    def close_host(self) -> None:
        """Remove all of the above and undo the forwarding switches that open_host made."""

    def create_bottle(self, net: BottleNet) -> None:
        """Namespace, veth, addresses, routes, neighbours; deny-all tables on both sides."""

    def attach_bottle(self, net: BottleNet, namespace: str, inode: int) -> Holding:
        """Take the namespace at path `namespace` (with this inode number) as the bottle's: deny-all on both sides, its
        own ways out shut, a device of ours as the only one. `net.foreign` is set.

        :raises KernelRefused: ESTALE, there is another namespace by now."""

    def hold_again(self, slot: int) -> tuple[str, ...]:
        """Put back what somebody in a foreign namespace took away, and shut new ways out; says what, in words."""

    def adopt_bottle(self, net: BottleNet) -> None:
        """Take over a bottle that another instance made; changes nothing in the kernel."""

    def delete_bottle(self, slot: int) -> None:
        """Conntrack entries first, then rules, links, namespace. A foreign one gets its own ways out back."""

    def apply(self, rules: BottleRules) -> None:
        """Put `rules` in force on both sides. Same epoch: additions, live flows go on. New epoch: flows that the new
        rules (or `learned`) still allow are re-marked first, the rest lose conntrack entry and sockets."""

    def put(self, rules: BottleRules) -> bool:
        """The same at once: what the new rules refuse is refused when it returns, but may not be ended yet. True:
        `end_refused` is still to be called."""

    def plan(self, rules: BottleRules) -> list[str]:
        """What `apply` would do, a line for each step; nothing is changed."""

    def learn(self, slot: int, entries: Sequence[Learned]) -> None:
        """Add or renew learned addresses on both sides; committed when it returns."""

    def permit_service(self, entries: Sequence[Learned]) -> None:
        """Add or renew what the service namespace itself may dial (vetted upstreams of name and inspected rules)."""

    def cut(self, slot: int) -> None:
        """One element: from now on the bottle reaches only services that survive a cut."""

    def walk(self, slot: int) -> Callable[[], Sequence[Any]]:
        """A look for the flows of a bottle, which may be called in another thread, one at a time: for `end_refused`."""

    def end_refused(self, slot: int, walked: Sequence[Any] | None = None) -> int:
        """End what lives and the rules in force refuse: conntrack entries deleted, sockets killed; how many."""

    def destroy_flows(self, slot: int) -> int:
        """Delete every conntrack entry and kill every TCP socket of the bottle, services included; how many."""

    def refusals(self, slot: int) -> dict[str, int]:
        """Packets refused on the host side so far, by reason (`policy`, `spoof`, `protected`, `cut`, …)."""

    def slots(self) -> frozenset[int]:
        """Slots for which the kernel holds any of our objects: what a starting daemon adopts or cleans."""
