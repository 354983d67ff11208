"""In a bottle, or beside it: does what each line of stdin says, one JSON answer a line. Standard library only.

{"do": "plain" | "hello" | "tls", "to": [ADDRESS, PORT], "name": SNI}    bytes and seconds, connect to end
{"do": "connect", "to": [ADDRESS, PORT], "times": N}                      microseconds of each connect(2)
{"do": "resolve", "name": NAME}                                           its IPv4 address
"""

import contextlib
import json
import socket
import ssl
import sys
import time

BUFFER = bytearray(1 << 20)
CONTEXT = ssl._create_unverified_context()


def hello(name: str) -> bytes:
    out = ssl.MemoryBIO()
    tls = CONTEXT.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def receive(do: str, to: list, name: str = "") -> dict:
    first = hello(name) if do == "hello" else b""
    began = time.perf_counter()
    sock = socket.create_connection(tuple(to), 20)
    if do == "tls":
        sock = CONTEXT.wrap_socket(sock, server_hostname=name)
    elif first:
        sock.sendall(first)
    total = 0
    while count := sock.recv_into(BUFFER):
        total += count
    took = time.perf_counter() - began
    sock.close()
    return {"bytes": total, "seconds": took}


def connect(to: list, times: int) -> list:
    took = []
    for _ in range(times):
        sock = socket.socket()
        began = time.perf_counter_ns()
        sock.connect(tuple(to))
        took.append((time.perf_counter_ns() - began) / 1000)
        sock.recv(1)  # the other side closes first: no local port stays in TIME_WAIT
        sock.close()
    return took


for line in sys.stdin:
    asked = json.loads(line)
    do = asked.pop("do")
    if do == "connect":
        answer = connect(**asked)
    elif do == "resolve":
        answer = socket.getaddrinfo(asked["name"], 443, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    else:
        answer = receive(do, **asked)
    print(json.dumps(answer), flush=True)
