"""Counts what arrives in the canary's yard: `python -m agentmon.posture.canary_receiver SECONDS ADDRESS…`.

Says "ready", counts until its stdin ends or the time is over, then prints bytes by mark as one JSON object. A packet
socket counts everything that came in beside TCP, whatever its port.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import Counter

from agentmon.posture.canary_yard import ALLOWED, CLOSED

_MARKS = (
    b"control", b"tcp6", b"tcp", b"ctypes", b"syscall", b"udp", b"sendto", b"dns", b"ping", b"linklocal", b"multicast",
)  # fmt: skip
_STDIN = 0
_ETH_P_ALL, _OUTGOING = 3, 4  # linux/if_ether.h, linux/if_packet.h


def main(seconds: float, addresses: list[str]) -> None:
    servers = [socket.create_server((a, port), family=_family(a)) for a in addresses for port in (ALLOWED, CLOSED)]
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    found: Counter[str] = Counter()
    end = time.monotonic() + seconds
    open_: list[socket.socket] = [*servers, frames]
    print("ready", flush=True)
    while (left := end - time.monotonic()) > 0:
        ready = select.select([*(s.fileno() for s in open_), _STDIN], [], [], left)[0]
        if _STDIN in ready:
            break
        for sock in [s for s in open_ if s.fileno() in ready]:
            if sock in servers:
                open_.append(sock.accept()[0])  # its bytes are counted as frames
            elif sock is frames:
                data, where = frames.recvfrom(4096)
                if where[2] != _OUTGOING:
                    _count(data, found)
            elif not sock.recv(4096):
                open_.remove(sock)
                sock.close()
    print(json.dumps(found))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _count(frame: bytes, found: Counter[str]) -> None:
    mark = next((m for m in _MARKS if m in frame), None)
    if mark is not None:
        found[mark.decode()] += len(mark)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
