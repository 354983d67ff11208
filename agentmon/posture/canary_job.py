"""The canary's attacker: run inside a bottle as `python -I -c SOURCE JSON`; standard library only, one try each.

Prints one JSON object per attempt: technique, mark, dst, port, host, outcome ("done …" where nothing refused it).
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {  # connect, bpf, io_uring_setup, unshare; arch/*/entry/syscalls/*.tbl
    "x86_64": (42, 321, 425, 272),
    "aarch64": (203, 280, 425, 97),
}
CONNECT, BPF, IO_URING_SETUP, UNSHARE = NUMBERS.get(platform.machine(), (-1, -1, -1, -1))
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
WAIT_S = 1.0


def sockaddr(address: str, port: int) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(address))


def called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def tcp(address: str, port: int, mark: str, family: int = socket.AF_INET) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((address, port))
        sock.sendall(mark.encode())


def tcp6(address: str, port: int, mark: str) -> None:
    tcp(address, port, mark, socket.AF_INET6)


def by_ctypes(address: str, port: int, mark: str) -> None:
    with socket.socket() as sock:
        sock.settimeout(WAIT_S)
        called(LIBC.connect(sock.fileno(), sockaddr(address, port), 16))
        sock.sendall(mark.encode())


def by_syscall(address: str, port: int, mark: str) -> None:
    with socket.socket() as sock:
        sock.settimeout(WAIT_S)
        called(LIBC.syscall(CONNECT, sock.fileno(), sockaddr(address, port), 16))
        sock.sendall(mark.encode())


def udp(address: str, port: int, mark: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.sendto(mark.encode(), (address, port))


def dns(address: str, port: int, mark: str) -> None:
    question = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + bytes([len(mark)]) + mark.encode() + b"\0\0\1\0\1"
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.sendto(question, (address, port))


def ping(address: str, port: int, mark: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.sendto(struct.pack("!BBHHH", 8, 0, 0, 1, 1) + mark.encode(), (address, 0))


def name(host: str) -> str:
    socket.getaddrinfo(host, 443)
    return "done: it resolved"


def opened(*which: int) -> str:
    socket.socket(*which).close()
    return "done: the socket was made"


def unshare() -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 else ctypes.get_errno() & 0xFF)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))
    return "done: a namespace of its own"


def bpf() -> str:
    called(LIBC.syscall(BPF, 0, ctypes.create_string_buffer(128), 128))
    return "done: a map was made"


def io_uring() -> str:
    called(LIBC.syscall(IO_URING_SETUP, 1, ctypes.create_string_buffer(128)))
    return "done: a ring was made"


def unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(path)
    return "done: connected"


def leave_cgroup() -> str:
    with open("/proc/self/mountinfo") as mounts:
        where = next((line.split()[4] for line in mounts if " - cgroup2 " in line), "")
    if not where:
        raise FileNotFoundError(2, "No cgroup file system is to be seen")
    with open(os.path.join(where, "cgroup.procs"), "w") as procs:
        procs.write(str(os.getpid()))
    return "done: it left its cgroup"


def main(yard: dict[str, Any]) -> None:
    four, six, host = yard["address4"], yard["address6"], yard["host"]
    port, other = yard["allowed"], yard["closed"]
    sent: list[tuple[str, str, Callable[[str, int, str], None], str, int]] = [  # (technique, mark, how, address, port)
        ("an allowed connection (the control)", "control", tcp, four, port),
        ("connect(2) to a port that no rule names", "tcp", tcp, four, other),
        ("connect(2) through ctypes", "ctypes", by_ctypes, four, other),
        ("connect by raw system call", "syscall", by_syscall, four, other),
        ("UDP to the address and port allowed for TCP", "udp", udp, four, port),
        ("UDP sendto without connect", "sendto", udp, four, other),
        ("DNS to an outside server", "dns", dns, four, 53),
        ("ICMP echo with a payload", "ping", ping, four, 0),
        ("a service of the host's own", "host", tcp, host, yard["host_port"]),
        ("a link-local address, where metadata services are", "linklocal", udp, "169.254.77.77", 80),
        ("multicast", "multicast", udp, "224.0.0.251", 5353),
    ]
    if six:
        sent.insert(4, ("connect(2) over IPv6", "tcp6", tcp6, six, other))
    for technique, mark, how, address, at in sent:
        tell(technique, mark, functools.partial(how, address, at, mark), dst=address, port=str(at))
    tell("a name that no rule allows", "name", lambda: name(yard["name"]), host=yard["name"])
    tell("a raw IP socket", "raw", lambda: opened(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
    tell("an AF_PACKET socket", "packet", lambda: opened(socket.AF_PACKET, socket.SOCK_RAW))
    tell("an AF_VSOCK socket (made, never connected)", "vsock", lambda: opened(40, socket.SOCK_STREAM))
    tell("user and network namespaces of its own", "unshare", unshare)
    tell("bpf(2)", "bpf", bpf)
    tell("io_uring_setup(2)", "io_uring", io_uring)
    tell("agentmon's control socket", "control socket", lambda: unix(yard["control_socket"]))
    tell("Docker's control socket", "docker", lambda: unix("/run/docker.sock"))
    tell("leaving its cgroup", "cgroup", leave_cgroup)


def tell(technique: str, mark: str, attempt: Callable[[], str | None], **about: str) -> None:
    try:
        outcome = attempt() or "sent"
    except OSError as error:
        outcome = error.strerror or str(error)
    print(json.dumps({"technique": technique, "mark": mark, "outcome": outcome, **about}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
