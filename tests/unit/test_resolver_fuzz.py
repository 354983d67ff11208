"""The desk under anything a bottle can send: it never raises, answers what was asked and nothing else, stays small."""

from __future__ import annotations

import asyncio
import struct

import dns.message
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.resolver import message
from agentmon.resolver.desk import MAX_KEPT
from tests.unit.test_resolver_desk import Bench

RULES = ("a.example:22", "*.wild.example:22", "web.example")
LIMITS = {"queries_per_s": 10**6, "name_bytes_per_min": 10**6}
LABEL = st.sampled_from([b"a", b"web", b"example", b"wild", b"EXAMPLE", b"x", b"-", b"\0", b"a.b", b"\xff" * 63, b"*"])
NAME = st.lists(LABEL, max_size=8).map(lambda ls: b"".join(bytes((len(label),)) + label for label in ls))
END = st.sampled_from([b"\0", b"\0", b"\0", b"", b"\xc0\x0c", b"\xc0\x00", b"\x40", b"\xff"])
TAIL = st.sampled_from(
    [b"", b"", b"\0\0)\x10\0\0\0\0\0\0\0", b"\0\0)\0\0\0\1\x80\0\0\0", b"junk", b"\0\0\xfa\0\xff\0\0\0\0\0\0"]
)
HEADER = st.tuples(
    st.integers(0, 65535), st.sampled_from([0x0100, 0x0100, 0, 0x0130, 0x8100, 0x2800, 0xFFFF]),
    st.sampled_from([1, 1, 0, 2]),
    st.sampled_from([0, 0, 1]), st.sampled_from([0, 0, 1]), st.sampled_from([0, 0, 1, 2, 65535]),
).map(lambda words: struct.pack(">6H", *words))  # fmt: skip
KIND = st.tuples(st.sampled_from([1, 28, 1, 28, 5, 16, 255, 65, 0, 65535]), st.sampled_from([1, 1, 1, 3, 255, 0])).map(
    lambda pair: struct.pack(">2H", *pair)
)
MESSAGE = st.tuples(HEADER, NAME, END, KIND, TAIL).map(b"".join) | st.binary(max_size=600)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(MESSAGE, st.booleans()), min_size=1, max_size=20))
def test_whatever_a_bottle_sends(messages: list[tuple[bytes, bool]]) -> None:
    asyncio.run(_all(messages))


@settings(max_examples=500, deadline=None)
@given(MESSAGE)
def test_both_readers_say_the_same(data: bytes) -> None:
    """The quick one for what stubs send, dnspython for everything else."""
    if len(data) >= 12 and not data[2] & 0xF8 and data[4:10] == b"\0\1\0\0\0\0":  # parse() has seen to it
        quick = message._ordinary(data)
        assert quick is None or quick == message._any(data)


async def _all(messages: list[tuple[bytes, bool]]) -> None:
    bench = Bench()
    bench.set(*RULES, relay=("10.213.0.3",), limits=LIMITS)
    for data, udp in messages:
        reply = bench.desk.answer(data, 16, udp=udp)
        if reply is not None and not isinstance(reply, bytes):
            reply = await reply
        if reply is not None:
            _fits(data, reply, udp)
    asked = set(bench.asked)
    assert all(name == "a.example" or name.endswith(".wild.example") for name in asked), asked


def _fits(data: bytes, reply: bytes, udp: bool) -> None:
    assert len(reply) <= (1232 if udp else 65535)
    assert reply[:2] == data[:2] and reply[2] & 0x80 and not data[2] & 0x80
    answered = dns.message.from_wire(reply)
    assert not answered.options
    if answered.question:
        section = reply[12 : 12 + sum(len(label) + 1 for label in answered.question[0].name.labels) + 4]
        assert data[12:].startswith(section)
    for rrset in answered.answer:
        assert rrset.name == answered.question[0].name and rrset.rdtype == answered.question[0].rdtype
        assert rrset.rdtype in {1, 28}


def test_long_messages_are_not_kept() -> None:
    bench = Bench()
    bench.set(*RULES, limits=LIMITS)
    for number in range(2 * MAX_KEPT):
        option = struct.pack(">2H", 65001, 3000) + bytes(3000)
        opt = b"\0" + struct.pack(">HHIH", 41, 4096, 0, len(option)) + option
        for tail, more in ((b"", 0), (opt, 1)):
            head = struct.pack(">6H", 1, 0x0100, 1, 0, 0, more)
            query = head + f"\x05n{number:04}\4evil\7example\0\0\1\0\1".encode() + tail
            assert isinstance(bench.desk.answer(query, 16, udp=False), bytes)
    kept = bench.desk._seats[16].kept
    assert 0 < len(kept) <= MAX_KEPT
    assert max(len(key[1]) for key in kept) < 100
