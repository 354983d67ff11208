"""records.py against dnspython: what a server sends is read alike or refused, whatever it is, and quickly."""

from __future__ import annotations

import struct

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentmon.resolver import records
from agentmon.resolver.chain import Unusable, follow
from agentmon.resolver.records import Malformed, Match

ASKED = records.question("www.wild.example", records.A)
QUERY = dns.message.from_wire(ASKED.wire)
POINTER = b"\xc0\x0c"
RECORD = POINTER + struct.pack(">HHIH", 1, 1, 60, 4) + bytes((203, 0, 113, 1))


def reply(answers: bytes, count: int, flags: int = 0x8180) -> bytes:
    return ASKED.wire[:2] + struct.pack(">5H", flags, 1, count, 0, 0) + ASKED.section + answers


def good() -> bytes:
    message = dns.message.make_response(QUERY)
    name = QUERY.question[0].name
    message.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", "b.wild.example."))
    message.answer.append(dns.rrset.from_text("b.wild.example.", 30, "IN", "A", "203.0.113.1", "203.0.113.2"))
    message.authority.append(dns.rrset.from_text("example.", 9, "IN", "SOA", "ns. root. 1 60 60 60 5"))
    message.use_edns(0, 0, 1232)
    return message.to_wire()


def test_a_question_is_what_it_says_with_letters_and_number_by_chance() -> None:
    assert QUERY.question[0].name == dns.name.from_text("www.wild.example")
    assert (QUERY.flags, QUERY.edns, QUERY.payload, QUERY.options) == (dns.flags.RD, 0, records.PAYLOAD, ())
    made = [records.question("www.wild.example", records.AAAA) for _ in range(64)]
    assert len({q.wire[:2] for q in made}) > 60 and len({q.section for q in made}) > 60
    assert {q.section.lower() for q in made} == {b"\3www\4wild\7example\0\0\x1c\0\1"}


def test_what_belongs_to_a_question() -> None:
    data = good()
    assert records.match(data, ASKED) is Match.YES
    swapped = data[:12] + data[12:28].swapcase() + data[28:]
    assert records.match(swapped, ASKED) is Match.CASE
    for other in (
        b"", data[:11], bytes((data[0] ^ 1,)) + data[1:], data[:2] + b"\x01" + data[3:], data[:2] + b"\xa9" + data[3:],
        data[:5] + b"\2" + data[6:], data[:13] + b"x" + data[14:], data[:33] + b"\3" + data[34:], ASKED.wire,
        data[:31] + b"\x1c" + data[32:],
    ):  # fmt: skip
        assert records.match(other, ASKED) is Match.NO, other
    assert not records.truncated(data) and records.truncated(data[:2] + b"\x83" + data[3:])


def test_what_is_read() -> None:
    response = records.read(good(), ASKED)
    chain = follow(response, ASKED)  # dnspython writes the addresses in any order
    assert (sorted(chain.addresses), chain.ttl_s) == (["203.0.113.1", "203.0.113.2"], 30)
    assert response.negative_s == 5


LOOPS = (
    POINTER[:1] + b"\x22" + RECORD[2:],  # a pointer to itself (34)
    b"\xc0\xff" + RECORD[2:],  # beyond
    b"\x3f" + b"a" * 20,  # a label past the end
    b"\x40" + RECORD[2:],
    b"\x80" + RECORD[2:],
    (b"\x3f" + b"a" * 63) * 4 + b"\0" + RECORD[2:],  # 257 bytes
    RECORD[:-1],
    RECORD[:10],
    POINTER + struct.pack(">HHIH", 1, 1, 60, 5) + b"12345",
    POINTER + struct.pack(">HHIH", 28, 1, 60, 4) + b"1234",
    POINTER + struct.pack(">HHIH", 5, 1, 60, 3) + POINTER + b"x",  # an alias with something behind it
    POINTER + struct.pack(">HHIH", 5, 1, 60, 2) + b"\xc0\x2e",  # whose target is itself
)


@pytest.mark.parametrize("answers", LOOPS)
def test_what_no_server_would_send(answers: bytes) -> None:
    asked = records.Question(ASKED.wire, answers[3] if answers[:2] == POINTER else 1, ASKED.name)
    with pytest.raises(Malformed):
        records.read(reply(answers, 1), asked)


def test_ten_thousand_records_are_not_read() -> None:
    with pytest.raises(Malformed, match="10000 records"):
        records.read(reply(RECORD * 4000, 10_000), ASKED)


def test_the_upper_bits_of_the_code() -> None:
    opt = b"\0" + struct.pack(">HHIH", 41, 1232, 1 << 24, 0)
    data = ASKED.wire[:2] + struct.pack(">5H", 0x8180, 1, 0, 0, 1) + ASKED.section + opt
    with pytest.raises(Unusable, match="BADVERS"):
        follow(records.read(data, ASKED), ASKED)


@given(st.binary(max_size=120), st.integers(0, 6))
@example(RECORD * 3, 3)
def test_any_bytes(answers: bytes, count: int) -> None:
    _alike(reply(answers, count))


@given(st.data())
def test_a_damaged_response(data: st.DataObject) -> None:
    damaged = bytearray(good())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(4, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    _alike(bytes(damaged))
    _alike(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


def _alike(data: bytes) -> None:
    """What both readers take for a message says the same; ours may be stricter, and raises nothing else."""
    if records.match(data, ASKED) is not Match.YES:
        return
    try:
        ours = follow(records.read(data, ASKED), ASKED)
    except (Malformed, Unusable):
        return
    try:
        theirs = dns.message.from_wire(data, ignore_trailing=True, one_rr_per_rrset=True)
    except (dns.exception.DNSException, ValueError):
        return  # dnspython looks into records that we pass over
    sent = {str(r.address) for rrset in theirs.answer if _is_address(rrset) for r in rrset}
    assert set(ours.addresses) <= sent
    if ours.addresses:
        assert any(_is_address(rrset) for rrset in theirs.answer)


def _is_address(rrset: dns.rrset.RRset) -> bool:
    return rrset.rdtype == dns.rdatatype.A and rrset.rdclass == dns.rdataclass.IN
