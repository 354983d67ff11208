"""Which address, device and name belongs to what: pure arithmetic from a pool and a slot.

    offset in the pool   1 gateway (host side of every veth) · 2 resolver, and the service namespace's own address
                         3 relay · 4…15 proxy workers · 16… bottles (slot = offset)

A *slot* is a small integer that names one running bottle in the kernel: its veth `am<slot>`, netns
`am-<slot>`, nft chain `b<slot>`, cgroup `b<slot>` and addresses all follow from it, so cleaning up needs
nothing else. IPv6 uses the same offsets; `addr6` fields are None on a host without IPv6.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

FIRST_SLOT = 16
MAX_PROXIES = 12
SERVICE_NETNS = "am-svc"
SERVICE_VETH = "am-svc"  # host side; inside the service namespace the device is eth0


@dataclass(frozen=True, slots=True)
class Pair:
    """One address in each family; `v6` is None where the host has no IPv6."""

    v4: IPv4Address
    v6: IPv6Address | None

    def all(self) -> tuple[IPv4Address | IPv6Address, ...]:
        return (self.v4,) if self.v6 is None else (self.v4, self.v6)


@dataclass(frozen=True, slots=True)
class Pool:
    """The addresses agentmon hands out; every value is derived, nothing is stored.

    :raises ValueError: for a network with fewer than 32 addresses.
    """

    v4: IPv4Network = IPv4Network("10.213.0.0/16")
    v6: IPv6Network | None = IPv6Network("fd61:6d6f:6e::/64")

    def __post_init__(self) -> None:
        if self.v4.num_addresses < 32 or (self.v6 is not None and self.v6.num_addresses < 32):
            raise ValueError(f"address pool {self.v4} is too small: at least a /27 (v4) or /123 (v6) is needed")

    def at(self, offset: int) -> Pair:
        return Pair(self.v4[offset], None if self.v6 is None else self.v6[offset])

    @property
    def gateway(self) -> Pair:
        return self.at(1)

    @property
    def resolver(self) -> Pair:
        return self.at(2)

    @property
    def relay(self) -> Pair:
        return self.at(3)

    def proxy(self, worker: int) -> Pair:
        if not 0 <= worker < MAX_PROXIES:
            raise ValueError(f"proxy worker {worker}: 0 to {MAX_PROXIES - 1} exist")
        return self.at(4 + worker)

    @property
    def last_slot(self) -> int:
        """The highest slot; v4's broadcast address is left out. At most 65,000 so that device names stay short."""
        return min(self.v4.num_addresses - 2, 65_000)

    def slot_of(self, address: IPv4Address | IPv6Address) -> int | None:
        """The slot that owns `address`, or None: services know a bottle by its (spoof-proof) source address."""
        net = self.v4 if address.version == 4 else self.v6
        if net is None or address not in net:
            return None
        offset = int(address) - int(net.network_address)
        return offset if FIRST_SLOT <= offset <= self.last_slot else None


def veth(slot: int) -> str:
    """The host side's device name; the bottle's side is always eth0."""
    return f"am{slot}"


def netns(slot: int) -> str:
    return f"am-{slot}"


def mac(slot: int, *, host: bool) -> str:
    """Locally administered, fixed by slot and side: both sides get permanent neighbour entries, so no ARP is needed."""
    return f"02:61:6d:{1 if host else 0:02x}:{slot >> 8:02x}:{slot & 255:02x}"
