"""Messages to and from upstream servers: questions made and responses read by hand, since every miss pays for both.

A response is hostile bytes. The reader looks at no more than MAX_RECORDS records, follows compression pointers only
backwards, keeps addresses, aliases and the SOA's times, and raises Malformed for everything else that is wrong.
A *name* here is its uncompressed wire form in lower case (RFC 1035, section 3.1): a dot in a label means nothing.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

A, CNAME, SOA, AAAA, OPT = 1, 5, 6, 28, 41
NOERROR, NXDOMAIN = 0, 3
PAYLOAD = 1232  # what we take over UDP: never fragmented
MAX_RECORDS = 1000  # of one response; the largest useful one has some seventy
_IN = 1
_MAX_NAME = 255
_SOA_BYTES = 22  # two names of a byte at least, five numbers
_HEADER = struct.Struct(">6H")
_FIXED = struct.Struct(">HHIH")  # of a record, after its name: type, class, TTL, length of the data
_OPT = b"\0" + _FIXED.pack(OPT, PAYLOAD, 0, 0)
_QR, _OPCODE, _TC, _RD = 0x8000, 0x7800, 0x0200, 0x0100


class Malformed(Exception):
    """No DNS message, or none that a server would send."""


class Match(Enum):
    """Whether a response belongs to a question."""

    NO = "another id or question, or no response: as if it had not come"
    CASE = "the question's letters came back in another case: a server that is careless, or somebody who guesses"
    YES = "every letter as it was sent"


@dataclass(frozen=True, slots=True)
class Question:
    """`wire` is the whole query; its question's letters have random case (0x20)."""

    wire: bytes
    rdtype: int
    name: bytes

    @property
    def section(self) -> bytes:
        return self.wire[_HEADER.size : _HEADER.size + len(self.name) + 4]


@dataclass(slots=True)
class RRset:
    """`data`: texts of addresses, or the one name an alias leads to."""

    ttl_s: int
    data: list[str] = field(default_factory=list)
    target: bytes = b""


@dataclass(slots=True)
class Response:
    rcode: int
    sets: dict[tuple[bytes, int], RRset] = field(default_factory=dict)
    negative_s: int | None = None  # how long "no" holds by the SOA (RFC 2308, section 5); None without one


def wire_name(name: str) -> bytes:
    """Of a host name as the policy has it: ASCII, lower case, no trailing dot."""
    return b"".join(bytes((len(label),)) + label.encode("ascii") for label in name.split(".")) + b"\0"


def host_text(name: bytes) -> str:
    """:raises Malformed: its labels cannot be a host name's."""
    labels, at = [], 0
    while name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    if not labels or any(not label.replace(b"-", b"").replace(b"_", b"").isalnum() for label in labels):
        raise Malformed("an alias to what is no host name")
    return b".".join(labels).decode("ascii")


def question(name: str, rdtype: int) -> Question:
    """With a random id and random case; the caller sends it once, from a port of its own."""
    plain = wire_name(name)
    coins = secrets.randbits(8 * len(plain))
    mixed = bytes(c ^ 0x20 if 97 <= c <= 122 and coins >> at & 1 else c for at, c in enumerate(plain))
    header = _HEADER.pack(secrets.randbits(16), _RD, 1, 0, 0, 1)
    return Question(header + mixed + struct.pack(">HH", rdtype, _IN) + _OPT, rdtype, plain)


def match(data: bytes, asked: Question) -> Match:
    if len(data) < _HEADER.size or data[:2] != asked.wire[:2]:
        return Match.NO
    _, flags, questions, _, _, _ = _HEADER.unpack_from(data)
    if not flags & _QR or flags & _OPCODE or questions != 1:
        return Match.NO
    theirs, ours = data[_HEADER.size : _HEADER.size + len(asked.section)], asked.section
    if theirs == ours:
        return Match.YES
    return Match.CASE if theirs[:-4].lower() == ours[:-4].lower() and theirs[-4:] == ours[-4:] else Match.NO


def truncated(data: bytes) -> bool:
    return bool(data[2] & _TC >> 8)


def read(data: bytes, asked: Question) -> Response:
    """What a response that matches says. :raises Malformed: see the module."""
    _, flags, _, answers, authority, additional = _HEADER.unpack_from(data)
    if answers + authority + additional > MAX_RECORDS:
        raise Malformed(f"{answers + authority + additional} records")
    response = Response(flags & 15)
    at = _HEADER.size + len(asked.section)
    try:
        for number in range(answers + authority + additional):
            name, at = _name(data, at)
            rdtype, rdclass, ttl_s, length = _FIXED.unpack_from(data, at)
            at += _FIXED.size
            if at + length > len(data):
                raise Malformed("a record reaches past the end")
            if rdtype == OPT:
                response.rcode |= ttl_s >> 24 << 4  # the upper bits (RFC 6891, section 6.1.3)
            elif rdclass == _IN:
                ttl_s = ttl_s if ttl_s < 1 << 31 else 0  # RFC 2181, section 8
                if number < answers:
                    _keep(response, data, at, length, (name, rdtype), ttl_s, asked.rdtype)
                elif number < answers + authority and rdtype == SOA and length >= _SOA_BYTES:
                    response.negative_s = min(ttl_s, int.from_bytes(data[at + length - 4 : at + length], "big"))
            at += length
    except (IndexError, struct.error) as e:
        raise Malformed("cut short") from e
    return response


def _keep(
    response: Response, data: bytes, at: int, length: int, key: tuple[bytes, int], ttl_s: int, wanted: int
) -> None:
    rdtype = key[1]
    if rdtype not in {wanted, CNAME}:
        return
    known = response.sets.setdefault(key, RRset(ttl_s))
    known.ttl_s = min(known.ttl_s, ttl_s)
    if rdtype == CNAME:
        target, end = _name(data, at)
        if end != at + length:
            raise Malformed("an alias of another length than it says")
        known.target = known.target or target
    elif rdtype == A and length == 4:
        known.data.append(str(IPv4Address(data[at : at + 4])))
    elif rdtype == AAAA and length == 16:
        known.data.append(str(IPv6Address(data[at : at + 16])))
    else:
        raise Malformed(f"an address of {length} bytes")


def _name(data: bytes, at: int) -> tuple[bytes, int]:
    """(the name at `at`, where the next thing begins). A pointer must lead to before the place it was met from, so
    that no chain of them goes on for ever."""
    out, end, floor, size = [], 0, at, 1
    while length := data[at]:
        if length & 0xC0 == 0xC0:
            end = end or at + 2
            at = (length & 0x3F) << 8 | data[at + 1]
            if at >= floor:
                raise Malformed("a compression pointer leads forward")
            floor = at
            continue
        if length & 0xC0:
            raise Malformed("a label of unknown kind")
        size += length + 1
        if size > _MAX_NAME:
            raise Malformed("a name of more than 255 bytes")
        label = data[at : at + length + 1]
        if len(label) <= length:
            raise IndexError
        out.append(label)
        at += length + 1
    return b"".join(out).lower() + b"\0", end or at + 1
