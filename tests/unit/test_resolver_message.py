"""message.py: strict reading, replies from nothing but the question."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.resolver import message

GOOD = dns.message.make_query("wWw.Example.com", "A", id=0xABCD).to_wire()


def test_a_query() -> None:
    query = message.parse(GOOD)
    assert (query.name, query.rdtype, query.payload, query.error) == ("www.example.com", message.A, 512, None)


def test_what_stubs_send_is_read_by_hand() -> None:
    for more in ({}, {"use_edns": 0}, {"use_edns": 0, "payload": 4096, "want_dnssec": True}):
        for name in ("wWw.Example.com", "a", "_x.y-z.example", ".".join(["a" * 63] * 3 + ["b" * 61])):
            data = dns.message.make_query(name, "AAAA", **more).to_wire()
            quick = message._ordinary(data)
            assert quick is not None and quick == message._any(data)


def test_payload_is_bounded_both_ways() -> None:
    for offered, taken in ((100, 512), (512, 512), (1000, 1000), (65535, message.PAYLOAD)):
        data = dns.message.make_query("a.example", "A", use_edns=0, payload=offered).to_wire()
        assert message.parse(data).payload == taken


@pytest.mark.parametrize("data", [b"", b"x", GOOD[:11], GOOD[:2] + b"\x81" + GOOD[3:]])
def test_what_deserves_no_answer(data: bytes) -> None:
    with pytest.raises(message.Drop):
        message.parse(data)


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (GOOD[:12], dns.rcode.FORMERR),
        (GOOD + b"\0", dns.rcode.FORMERR),
        (GOOD[:5] + b"\0" + GOOD[6:], dns.rcode.FORMERR),
        (GOOD[:5] + b"\2" + GOOD[6:], dns.rcode.FORMERR),
        (GOOD[:7] + b"\1" + GOOD[8:], dns.rcode.FORMERR),
        (GOOD[:12] + b"\xc0\x0c" + GOOD[-4:], dns.rcode.FORMERR),
        (b"\1a\1\0\0\1\0\0\0\0\0\0\xc0\0" + GOOD[-4:], dns.rcode.FORMERR),  # a name that begins in the header
        (GOOD[:2] + b"\x20" + GOOD[3:], dns.rcode.NOTIMP),
        (GOOD[:-1] + b"\x03", dns.rcode.NOTIMP),  # class CHAOS
        (dns.message.make_query("a.example", "A", use_edns=1).to_wire(), dns.rcode.BADVERS),
    ],
)
def test_what_is_answered_with_an_error(data: bytes, rcode: dns.rcode.Rcode) -> None:
    query = message.parse(data)
    assert query.error == rcode
    reply = dns.message.from_wire(message.reply(query, query.error))
    assert reply.rcode() == rcode
    assert reply.id == int.from_bytes(data[:2], "big")
    assert not reply.answer


@pytest.mark.parametrize(
    "name",
    [".", r"a\.b.example", r"a\000.example", r"\255.example", "a b.example", "*.example", "-a.example", "a-.example"],
)
def test_labels_that_are_no_host_are_never_a_name(name: str) -> None:
    assert message.parse(dns.message.make_query(name, "A").to_wire()).name == ""


def test_a_reply_keeps_letter_case_and_nothing_else() -> None:
    asked = dns.message.make_query("wWw.Example.com", "A", use_edns=0, payload=4096, want_dnssec=True)
    asked.flags |= dns.flags.CD | dns.flags.AD
    reply = dns.message.from_wire(message.reply(message.parse(asked.to_wire()), message.NOERROR, ["203.0.113.1"], 30))
    assert reply.question[0].name.to_text() == "wWw.Example.com."
    assert reply.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert (reply.edns, reply.ednsflags, reply.payload, reply.options) == (0, 0, message.PAYLOAD, ())
    assert [str(r) for r in reply.answer[0]] == ["203.0.113.1"]
    assert reply.answer[0].ttl == 30
    assert reply.authority == []


@pytest.mark.parametrize("rcode", [message.NOERROR, message.NXDOMAIN])
def test_no_says_how_long_it_holds(rcode: dns.rcode.Rcode) -> None:
    reply = dns.message.from_wire(message.reply(message.parse(GOOD), rcode))
    assert reply.rcode() == rcode
    assert reply.authority[0].rdtype == dns.rdatatype.SOA
    assert reply.authority[0][0].minimum == message.NEGATIVE_TTL_S
    assert reply.edns == -1


def test_servfail_says_nothing_more() -> None:
    assert dns.message.from_wire(message.reply(message.parse(GOOD), message.SERVFAIL)).authority == []


def test_what_does_not_fit_is_truncated_over_udp_only() -> None:
    many = [f"203.0.113.{i}" for i in range(1, 60)]
    short = dns.message.from_wire(message.reply(message.parse(GOOD), message.NOERROR, many, 5))
    assert short.flags & dns.flags.TC
    assert short.answer == []
    full = dns.message.from_wire(message.reply(message.parse(GOOD), message.NOERROR, many, 5, udp=False))
    assert len(full.answer[0]) == 59


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    _answerable(data)


@given(st.data())
def test_a_damaged_query(data: st.DataObject) -> None:
    good = dns.message.make_query("www.example.com", "A", use_edns=0, payload=1232).to_wire()
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    _answerable(bytes(damaged[: data.draw(st.integers(0, len(good)))]))
    _answerable(bytes(damaged))


def _answerable(data: bytes) -> None:
    """Whatever comes, the reply is a valid message with the query's id, and short."""
    try:
        query = message.parse(data)
    except message.Drop:
        return
    for rcode in (query.error or message.NXDOMAIN, message.SERVFAIL):
        wire = message.reply(query, rcode)
        assert wire[:2] == data[:2]
        assert len(wire) <= 512
        assert dns.message.from_wire(wire).flags & dns.flags.QR
