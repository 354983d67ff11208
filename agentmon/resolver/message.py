"""DNS messages of bottles: a strict reader for queries, and replies built from nothing but the question.

Nothing of the query but its id, its question (letter case kept: 0x20) and the RD flag comes back: EDNS is
rebuilt, options and DO are dropped, so that no answer carries more than addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

PAYLOAD = 1232  # what we accept and send over UDP: never fragmented
NEGATIVE_TTL_S = 2  # how long a stub may remember a refusal: `agentmon allow` works soon after

Rcode = dns.rcode.Rcode
NOERROR = dns.rcode.NOERROR
NXDOMAIN = dns.rcode.NXDOMAIN
SERVFAIL = dns.rcode.SERVFAIL
FORMERR = dns.rcode.FORMERR
NOTIMP = dns.rcode.NOTIMP
BADVERS = dns.rcode.BADVERS

A = dns.rdatatype.A
AAAA = dns.rdatatype.AAAA

# Now, because after the drop the files may be out of reach.
dns.rdata.load_all_types(disable_dynamic_load=True)  # type: ignore[no-untyped-call]

_HEADER_BYTES = 12
_HOST_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_SOA = dns.rrset.from_text(
    ".", NEGATIVE_TTL_S, "IN", "SOA", f"agentmon.internal. nobody.agentmon.internal. 1 3600 600 86400 {NEGATIVE_TTL_S}"
)


class Drop(Exception):
    """The datagram deserves no answer (not a query, or too short to have an id)."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `name` is "" when its labels cannot be a host name; such a name is never allowed."""

    message: dns.message.Message
    name: str  # lower case, no trailing dot
    rdtype: dns.rdatatype.RdataType
    payload: int  # what the asker takes over UDP, 512 without EDNS
    error: dns.rcode.Rcode | None = None  # to be answered with this code, whatever the name


def parse(data: bytes) -> Query:
    """The question in a datagram or TCP message.

    :raises Drop: answering would make us a reflector, or there is no id to answer with.
    """
    if len(data) < _HEADER_BYTES or data[2] & 0x80:
        raise Drop
    opcode = (data[2] >> 3) & 15
    if opcode != dns.opcode.QUERY:
        return _broken(data, NOTIMP)
    counts = [int.from_bytes(data[at : at + 2], "big") for at in (4, 6, 8)]
    if counts != [1, 0, 0]:
        return _broken(data, FORMERR)
    try:
        message = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError):
        return _broken(data, FORMERR)
    question = message.question[0]
    error = None
    if question.rdclass != dns.rdataclass.IN:
        error = NOTIMP
    elif message.edns > 0:
        error = BADVERS
    payload = max(512, min(message.payload, PAYLOAD)) if message.edns >= 0 else 512
    return Query(message, _host(question.name), question.rdtype, payload, error)


def _host(name: dns.name.Name) -> str:
    labels = name.labels[:-1]
    if not labels or not all(_HOST_BYTES.issuperset(label) for label in labels):
        return ""
    if any(label.startswith(b"-") or label.endswith(b"-") for label in labels):
        return ""
    return b".".join(labels).decode("ascii").lower()


def _broken(data: bytes, rcode: dns.rcode.Rcode) -> Query:
    message = dns.message.QueryMessage(id=int.from_bytes(data[:2], "big"))
    message.flags = dns.flags.RD if data[2] & 1 else dns.flags.Flag(0)
    return Query(message, "", dns.rdatatype.NONE, 512, rcode)


def reply(
    query: Query, rcode: dns.rcode.Rcode, addresses: Sequence[str] = (), ttl_s: int = 0, *, udp: bool = True
) -> bytes:
    """The reply to `query`: these addresses (of its type) at the question's own name, or an SOA that says how long
    "no" holds. Over UDP what does not fit is left out and TC set."""
    message = dns.message.make_response(query.message, recursion_available=True)
    message.flags = dns.flags.QR | dns.flags.RA | (query.message.flags & dns.flags.RD)
    if query.message.edns >= 0:
        message.use_edns(0, 0, PAYLOAD)
    message.set_rcode(rcode)
    if message.question:
        if addresses:
            message.answer.append(
                dns.rrset.from_text_list(
                    message.question[0].name, ttl_s, "IN", dns.rdatatype.to_text(query.rdtype), addresses
                )
            )
        elif rcode in {NOERROR, NXDOMAIN}:
            message.authority.append(_SOA)
    wire = message.to_wire()
    if udp and len(wire) > query.payload:
        message.answer.clear()
        message.authority.clear()
        message.flags |= dns.flags.TC
        wire = message.to_wire()
    return wire
