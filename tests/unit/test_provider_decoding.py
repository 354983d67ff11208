"""Content codings: METERING torture cases 19 and 20."""

from __future__ import annotations

import gzip
import random
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agentmon.providers import decoding
from agentmon.providers.decoding import PIECE, Decoder, decode_all

BODY = b'{"usage": {"input_tokens": 1}}' * 200

_NOISE = gzip.compress(random.Random(7).randbytes(600_000))
DAMAGED = _NOISE[:300_000] + b"\xff" * 100_000 + _NOISE[400_000:]


def raw_deflate(data: bytes) -> bytes:
    state = zlib.compressobj(wbits=-15)
    return state.compress(data) + state.flush()


CASES = {
    "identity": ("identity", BODY, BODY),
    "none": ("", BODY, BODY),
    "gzip": ("gzip", gzip.compress(BODY), BODY),
    "gzip members": ("x-gzip", gzip.compress(BODY) + gzip.compress(b"more"), BODY + b"more"),
    "gzip padding": ("gzip", gzip.compress(BODY) + b"\0\0\0", BODY),
    "deflate": ("deflate", zlib.compress(BODY), BODY),
    "deflate raw": ("deflate", raw_deflate(BODY), BODY),
    "br": ("br", brotli.compress(BODY), BODY),
    "zstd": ("zstd", zstandard.compress(BODY), BODY),
    "zstd frames": ("zstd", zstandard.compress(BODY) + zstandard.compress(b"more"), BODY + b"more"),
    "list": ("gzip, br", brotli.compress(gzip.compress(BODY)), BODY),
    "missing header": ("", gzip.compress(BODY), BODY),
    "missing header zstd": ("", zstandard.compress(BODY), BODY),
    "wrong header": ("gzip", BODY, BODY),
    "wrong header br": ("br", BODY, BODY),
    "wrong header zstd": ("zstd", BODY, BODY),
    "unknown coding": ("rot13", BODY, BODY),
    "empty": ("gzip", b"", b""),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [1, 3, 1 << 20])
def test_every_coding_in_every_chunking(case: str, step: int) -> None:
    coding, data, wanted = CASES[case]
    out = bytearray()
    decoder = Decoder(coding, out.extend)
    for at in range(0, len(data), step):
        decoder.feed(data[at : at + step])
    decoder.close()
    assert bytes(out) == wanted and not decoder.failed


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_truncated_body_gives_what_there_is(coding: str) -> None:
    data = CASES[coding][1]
    decoder = Decoder(coding, lambda _piece: None)
    decoder.feed(data[: len(data) // 2])
    decoder.close()
    assert not decoder.failed


def test_damage_in_mid_body_is_flagged_and_ends_decoding() -> None:
    decoder = Decoder("gzip", lambda _piece: None)
    decoder.feed(DAMAGED)
    assert decoder.failed.startswith("undecodable")
    decoder.feed(b"more")


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_bomb_is_given_up_in_bounded_memory(coding: str) -> None:
    zeros = b"0" * (80 << 20)
    bomb = {
        "gzip": lambda: gzip.compress(zeros),
        "br": lambda: brotli.compress(zeros, quality=5),
        "zstd": lambda: zstandard.compress(zeros),
    }[coding]()
    largest = 0

    def sink(piece: bytes) -> None:
        nonlocal largest
        largest = max(largest, len(piece))

    decoder = Decoder(coding, sink)
    decoder.feed(bomb)
    assert "expanded" in decoder.failed and largest <= (8 << 20 if coding == "zstd" else 2 * PIECE)


def test_brotli_without_a_limit_gives_up_a_bomb_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As brotli 1.1 has to, which mitmproxy for Python 3.11 wants."""
    monkeypatch.setattr(decoding, "_BROTLI_LIMITS", False)
    assert decode_all("br", brotli.compress(b"hello" * 999), 1 << 20) == b"hello" * 999
    largest = [0]
    decoder = Decoder("br", lambda piece: largest.append(len(piece)))
    decoder.feed(brotli.compress(bytes(300 << 20), quality=5))
    assert "expanded" in decoder.failed and max(largest) <= 32 << 20


@given(st.binary(max_size=400), st.sampled_from(["", "gzip", "deflate", "br", "zstd", "gzip, zstd"]))
def test_no_input_raises(data: bytes, coding: str) -> None:
    decoder = Decoder(coding, lambda _piece: None)
    for at in range(0, len(data), 7):
        decoder.feed(data[at : at + 7])
    decoder.close()


def test_whole_bodies() -> None:
    assert decode_all("gzip", gzip.compress(BODY), 1 << 20) == BODY
    assert decode_all("gzip", gzip.compress(BODY), 100) is None
    assert decode_all("gzip", DAMAGED, 1 << 20) is None
