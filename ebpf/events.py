"""Decodes ring records (struct am_event, end to end) into Events. Pure; about 4 µs a record."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, cast

from ebpf import abi
from ebpf.spec import Address, Event

RECORD = struct.Struct("=QQIIIIIIIHBBBBBBBB2x16s16s")
ORIGIN_AT = abi.EventRecord.origin.offset
"""Where a record says whether an origin follows: records[ORIGIN_AT :: RECORD.size] are those of all records."""
PROTOCOLS = {
    1: "icmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    58: "icmp6",
    132: "sctp",
    136: "udplite",
    255: "raw",
    262: "mptcp",
}
_MAPPED = b"\0" * 10 + b"\xff\xff"
_SOCK_RAW = 3
_AF_UNIX = 1

Kind = Literal["connect", "send", "socket", "escape", "bypass"]
Verdict = Literal["allowed", "refused", "observed"]
_KINDS = cast(tuple[Kind, ...], abi.KINDS)
_VERDICTS = cast(tuple[Verdict, ...], abi.VERDICTS)


@lru_cache(maxsize=4096)
def address(raw: bytes) -> Address:
    """16 bytes as the programs hold them; a mapped address is its IPv4 address."""
    return IPv4Address(raw[12:]) if raw.startswith(_MAPPED) else IPv6Address(raw)


@lru_cache(maxsize=4096)
def command(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


@lru_cache(maxsize=256)
def _protocol(family: int, socktype: int, proto: int) -> str:
    if family == _AF_UNIX:
        return "unix"
    return "raw" if socktype == _SOCK_RAW else PROTOCOLS.get(proto) or str(proto)


def decode(records: bytes) -> list[Event]:
    """Events in the ring's order; `ppid` is 0, the kernel does not tell it.

    :raises ValueError: not a whole number of records.
    """
    if len(records) % RECORD.size:
        raise ValueError(f"{len(records)} bytes of events: records have {RECORD.size} bytes each")
    reasons: Sequence[str] = abi.REASONS
    made = (abi.C["AM_KIND_SOCKET"], abi.C["AM_REASON_FAMILY"])  # refused when made: it had no address yet
    out = []
    for (
        ts_ns, _cgroup, slot, epoch, pid, tgid, uid, rule, count, port, proto, kind, verdict, reason, family, socktype, _origin, guarded, addr, comm,  # noqa: E501
    ) in RECORD.iter_unpack(records):  # fmt: skip
        out.append(
            Event(
                ts_ns,
                slot,
                epoch,
                _KINDS[kind],
                _VERDICTS[verdict],
                reasons[reason],
                pid,
                tgid,
                0,
                uid,
                command(comm),
                _protocol(family, socktype, proto),
                None if family == _AF_UNIX or (kind, reason) == made else address(addr),
                port,
                rule,
                count,
                guarded != 0,
            )
        )
    return out
