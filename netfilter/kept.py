"""What HostNetfilter remembers between calls: sockets in the host's namespace, bottles by slot.

A cache: a new one finds the objects by name and adopts them.
"""

from __future__ import annotations

import errno
import re

from netfilter.bottle import Bottle
from netfilter.elements import Segments
from netfilter.errors import KernelRefused
from netfilter.forwarding import Forwarding
from netfilter.language import TABLE
from netfilter.netns import uplink
from netfilter.netns.conntrack import Conntrack
from netfilter.netns.wire import ROUTE, Netlink
from netfilter.nfnetlink import Elements
from netfilter.nft import Nft
from netfilter.spec import Address, HostSpec, Network
from netfilter.verdict import own_networks


class Edges:
    """Sockets in the host's namespace."""

    def __init__(self, prefix: str, service_veth: str) -> None:
        self.nft = Nft()
        self.elements = Elements(TABLE)
        self.route = Netlink(ROUTE)
        self.conntrack = Conntrack()
        self.walker = Conntrack()  # for walks beside everything else
        self.forwarding = Forwarding(self.nft, rf"{re.escape(prefix)}\d+|{re.escape(service_veth)}")

    def close(self) -> None:
        for edge in (self.elements, self.route, self.conntrack, self.walker):
            edge.close()


class Kept:
    """:param prefix: of device and namespace names: `<prefix><slot>`, `<prefix>-<slot>`."""

    def __init__(self, prefix: str = "am") -> None:
        self._prefix = prefix
        self._host: HostSpec | None = None
        self._bottles: dict[int, Bottle] = {}
        self._dialled = Segments()
        self._kept: Edges | None = None
        self._mtu = uplink.USUAL

    def _edges(self) -> Edges:
        if self._kept is None:
            self._kept = Edges(self._prefix, "" if self._host is None else self._host.service_veth)
        return self._kept

    def _own(self) -> tuple[Network, ...]:
        return () if self._host is None else own_networks(self._host)

    def _bottle(self, slot: int) -> Bottle:
        try:
            return self._bottles[slot]
        except KeyError:
            raise KernelRefused(errno.ENOENT, f"bottle {slot}", "it was neither created nor adopted") from None

    def _addresses(self, slot: int) -> tuple[Address, ...]:
        """Of a bottle that nobody told us about: a slot is an offset into the pools."""
        known = self._bottles.get(slot)
        if known is not None:
            return known.addresses()
        return tuple(pool[slot] for pool in self._own() if slot < pool.num_addresses)
