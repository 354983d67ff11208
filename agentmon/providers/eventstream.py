"""AWS's binary event stream, cut incrementally; both checksums of every message are checked.

    message = total u32 │ headers length u32 │ CRC-32 of these u32 │ headers │ payload │ CRC-32 of all before u32
    header  = name length u8 │ name │ type u8 │ value, by type (big endian throughout)

Source: smithy-lang/smithy, docs, "Amazon Event Stream specification".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from agentmon.providers.sse import EVENT_CAP

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_LEAST = _PRELUDE.size + _CRC.size
_FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}  # type → bytes of its value
_COUNTED = {6, 7}  # bytes, text: a u16 length in front
_TEXT = 7

Headers = dict[str, str]


class EventStreamReader:
    """Calls `on_message(headers, payload)`; `headers` has those of type text.

    A checksum that is wrong sets `damaged` and ends reading: what follows cannot be framed. A message over `cap` bytes
    is passed over and sets `overflowed`.
    """

    def __init__(self, on_message: Callable[[Headers, bytes], None], cap: int = EVENT_CAP) -> None:
        self._on_message = on_message
        self._cap = cap
        self._pending = bytearray()
        self._skip = 0  # bytes of an oversized message still to come
        self.damaged = self.overflowed = False

    def feed(self, data: bytes) -> None:
        if self.damaged:
            return
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._pending += data[skipped:]
        while len(self._pending) >= _PRELUDE.size and self._message():
            pass

    def _message(self) -> bool:
        """Take one message out; False while it is incomplete."""
        total, headers_bytes, prelude_crc = _PRELUDE.unpack_from(self._pending)
        if zlib.crc32(self._pending[:8]) != prelude_crc or total < _LEAST + headers_bytes:
            return self._give_up()
        if total > self._cap:
            self.overflowed = True
            self._skip = max(0, total - len(self._pending))
            del self._pending[:total]
            return True
        if len(self._pending) < total:
            return False
        message = bytes(self._pending[:total])
        del self._pending[:total]
        if zlib.crc32(message[:-4]) != _CRC.unpack_from(message, total - 4)[0]:
            return self._give_up()
        headers = _headers(message[_PRELUDE.size : _PRELUDE.size + headers_bytes])
        if headers is None:
            return self._give_up()
        self._on_message(headers, message[_PRELUDE.size + headers_bytes : -4])
        return True

    def _give_up(self) -> bool:
        self.damaged = True
        self._pending.clear()
        return False


def _headers(data: bytes) -> Headers | None:
    """The text headers; None where they do not add up."""
    out: Headers = {}
    at = 0
    while at < len(data):
        name = data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
        kind = data[at] if at < len(data) else -1
        at += 1
        if kind in _COUNTED and at + 2 <= len(data):
            length = int.from_bytes(data[at : at + 2])
            at += 2
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            return None
        if kind == _TEXT:
            out[name.decode("utf-8", "replace")] = data[at : at + length].decode("utf-8", "replace")
        at += length
    return out if at == len(data) else None
