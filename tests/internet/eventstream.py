"""AWS's binary event stream, written: length and checksum in front, headers, payload, checksum over all of it."""

from __future__ import annotations

import struct
import zlib


def message(payload: bytes, kind: str) -> bytes:
    """One message of message-type event and this event-type."""
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return framed(payload, headers)


def framed(payload: bytes, headers: dict[str, str]) -> bytes:
    """One message; the headers are all text, but for two that show the other types."""
    head = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in headers.items()
    )
    head += b"\x04flag\x00" + b"\x02at\x08" + struct.pack(">q", 1)
    front = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    front += struct.pack(">I", zlib.crc32(front))
    whole = front + head + payload
    return whole + struct.pack(">I", zlib.crc32(whole))
