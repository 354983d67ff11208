"""gzip files in what is sent: found wherever they lie, however they come, and refused where they cannot be read."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.dlp import scanner
from agentmon.dlp.scanner import Scanner
from agentmon.proxy.clean import Clean
from agentmon.proxy.search import search
from agentmon.proxy.unpacked import Unpacker, Unsearchable
from tests.support.proxy_rig import RULES_KEPT

VALUE = b"planted-known-value-0815"
FILE = gzip.compress(b"some words, and " + VALUE)


@pytest.fixture(scope="module")
def found_by() -> Scanner:
    return Scanner(scanner.detector(keep=RULES_KEPT), {"env A": VALUE}, b"key")


def found(found_by: Scanner, body: bytes, coding: str = "") -> bool | None:
    """None: refused, as it cannot be searched."""
    said = search(found_by, Clean(), "run", "host", body, coding, False)
    return None if said.plain is None else any(f.detector == "exact:env A" for f in (*said.findings, *said.inside))


BODIES = {
    "the twentieth part": b"".join(b"--b\r\n\r\n" + gzip.compress(b"clean %d" % n) for n in range(19)) + FILE,
    "after a line feed": b"--b\nContent-Type: application/gzip\n\n" + FILE + b"\n--b--",
    "in another": gzip.compress(b"around it " + gzip.compress(b"and again " + FILE)),
    "behind another and padding": gzip.compress(b"clean") + b"\0\0\0" + FILE,
    "behind what looks like one": b"x\x1f\x8b\x08\x00 and no file " + FILE,
    "cut off": FILE[:-9],
    "with a name": b"x" + FILE[:3] + b"\x08" + FILE[4:10] + b"name\0" + FILE[10:],
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_file_is_read_wherever_it_lies(found_by: Scanner, body: bytes) -> None:
    assert found(found_by, body) is True


def test_what_stands_behind_an_encoded_body_is_read_as_well(found_by: Scanner) -> None:
    assert found(found_by, gzip.compress(b"clean") + b"x" + FILE, "gzip") is True
    assert found(found_by, zlib.compress(b"clean") + FILE, "deflate") is True


def test_what_cannot_be_read_is_refused(found_by: Scanner) -> None:
    damaged = bytearray(gzip.compress(bytes(range(256)) * 200))
    damaged[200] ^= 0xFF
    assert found(found_by, b"--b\r\n\r\n" + bytes(damaged)) is None
    assert found(found_by, b"--b\r\n\r\n" + gzip.compress(bytes(80 << 20))) is None
    with pytest.raises(Unsearchable):
        Unpacker().feed(b"\x1f\x8b\x08\x00" * 5000)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 90), max_size=8), st.binary(max_size=60))
def test_in_whatever_pieces_it_comes(sizes: list[int], before: bytes) -> None:
    data = before.replace(b"\x1f", b"") + FILE + b" between " + FILE
    unpacker, out = Unpacker(), b""
    for size in sizes:
        out += unpacker.feed(data[:size])[0]
        data = data[size:]
    assert (out + unpacker.feed(data)[0]).count(VALUE) == 2
