"""The verdict of am_verdict.h in Python: the fake decides with it, and a test holds the kernel to it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from ebpf.spec import Address, BottlePolicy, Entry, Guard, Mode, Network, Proto


class Verdict(NamedTuple):
    """`verdict` and `reason` are words of ebpf.abi.VERDICTS and REASONS; `rule` is that of the entry that decided."""

    verdict: str
    reason: str
    rule: int = 0


class Learned(NamedTuple):
    """An entry and when it ends (CLOCK_BOOTTIME, 0: never)."""

    entry: Entry
    expires_ns: int


_PROTECTED4 = [
    IPv4Network(n)
    for n in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "168.63.129.16/32", "224.0.0.0/4", "240.0.0.0/4")
]
_PROTECTED6 = [IPv6Network(n) for n in ("::/96", "fe80::/10", "ff00::/8", "fd00:ec2::254/128")]
_NAT64 = IPv6Network("64:ff9b::/96")


def plain(address: Address) -> Address:
    """The IPv4 address of a mapped one."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def is_loopback(address: Address) -> bool:
    return plain(address).is_loopback


def is_protected(address: Address) -> bool:
    """Whether no policy, in no mode, opens this destination (services apart)."""
    plainly = plain(address)
    if isinstance(plainly, IPv6Address):
        if plainly in _NAT64:
            plainly = IPv4Address(int(plainly) & 0xFFFF_FFFF)
        else:
            return any(plainly in n for n in _PROTECTED6)
    return any(plainly in n for n in _PROTECTED4)


def decide(
    policy: BottlePolicy | None,
    learned: Iterable[Learned],
    cookie: int,
    proto: Proto,
    to: tuple[Address, int],
    now_ns: int,
) -> Verdict:
    """What the programs say about a socket of the namespace `cookie` going to the address and port `to`."""
    if policy is None:
        return Verdict("refused", "unknown")
    address, port = plain(to[0]), to[1]
    fixed = _fixed(policy, cookie, proto, address, port)
    if fixed is not None:
        return fixed
    denied = next((e for e in policy.deny if _covers(e, proto, address, port)), None)
    if denied is not None:
        return Verdict("refused", "deny", denied.rule)
    reason = "default"
    for entry, expires_ns in [*((e, 0) for e in policy.allow if not e.timeout_s), *learned]:
        if _covers(entry, proto, address, port):
            if expires_ns == 0 or expires_ns > now_ns:
                return Verdict("allowed", "rule", entry.rule)
            reason = "expired"
    return Verdict("observed" if policy.mode is Mode.OBSERVE else "refused", reason)


def judge_vouch(policy: BottlePolicy, found: Verdict, *, exempt: bool) -> tuple[Verdict, bool]:
    """What becomes of `found` when a guarded process did it without a vouch, and whether that is a bypass.

    :param exempt: the destination needs none (Endpoint.unvouched)."""
    if policy.guard is Guard.OFF or exempt or found.reason in ("closed", "netns"):
        return found, False
    if found.verdict == "refused":
        return found, True
    if policy.guard is Guard.STRICT:
        return found._replace(verdict="refused", reason="unvouched"), True
    if found.verdict == "allowed":
        return found._replace(verdict="observed", reason="unvouched"), True
    return found, True


def _fixed(policy: BottlePolicy, cookie: int, proto: Proto, address: Address, port: int) -> Verdict | None:
    """What holds whatever the rules say, or None."""
    cut = policy.mode is Mode.CUT
    service = next((s for s in policy.services if (plain(s.address), s.proto, s.port) == (address, proto, port)), None)
    if policy.mode is Mode.CLOSED:
        return Verdict("refused", "closed")
    if policy.netns_cookie not in (0, cookie):
        return Verdict("refused", "netns")
    if service is not None:
        return Verdict("refused", "cut") if cut and not service.survives_cut else Verdict("allowed", "service")
    if policy.netns_cookie and is_loopback(address):
        return Verdict("allowed", "loopback")
    if is_protected(address):
        return Verdict("refused", "protected")
    return Verdict("refused", "cut") if cut else None


def _covers(entry: Entry, proto: Proto, address: Address, port: int) -> bool:
    return entry.proto == proto and _inside(entry.network, address) and any(lo <= port <= hi for lo, hi in entry.ports)


def _inside(network: Network, address: Address) -> bool:
    """IPv6 networks never cover IPv4 addresses, but a network of mapped addresses is the IPv4 one."""
    mapped = plain(network.network_address)
    if mapped.version == address.version and mapped.version != network.version and network.prefixlen >= 96:
        return address in IPv4Network((mapped.packed, network.prefixlen - 96))
    return network.version == address.version and address in network
