"""In a bottle: DNS over UDP and single connects, as each line of stdin says; one JSON answer a line.

    {"do": "miss", "names": "*.SUFFIX", "count": N}              milliseconds of each, no name asked twice
    {"do": "cached", "name": NAME, "seconds": S, "window": N}    answers a second, N questions under way
    {"do": "connect", "to": [ADDRESS, PORT]}                     errno, 0 for success
    {"do": "race", "names": "*.SUFFIX", "port": P, "first": F, "count": N}      errnos of connects right behind answers

`asker.py SERVER` asks that server instead of resolv.conf's. Standard library only.
"""

import json
import os
import select
import socket
import struct
import sys
import time


def server() -> str:
    with open("/etc/resolv.conf") as text:
        return next(line.split()[1] for line in text if line.startswith("nameserver"))


def query(number: int, name: str, kind: bytes = b"\0\1") -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + kind + b"\0\1"


def checked(data: bytes) -> int:
    """Its number, if it is an answer with an address."""
    number, flags, _, answers = struct.unpack_from(">HHHH", data)
    if flags & 15 or not answers:
        raise SystemExit(f"rcode {flags & 15}, {answers} answers")
    return number


SERVER = sys.argv[1] if len(sys.argv) > 1 else server()
SOCK = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
SOCK.connect((SERVER, 53))
SOCK.settimeout(5)


def miss(names: str, count: int) -> list:
    took = []
    run = os.urandom(4).hex()
    for number in range(count):
        packet = query(number, names.replace("*", f"n{number}-{run}"))
        began = time.perf_counter()
        SOCK.send(packet)
        data = SOCK.recv(4096)
        took.append((time.perf_counter() - began) * 1000)
        assert checked(data) == number
    return took


def cached(name: str, seconds: float, window: int) -> float:
    packet = query(1, name)
    for _ in range(window):
        SOCK.send(packet)
    answered, began = 0, time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        checked(SOCK.recv(4096))
        answered += 1
        SOCK.send(packet)
    while select.select([SOCK], [], [], 0.2)[0]:
        SOCK.recv(4096)
    return answered / (now - began)


def connect(to: list) -> int:
    with socket.socket() as sock:
        sock.settimeout(2)
        return sock.connect_ex(tuple(to))


def race(names: str, port: int, first: int, count: int) -> list:
    """Each name has an IPv6 address of its own, which nobody has opened before; the answer ends with it."""
    failed = []
    for number in range(first, first + count):
        SOCK.send(query(number & 0xFFFF, names.replace("*", f"n{number}"), b"\0\x1c"))
        data = SOCK.recv(4096)
        checked(data)
        with socket.socket(socket.AF_INET6) as sock:
            sock.settimeout(5)
            error = sock.connect_ex((socket.inet_ntop(socket.AF_INET6, data[-16:]), port))
        if error:
            failed.append(error)
    return failed


print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    work = {"miss": miss, "cached": cached, "connect": connect, "race": race}[asked.pop("do")]
    print(json.dumps(work(**asked)), flush=True)
