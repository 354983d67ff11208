"""Addresses that no policy opens and no DNS answer carries, and those that only an exact name may lead to.

Sources: RFC 6890 and the IANA special-purpose registries; RFC 4291 section 2.5.5 (mapped, compatible), RFC 6052 and
RFC 8215 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP); the clouds' documents for metadata services.
Documentation ranges are ordinary addresses.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network


def _v4(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(t) for t in texts)


def _v6(*texts: str) -> tuple[IPv6Network, ...]:
    return tuple(IPv6Network(t) for t in texts)


# Azure, Alibaba, Oracle; the common 169.254.169.254 is link-local already.
_METADATA4 = _v4("168.63.129.16", "100.100.100.200", "192.0.0.192")
_METADATA6 = _v6("fd00:ec2::254", "fd20:ce::254")  # AWS; Google
# Where the start-up probe proves that a forbidden path is refused (RFC 2544, RFC 5180): no policy may open it.
_PROBE4, _PROBE6 = _v4("198.18.0.1"), _v6("2001:2::1")

METADATA: tuple[Network, ...] = (IPv4Network("169.254.169.254"), *_METADATA4, *_METADATA6)

_NEVER4: tuple[tuple[str, tuple[IPv4Network, ...]], ...] = (
    ("unspecified", _v4("0.0.0.0/8")),
    ("loopback", _v4("127.0.0.0/8")),
    ("link-local", _v4("169.254.0.0/16")),
    ("metadata", _METADATA4),
    ("multicast or reserved", _v4("224.0.0.0/3")),
    ("probe", _PROBE4),
)
_NEVER6: tuple[tuple[str, tuple[IPv6Network, ...]], ...] = (
    ("unspecified", _v6("::")),
    ("loopback", _v6("::1")),
    ("link-local", _v6("fe80::/10", "fec0::/10")),
    ("metadata", _METADATA6),
    ("multicast or reserved", _v6("ff00::/8")),
    ("IPv4-mapped", _v6("::ffff:0:0/96")),
    ("probe", _PROBE6),
)
_EMBEDDED6 = _v6("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # bits 32…63 of the address

NEVER_ANSWERED: tuple[tuple[str, tuple[Network, ...]], ...] = (*_NEVER4, *_NEVER6, ("embedded IPv4", _EMBEDDED6))

_PRIVATE4 = _v4("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
_PRIVATE6 = _v6("fc00::/7")

# Single addresses that a wider network may cover (100.64.0.0/10 and 2000::/3 are common): the covering rule is
# accepted, the address itself stays refused in every layer (`protected_in`).
_COVERABLE: frozenset[Network] = frozenset(
    (*_v4("100.100.100.200", "192.0.0.192"), *_v6("fd20:ce::254"), *_PROBE4, *_PROBE6)
)


def _masks(networks: tuple[IPv4Network, ...] | tuple[IPv6Network, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((int(n.netmask), int(n.network_address)) for n in networks)


_TABLE4 = tuple((reason, _masks(nets)) for reason, nets in _NEVER4)
_TABLE6 = (*((reason, _masks(nets)) for reason, nets in _NEVER6), ("embedded IPv4", _masks(_EMBEDDED6)))
_PRIVATE_MASKS4, _PRIVATE_MASKS6 = _masks(_PRIVATE4), _masks(_PRIVATE6)


def stripped(address: Address) -> str | None:
    """Why the resolver never answers with `address` and no rule opens it; None for an ordinary (or private) address."""
    number = int(address)
    for reason, masks in _TABLE4 if address.version == 4 else _TABLE6:
        for mask, base in masks:
            if number & mask == base:
                return reason
    if address.version == 6 and (number >> 32) & 0xFFFF_FFFF in _ISATAP:
        return "embedded IPv4"
    return None


def private_only_exact(address: Address) -> bool:
    """True for RFC 1918, CGNAT and ULA addresses: only a rule that names the host exactly may lead there."""
    number = int(address)
    masks = _PRIVATE_MASKS4 if address.version == 4 else _PRIVATE_MASKS6
    return any(number & mask == base for mask, base in masks)


def uncoverable(network: Network) -> tuple[str, Network] | None:
    """What makes `network` unusable in an allow rule: (reason, the protected range it touches), or None."""
    for reason, ranges in NEVER_ANSWERED:
        for protected in ranges:
            if protected.version != network.version or not network.overlaps(protected):
                continue
            inside = network.prefixlen >= protected.prefixlen
            if inside or (reason != "embedded IPv4" and protected not in _COVERABLE):
                return reason, protected
    return None


def protected_in(network: Network) -> tuple[Network, ...]:
    """The protected ranges inside an accepted network: every layer denies these, whatever the rule says."""
    found = [
        protected
        for _, ranges in NEVER_ANSWERED
        for protected in ranges
        if protected.version == network.version and network.overlaps(protected)
    ]
    return tuple(dict.fromkeys(found))
