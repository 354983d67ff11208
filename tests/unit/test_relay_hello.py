"""hello.py: real ClientHellos pass, every truncation waits, everything ambiguous is refused."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.relay.hello import MAX_BYTES, BadHello, HelloReader, alert_record, server_name


def hello_of(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


REAL = hello_of("api.example.com")


def sni(*names: bytes, kind: int = 0) -> bytes:
    body = b"".join(bytes((kind,)) + len(n).to_bytes(2, "big") + n for n in names)
    return len(body).to_bytes(2, "big") + body


def body(extensions: list[tuple[int, bytes]] | None, tail: bytes = b"") -> bytes:
    """A ClientHello's body by hand."""
    out = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    if extensions is not None:
        data = b"".join(k.to_bytes(2, "big") + len(d).to_bytes(2, "big") + d for k, d in extensions)
        out += len(data).to_bytes(2, "big") + data
    return out + tail


def message(hello: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + len(hello).to_bytes(3, "big") + hello


def records(data: bytes, size: int = 1 << 14) -> bytes:
    return b"".join(
        b"\x16\x03\x01" + len(data[i : i + size]).to_bytes(2, "big") + data[i : i + size]
        for i in range(0, len(data), size)
    )


def read(data: bytes) -> str | None:
    return HelloReader().feed(data)


def reason(data: bytes) -> str:
    with pytest.raises(BadHello) as bad:
        read(data)
    return bad.value.reason


def test_a_real_hello() -> None:
    reader = HelloReader()
    assert reader.feed(REAL) == "api.example.com"
    assert bytes(reader.raw) == REAL
    assert read(hello_of("API.Example.COM")) == "api.example.com"


def test_every_truncation_waits_and_every_split_passes() -> None:
    for at in range(len(REAL)):
        reader = HelloReader()
        assert reader.feed(REAL[:at]) is None
        assert reader.feed(REAL[at:]) == "api.example.com"


def test_single_bytes_and_single_byte_records() -> None:
    reader = HelloReader()
    fragmented = records(REAL[5:], 1)
    answers = [reader.feed(fragmented[i : i + 1]) for i in range(len(fragmented))]
    assert answers[-1] == "api.example.com"
    assert set(answers[:-1]) == {None}


def test_what_follows_the_hello_in_other_records_is_kept_for_upstream() -> None:
    reader = HelloReader()
    assert reader.feed(REAL + b"\x14\x03\x03\x00\x01\x01") == "api.example.com"
    assert bytes(reader.raw).endswith(b"\x14\x03\x03\x00\x01\x01")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x",
        b"\x80\x2e\x01\x03\x01",
        b"\x16\x02\x00\x00\x10",
        b"\x15\x03\x01\x00\x02",
        b"\0",
    ],
)
def test_not_tls_is_known_by_its_first_bytes(data: bytes) -> None:
    assert reason(data) == "not-tls"


def test_first_byte_suffices() -> None:
    assert reason(b"G") == "not-tls"
    assert read(b"\x16") is None


def test_a_second_record_of_another_type() -> None:
    assert reason(records(REAL[5:], 10)[:15] + b"\x17\x03\x03\x00\x01\x00") == "not-tls"


def test_limits() -> None:
    assert reason(b"\x16\x03\x01\x00\x00") == "not-tls"
    assert reason(b"\x16\x03\x01\x40\x01") == "not-tls"
    assert reason(b"\x16\x03\x01\x40\x00") == "not-tls"  # its end lies beyond MAX_BYTES
    assert reason(records(message(bytes(MAX_BYTES + 1), 1)[:100])) == "not-tls"
    assert reason(records(b"\x01\x00\x3f\x00" + bytes(16000), 1)[: MAX_BYTES + 1]) == "not-tls"
    reader = HelloReader()
    reader.feed(b"\x16\x03\x01\x3f\xf0")
    with pytest.raises(BadHello):
        reader.feed(bytes(MAX_BYTES))


def test_another_handshake_message_first() -> None:
    assert reason(records(message(body([]), kind=2))) == "not-tls"


def test_bytes_after_the_hello_in_its_record() -> None:
    assert reason(records(REAL[5:] + b"\x01")) == "not-tls"


@pytest.mark.parametrize("extensions", [None, [], [(16, b"\0\3\2h2")]])
def test_no_sni(extensions: list[tuple[int, bytes]] | None) -> None:
    assert reason(records(message(body(extensions)))) == "no-sni"


@pytest.mark.parametrize(
    "extension",
    [
        sni(b"a.example", b"b.example"),
        sni(b"a.example", b"a.example"),
        sni(b"a.example", kind=1),
        sni(b"a.example."),
        sni(b"192.0.2.1"),
        sni(b"2001:db8::1"),
        sni(b"[2001:db8::1]"),
        sni(b"0x7f000001"),
        sni(b"127.1"),
        sni(b"2130706433"),
        sni(b"a.example\0.evil.example"),
        sni(b"a example"),
        sni(b"*.example"),
        sni(b"a..example"),
        sni(b".example"),
        sni(b"caf\xc3\xa9.example"),
        sni(b"a" * 64 + b".example"),
        sni(b".".join([b"a" * 60] * 5)),
        sni(b"a.example:443"),
        sni(b"-a.example"),
    ],
)
def test_names_that_are_not_exactly_one_canonical_host(extension: bytes) -> None:
    assert reason(records(message(body([(0, extension)])))) == "bad-sni"


@pytest.mark.parametrize(
    "hello",
    [
        body([(0, sni(b"a.example")), (0, sni(b"b.example"))]),
        body([(5, b""), (0, sni(b"a.example")), (5, b"")]),
        body([(0, sni(b"a.example") + b"x")]),
        body([(0, b"\0\0")]),
        body([(0, b"")]),
        body([(0, b"\0\x03\0\0\0")]),
        body([(0, sni(b"a.example"))], tail=b"x"),
        body([(0, sni(b"a.example"))])[:-1],
        b"\x02\x00" + body([(0, sni(b"a.example"))])[2:],
        b"\x03\x03" + bytes(32) + b"\x21" + bytes(33) + b"\x00\x02\x13\x01\x01\x00",
        b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x03\x13\x01\x02" + b"\x01\x00",
        b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x00" + b"\x01\x00",
        b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x00",
        b"",
    ],
)
def test_lengths_that_do_not_add_up(hello: bytes) -> None:
    assert reason(records(message(hello))) == "not-tls"


def test_by_hand_the_plain_case_passes() -> None:
    assert server_name(body([(5, b""), (0, sni(b"A.example"))])) == "a.example"


def test_alerts() -> None:
    assert alert_record(112) == b"\x15\x03\x03\x00\x02\x02\x70"


@given(st.binary(max_size=600))
def test_any_bytes_end_in_waiting_or_bad_hello(data: bytes) -> None:
    try:
        assert HelloReader().feed(data) is None
    except BadHello as e:
        assert e.reason in {"not-tls", "no-sni", "bad-sni"}


@given(st.integers(0, len(REAL) - 1), st.integers(0, 255), st.lists(st.integers(1, 400), max_size=5))
def test_a_changed_byte_and_any_chunking(at: int, value: int, cuts: list[int]) -> None:
    data = REAL[:at] + bytes((value,)) + REAL[at + 1 :]

    def run(chunks: list[bytes]) -> str | None:
        reader = HelloReader()
        try:
            for chunk in chunks:
                if (name := reader.feed(chunk)) is not None:
                    return name
        except BadHello as e:
            return f"bad {e.reason}"
        return None

    chunks, rest = [], data
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert run([data]) == run([*chunks, rest])


GREASE = tuple(0x0A0A + 0x1010 * i for i in range(16))  # RFC 8701
ECH = 0xFE0D
KINDS = st.one_of(st.sampled_from((*GREASE, ECH, 5, 10, 11, 13, 16, 43, 45, 51)), st.integers(1, 0xFFFF))
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABEL, min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "example"]))


@given(
    NAMES,
    st.lists(st.tuples(KINDS, st.binary(max_size=80)), max_size=12, unique_by=lambda pair: pair[0]),
    st.integers(0, 12),
    st.integers(1, 700),
    st.integers(0, 4),
)
def test_one_name_among_any_extensions_in_any_records(
    name: str, others: list[tuple[int, bytes]], at: int, size: int, version: int
) -> None:
    """GREASE, an outer ECH (the outer name is what counts), records of SSL 3.0 to TLS 1.3's number, any fragments."""
    extensions = [*others[:at], (0, sni(name.upper().encode())), *others[at:]]
    data = bytearray(records(message(body(extensions)), size))
    for start in range(0, len(data), 5 + size):
        data[start + 2] = version
    reader = HelloReader()
    got = [reader.feed(bytes((byte,))) for byte in data]
    assert (got[-1], set(got[:-1])) == (name, {None})
    assert reader.raw == data


@given(NAMES, NAMES, st.integers(0, 3))
def test_two_names_in_any_arrangement(first: str, second: str, how: int) -> None:
    a, b = first.encode(), second.encode()
    extensions, expected = (
        ([(0, sni(a, b))], "bad-sni"),
        ([(0, sni(a)), (0, sni(b))], "not-tls"),
        ([(0, sni(a)), (ECH, b"\0" * 40), (0, sni(b))], "not-tls"),
        ([(0, sni(a + b"\0" + b))], "bad-sni"),
    )[how]
    assert reason(records(message(body(extensions)))) == expected


@pytest.mark.parametrize("piece", [1, 1000, 16384])
def test_64_kib_of_records_end_at_the_limit(piece: int) -> None:
    """A hello that says it is larger than any, or never ends: what is kept is bounded, whatever is sent."""
    for declared in (0xFFFF, MAX_BYTES - 4):
        data = records(b"\x01" + declared.to_bytes(3, "big") + bytes(1 << 16), 512)
        reader = HelloReader()
        with pytest.raises(BadHello) as bad:
            for at in range(0, len(data), piece):
                assert reader.feed(data[at : at + piece]) is None
        assert bad.value.reason == "not-tls"
        assert len(reader.raw) <= MAX_BYTES + piece


def seen_by_openssl(data: bytes) -> list[str | None]:
    """The server names that a TLS server of another make reads in it; empty where it does not get so far."""
    seen: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: seen.append(name)
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError):  # there is no certificate, or it wants more
        server.do_handshake()
    return seen


def mutations(data: bytes, at: int, put: bytes, drop: int) -> Iterator[bytes]:
    """Bytes replaced in place, and bytes replaced by another number of them with the lengths around put right."""
    yield data[:at] + put + data[at + len(put) :]
    hello = bytearray(data[9:])
    at = min(at, len(hello))
    hello[at : at + drop] = put
    yield records(message(bytes(hello)))


@given(st.integers(0, len(REAL) - 1), st.binary(min_size=1, max_size=6), st.integers(0, 6))
def test_a_server_never_reads_another_name_than_the_relay(at: int, put: bytes, drop: int) -> None:
    assert seen_by_openssl(REAL) == ["api.example.com"]
    for data in mutations(REAL, at, put, drop):
        try:
            name = HelloReader().feed(data)
        except BadHello:
            continue
        if name is not None:
            assert {(other or "").lower() for other in seen_by_openssl(data)} <= {name}
