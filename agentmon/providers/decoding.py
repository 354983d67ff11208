"""Content codings undone incrementally, on the copy that is parsed.

gzip with several members, deflate wrapped or raw, br, zstd with several frames, and lists of them.

A header is a hint: what does not decode from its first bytes on is taken as it is, and what begins like gzip or zstd
without saying so is decoded. Memory is bounded (pieces of at most PIECE bytes are handed on), and so is work: a body
that expands beyond MAX_BYTES and MAX_RATIO is given up and flagged. The bytes of the client are never touched.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

PIECE = 256 << 10
MAX_BYTES = 64 << 20
MAX_RATIO = 200
_SLICE = 256  # handed at once to codecs that cannot limit their output: 4 bytes of zstd (an RLE block) can be 128 KiB
_BROTLI_LIMITS = hasattr(brotli.Decompressor, "can_accept_more_data")  # 1.2; mitmproxy for Python 3.11 wants 1.1
_BROTLI_SLICE = 4  # without: at most about two blocks (RFC 7932: 16 MiB each) of a bomb at once
_UNDECIDED = 32 << 10  # bytes kept while it is not known whether they are of the coding
_ZSTD_WINDOW = 8 << 20  # RFC 9659

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def unknown(coding: str) -> str:
    """The first coding of a Content-Encoding that is not undone here; "" where there is none."""
    names = (part.strip().lower() for part in coding.split(","))
    return next((name for name in names if name and name != "identity" and _codec(name) is None), "")


class Undecodable(Exception):
    """The bytes are not of this coding."""


class _Codec(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...


class _Zlib:
    """gzip and deflate; members follow one another, trailing padding is ignored. `deflate` may be raw or wrapped."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._state = zlib.decompressobj(wbits)
        self._head = b""  # the first two bytes of a member, while they are incomplete
        self._at_head = True
        self._later = False  # a member has ended
        self._over = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        data, self._head = self._head + data, b""
        while data and not self._over:
            if self._at_head:
                if self._later and not _GZIP.startswith(data[:2]):
                    self._over = True  # padding
                    return
                if len(data) < 2:
                    self._head = data
                    return
                self._begin(data)
            try:
                piece = self._state.decompress(data, PIECE)
            except zlib.error as e:
                raise Undecodable(str(e)) from e
            if piece:
                yield piece
            data = self._state.unconsumed_tail
            if self._state.eof:
                self._at_head, self._later, self._over = True, True, self._wbits < 16
                data = self._state.unused_data

    def _begin(self, data: bytes) -> None:
        self._at_head = False
        if self._wbits == 15 and (data[0] & 0x0F != 8 or (data[0] << 8 | data[1]) % 31):
            self._wbits = -15
        self._state = zlib.decompressobj(self._wbits)


class _Brotli:
    def __init__(self) -> None:
        self._state = brotli.Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            yield from self._limited(data) if _BROTLI_LIMITS else self._sliced(data)
        except brotli.error as e:
            raise Undecodable(str(e)) from e

    def _limited(self, data: bytes) -> Iterator[bytes]:
        while (piece := self._state.process(data, output_buffer_limit=PIECE)) or data:
            if piece:
                yield piece
            if self._state.can_accept_more_data():
                return
            data = b""

    def _sliced(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), _BROTLI_SLICE):
            if piece := self._state.process(data[at : at + _BROTLI_SLICE]):
                yield piece


class _Zstd:
    def __init__(self) -> None:
        self._new = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj
        self._state = self._new()

    def feed(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            part = data[at : at + _SLICE]
            try:
                piece = self._state.decompress(part)
            except zstandard.ZstdError as e:
                raise Undecodable(str(e)) from e
            at += len(part)
            if piece:
                yield piece
            if self._state.eof:  # the next frame begins in what was not used
                at -= len(self._state.unused_data)
                self._state = self._new()


class _Identity:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data


def _codec(name: str) -> _Codec | None:
    if name in {"gzip", "x-gzip"}:
        return _Zlib(31)
    if name == "deflate":
        return _Zlib(15)
    if name == "br":
        return _Brotli()
    return _Zstd() if name == "zstd" else None


class _Stage:
    """One coding of a list: its codec, or identity once its very first bytes turn out not to be of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._codec = _codec(name)
        self._first = b""  # what has been fed while nothing has come out
        self._decided = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._codec is None:
            self._first += data
            if len(self._first) < 4 and (_GZIP.startswith(self._first[:2]) or _ZSTD.startswith(self._first)):
                return
            data, self._codec, self._first = self._first, _sniffed(self._first), b""
        if not self._decided:
            self._first += data
        try:
            for piece in self._codec.feed(data):
                self._decide()
                yield piece
        except Undecodable:
            if self._decided or self._first.startswith((_GZIP, _ZSTD)):
                raise  # it was of this coding, and is damaged
            data, self._codec = self._first, _Identity()
            self._decide()
            yield data
        if len(self._first) > _UNDECIDED:
            self._decide()

    def _decide(self) -> None:
        self._decided, self._first = True, b""

    def close(self) -> Iterator[bytes]:
        if self._codec is None and self._first:
            yield self._first
            self._first = b""


def _sniffed(data: bytes) -> _Codec:
    if data.startswith(_GZIP):
        return _Zlib(31)
    return _Zstd() if data.startswith(_ZSTD) else _Identity()


class Decoder:
    """Hands the decoded body to `sink` piece by piece.

    :param coding: the Content-Encoding header, "" if there was none.
    """

    def __init__(self, coding: str, sink: Callable[[bytes], None]) -> None:
        names = [n for n in (part.strip().lower() for part in coding.split(",")) if n and n != "identity"]
        self._stages = [_Stage(name) for name in reversed(names)] or [_Stage("")]
        self._sink = sink
        self._in = self._out = 0
        self.failed = ""  # why decoding was given up

    def feed(self, data: bytes) -> None:
        """Never raises: what does not decode sets `failed`."""
        if self.failed or not data:
            return
        self._in += len(data)
        try:
            self._run(data, 0)
        except Undecodable as e:
            self.failed = f"undecodable: {e}"

    def close(self) -> None:
        for at, stage in enumerate(self._stages):
            for piece in stage.close():
                self._run(piece, at + 1)

    def _run(self, data: bytes, at: int) -> None:
        if at == len(self._stages):
            self._out += len(data)
            if self._out > MAX_BYTES and self._out > MAX_RATIO * self._in:
                raise Undecodable(f"{self._in} bytes expanded beyond {self._out}")
            self._sink(data)
            return
        for piece in self._stages[at].feed(data):
            self._run(piece, at + 1)


def decode_all(coding: str, body: bytes, limit: int) -> bytes | None:
    """The whole decoded body, or None if it is larger than `limit` or does not decode."""
    out = bytearray()

    def sink(piece: bytes) -> None:
        out.extend(piece)
        if len(out) > limit:
            raise Undecodable("too large")

    decoder = Decoder(coding, sink)
    decoder.feed(body)
    decoder.close()
    return None if decoder.failed else bytes(out)
