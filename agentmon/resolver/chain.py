"""What one upstream response says about a name: only what hangs together with the question counts.

response ─ follow ─▶ Chain(addresses, ttl, target): the CNAMEs from the question's name onwards, then the
addresses at their end. Records that the chain does not reach are ignored, wherever they stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

MAX_CNAMES = 12


class Unusable(Exception):
    """The response is not one (loop in the aliases, server failure); the next server may know better."""


@dataclass(frozen=True, slots=True)
class Chain:
    """`target` is set when the response ends at an alias whose addresses must be asked for; `ttl_s` is the least of all
    records used. No addresses and no target: the name has none (`exists` False: NXDOMAIN)."""

    addresses: tuple[str, ...]
    ttl_s: int
    target: str = ""
    exists: bool = True


def follow(response: dns.message.Message, name: str, rdtype: int) -> Chain:
    """:raises Unusable: see there."""
    rcode = response.rcode()
    if rcode not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        raise Unusable(f"upstream answered {dns.rcode.to_text(rcode)}")
    at = dns.name.from_text(name)
    ttl_s = 0x7FFFFFFF
    for hop in range(MAX_CNAMES + 1):
        here = _find(response, at, rdtype)
        if here is not None:
            return Chain(tuple(str(rdata.address) for rdata in here), min(ttl_s, here.ttl))
        alias = _find(response, at, dns.rdatatype.CNAME)
        if alias is None:
            if hop and rcode == dns.rcode.NOERROR and not _has_soa(response):
                return Chain((), ttl_s, target=at.to_text(omit_final_dot=True).lower())
            return Chain((), min(ttl_s, _negative_ttl(response)), exists=rcode == dns.rcode.NOERROR)
        ttl_s = min(ttl_s, alias.ttl)
        at = alias[0].target
    raise Unusable("upstream's aliases form a loop")


def _find(response: dns.message.Message, name: dns.name.Name, rdtype: int) -> dns.rrset.RRset | None:
    for rrset in response.answer:
        if rrset.name == name and rrset.rdtype == rdtype and rrset.rdclass == dns.rdataclass.IN:
            return rrset
    return None


def _has_soa(response: dns.message.Message) -> bool:
    return any(rrset.rdtype == dns.rdatatype.SOA for rrset in response.authority)


def _negative_ttl(response: dns.message.Message) -> int:
    """RFC 2308, section 5: the lesser of the SOA's TTL and its minimum; 0 without an SOA (not to be kept)."""
    for rrset in response.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            return int(min(rrset.ttl, rrset[0].minimum))
    return 0
