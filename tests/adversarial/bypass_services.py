"""Techniques on agentmon's own services: names asked, requests made, flows kept open, listeners. Stdlib only."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time

from bypass_table import Refused, attempt, family


def question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 0x6D61, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def answers(reply: bytes) -> int:
    return int.from_bytes(reply[6:8], "big")


@attempt
def dns(server: str, name: str, kind: str) -> None:
    """reached: the reply has an answer section."""
    with socket.socket(family(server), socket.SOCK_DGRAM) as sock:
        sock.settimeout(3.0)
        sock.sendto(question(name, int(kind)), (server, 53))
        if answers(sock.recv(4096)) == 0:
            raise Refused


@attempt
def dns_tcp(server: str, name: str, kind: str) -> None:
    wire = question(name, int(kind))
    with socket.create_connection((server, 53), 3.0) as sock:
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        if answers(sock.recv(4096)[2:]) == 0:
            raise Refused


@attempt
def race(server: str, names: str, port: str, count: str) -> str:
    """Connects, each right behind the answer that named its address (IPv6, of that name alone); how many were lost."""
    lost = 0
    with socket.socket(family(server), socket.SOCK_DGRAM) as sock:
        sock.settimeout(5.0)
        for number in range(int(count)):
            sock.sendto(question(names.replace("*", f"n{number}"), 28), (server, 53))
            address = socket.inet_ntop(socket.AF_INET6, sock.recv(4096)[-16:])
            with socket.socket(socket.AF_INET6) as flow:
                flow.settimeout(5.0)
                lost += flow.connect_ex((address, int(port))) != 0
            time.sleep(0.012)  # within queries_per_s
    return f"{lost} lost"


@attempt
def listens(port: str) -> None:
    """Wait for a visitor on every address."""
    with socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        print("listening", flush=True)
        server.settimeout(8.0)
        server.accept()[0].close()


@attempt
def serves(port: str) -> None:
    """Say hello to whoever comes, on every address, until killed."""
    with socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while True:
            server.accept()[0].sendall(b"hello")


@attempt
def request(address: str, port: str, sni: str, *lines: str) -> str:
    """Raw lines over TCP, or over TLS where `sni` is not "-" ("none": without one); the status of every answer."""
    with socket.create_connection((address, int(port)), 3.0) as plain:
        sock: socket.socket = plain
        if sni != "-":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(plain, server_hostname=None if sni == "none" else sni)
        sock.settimeout(1.5)
        sock.sendall("\r\n".join(lines).encode().decode("unicode_escape").encode("latin-1") + b"\r\n\r\n")
        data = b""
        while b"\r\n\r\n" not in data and (more := sock.recv(1 << 16)):
            data += more
        if not data:
            raise Refused
        return " ".join(line.split()[1].decode() for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 "))


@attempt
def keeps_talking(*targets: str) -> None:
    """Open flows to "tcp=HOST=PORT" and "udp=HOST=PORT", then report each round which of them still answer."""
    socks = []
    for kind, host, port in (target.split("=") for target in targets):
        sock = socket.socket(family(host), socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        sock.settimeout(0.2)
        sock.connect((host, int(port)))
        socks.append((f"{kind}{'6' if ':' in host else '4'}", sock))
    with open("/tmp/flows", "w") as out:
        while True:
            alive = [name for name, sock in socks if _answers(sock)]
            out.seek(0)
            out.truncate()
            out.write(" ".join(alive) + "\n")
            out.flush()
            select.select([], [], [], 0.05)


def _answers(sock: socket.socket) -> bool:
    try:
        sock.send(b"still")
        return bool(sock.recv(64))
    except OSError:
        return False
