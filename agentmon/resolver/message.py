"""DNS messages of bottles: a strict reader for queries, and replies built from nothing but the question.

Nothing of the query but its id, its question (letter case kept: 0x20) and the RD flag comes back: EDNS is
rebuilt, options and DO are dropped, so that no answer carries more than addresses.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import dns.edns
import dns.exception
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from agentmon.resolver.records import PAYLOAD, wire_name

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
_HOST_LABEL = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_OPT = re.compile(rb"\0\0\x29..\0\0[\0\x80]\0\0\0", re.DOTALL)
_MAX_SECTION = 255 + 4
_COUNTS = struct.Struct(">5H")
_FIXED = struct.Struct(">HHIH")  # of a record, after its name
_QUESTIONS_NAME = b"\xc0\x0c"
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_SOA_DATA = wire_name("agentmon.internal") + wire_name("nobody.agentmon.internal")
_SOA_DATA += struct.pack(">5I", 1, 3600, 600, 86400, NEGATIVE_TTL_S)
_SOA = b"\0" + _FIXED.pack(dns.rdatatype.SOA, dns.rdataclass.IN, NEGATIVE_TTL_S, len(_SOA_DATA)) + _SOA_DATA


class Drop(Exception):
    """The datagram deserves no answer (not a query, or too short to have an id)."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `name` is "" when its labels cannot be a host name; such a name is never allowed."""

    number: bytes  # its id
    section: bytes  # the question as it came, letter case and all; b"" where there is none to repeat
    name: str  # lower case, no trailing dot
    shown: str  # the same for people, whatever the labels hold
    rdtype: int
    payload: int  # what the asker takes over UDP, 512 without EDNS
    recursion: bool  # RD
    edns: bool
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
    return _ordinary(data) or _any(data)


def _ordinary(data: bytes) -> Query | None:
    """What stubs send, read by hand: one host name, class IN, nothing behind it or an OPT record without options."""
    labels, at = [], _HEADER_BYTES
    while at < len(data) and (length := data[at]):
        labels.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    section, opt = data[_HEADER_BYTES : at + 5], data[at + 5 :]
    if len(section) != at + 5 - _HEADER_BYTES or len(section) > _MAX_SECTION or section[-2:] != b"\0\1":
        return None
    if data[10:12] != bytes((0, bool(opt))) or (opt and not _OPT.fullmatch(opt)):
        return None
    if not labels or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        return None
    name = b".".join(labels).decode("ascii").lower()
    payload = max(512, min(int.from_bytes(opt[3:5], "big"), PAYLOAD)) if opt else 512
    rdtype = int.from_bytes(section[-4:-2], "big")
    return Query(data[:2], section, name, name, rdtype, payload, bool(data[2] & 1), bool(opt))


def _any(data: bytes) -> Query:
    try:
        message = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError):
        return _broken(data, FORMERR)
    question = message.question[0]
    host = _host(question.name)
    error = None
    if question.rdclass != dns.rdataclass.IN:
        error = NOTIMP
    elif message.edns > 0:
        error = BADVERS
    edns = message.edns >= 0
    name = b"".join(bytes((len(label),)) + label for label in question.name.labels)
    section = data[_HEADER_BYTES : _HEADER_BYTES + len(name) + 4]
    if not section.startswith(name):  # compressed, into the header
        return _broken(data, FORMERR)
    return Query(
        number=data[:2],
        section=section,
        name=host,
        shown=host or question.name.to_text(omit_final_dot=True),
        rdtype=question.rdtype,
        payload=max(512, min(message.payload, PAYLOAD)) if edns else 512,
        recursion=bool(data[2] & 1),
        edns=edns,
        error=error,
    )


def _host(name: dns.name.Name) -> str:
    labels = name.labels[:-1]
    if not labels or not all(_HOST_BYTES.issuperset(label) for label in labels):
        return ""
    if any(label.startswith(b"-") or label.endswith(b"-") for label in labels):
        return ""
    return b".".join(labels).decode("ascii").lower()


def _broken(data: bytes, rcode: dns.rcode.Rcode) -> Query:
    return Query(data[:2], b"", "", "", 0, 512, bool(data[2] & 1), False, rcode)


def reply(
    query: Query, rcode: dns.rcode.Rcode, addresses: Sequence[str] = (), ttl_s: int = 0, *, udp: bool = True
) -> bytes:
    """The reply to `query`: these addresses (of its type) at the question's own name, or an SOA that says how long
    "no" holds. Over UDP what does not fit is left out and TC set."""
    answers = [_record(query.rdtype, ttl_s, ip_address(text).packed) for text in addresses] if query.section else []
    authority = [_SOA] if query.section and not answers and rcode in {NOERROR, NXDOMAIN} else []
    wire = _message(query, rcode, answers, authority, 0)
    if udp and len(wire) > query.payload:
        return _message(query, rcode, [], [], _TC)
    return wire


def _message(query: Query, rcode: int, answers: list[bytes], authority: list[bytes], more: int) -> bytes:
    flags = _QR | _RA | (_RD if query.recursion else 0) | more | (rcode & 15)
    opt = [b"\0" + _FIXED.pack(dns.rdatatype.OPT, PAYLOAD, rcode >> 4 << 24, 0)] if query.edns else []
    header = _COUNTS.pack(flags, 1 if query.section else 0, len(answers), len(authority), len(opt))
    return b"".join((query.number, header, query.section, *answers, *authority, *opt))


def _record(rdtype: int, ttl_s: int, data: bytes) -> bytes:
    return _QUESTIONS_NAME + _FIXED.pack(rdtype, dns.rdataclass.IN, ttl_s, len(data)) + data
