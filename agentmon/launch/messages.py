"""What daemon and spawner say to each other: one msgpack value per packet of a Unix SEQPACKET socket.

A packet keeps its descriptors, which a stream would not. A LaunchSpec (environments may be megabytes) travels in a
memory file, so packets stay small and the socket's buffer never fills.

    daemon ─ Spawn [spec] · Probe · Signal ─▶ spawner
           ◀─ Hello · Launched [stdio…, status] · Probed · Ok · Error · Ended ─
"""

from __future__ import annotations

import msgspec

from agentmon.launch.spec import Exited, Job, ProbeResult, ProbeSpec

MAX_PACKET = 1 << 20
MAX_FDS = 8


class Packet(msgspec.Struct, tag=True, tag_field="t", omit_defaults=True, frozen=True):
    """Base of all packets; `id` joins an answer to its question."""

    id: int = 0


class Spawn(Packet, frozen=True):
    """One descriptor: a memory file with the msgpack of a LaunchSpec."""


class Probe(Packet, frozen=True, kw_only=True):
    spec: ProbeSpec


class Signal(Packet, frozen=True, kw_only=True):
    slot: int
    signum: int


class Hello(Packet, frozen=True, kw_only=True):
    """First packet on a connection: what runs, and what ended while no daemon was there."""

    version: int
    pid: int
    jobs: tuple[Job, ...] = ()
    ended: tuple[Exited, ...] = ()


class Launched(Packet, frozen=True, kw_only=True):
    pid: int


class Probed(Packet, frozen=True, kw_only=True):
    result: ProbeResult


class Ok(Packet, frozen=True):
    pass


class Error(Packet, frozen=True, kw_only=True):
    """`kind`: a class of agentmon.errors."""

    kind: str
    message: str
    hint: str = ""


class Ended(Packet, frozen=True, kw_only=True):
    exited: Exited


AnyPacket = Spawn | Probe | Signal | Hello | Launched | Probed | Ok | Error | Ended

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyPacket] = msgspec.msgpack.Decoder(AnyPacket)


def encode(packet: Packet) -> bytes:
    return _encoder.encode(packet)


def decode(data: bytes) -> AnyPacket:
    """:raises msgspec.MsgspecError: not one of ours."""
    return _decoder.decode(data)
