"""Which of a name's addresses may be used: those that are nobody's own and that the rule may lead to. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from agentmon.policy.rules import private_only_exact, stripped

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Strip:
    """`own`: addresses and networks of the host and its bottles, as text."""

    def __init__(self, own: Iterable[str]) -> None:
        self._own: tuple[Network, ...] = tuple(ip_network(text) for text in own)

    def split(self, addresses: Iterable[str], *, exact: bool) -> tuple[list[str], list[tuple[str, str]]]:
        """(usable addresses in their order, [(address, why it is not used)])."""
        usable: list[str] = []
        refused: list[tuple[str, str]] = []
        for text in addresses:
            address = ip_address(text)
            why = self._why(address, exact)
            if why:
                refused.append((str(address), why))
            else:
                usable.append(str(address))
        return usable, refused

    def _why(self, address: Address, exact: bool) -> str:
        why = stripped(address)
        if why:
            return why
        if any(address.version == net.version and address in net for net in self._own):
            return "own"
        if not exact and private_only_exact(address):
            return "private"
        return ""
