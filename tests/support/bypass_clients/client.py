"""One TCP connection by a way that a Python guard may not see: client.py METHOD HOST PORT. Exits with 0 or the errno.

METHOD: a name below; `library:WAY`, `deleted:WAY`, `memfd:WAY` and `extension:WAY` go through native.c, built by
build.py into the directory $BYPASS_NATIVE. HOST is an address. What a library does not tell is read from its message;
ENOMSG: not even there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import mmap
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WAIT_S = 4
_kept: list[mmap.mmap] = []
_SYS_CONNECT = {"x86_64": 42, "aarch64": 203}


def main(method: str, host: str, port: int) -> int:
    name, _, way = method.partition(":")
    try:
        return METHODS[name](way, host, port)
    except OSError as error:
        return error.errno or errno.ENOMSG


def by_socket(_way: str, host: str, port: int) -> int:
    """The Python way, which a guard does see."""
    with socket.socket(_family(host)) as s:
        return s.connect_ex((host, port))


def by_asyncio(_way: str, host: str, port: int) -> int:
    """The standard library's own loop connects in Python: a guard sees it."""

    async def dial() -> None:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), WAIT_S)
        writer.close()

    asyncio.run(dial())
    return 0


def by_thread(_way: str, host: str, port: int) -> int:
    with ThreadPoolExecutor(4) as threads:
        return max(threads.map(lambda _: by_socket("", host, port), range(8)))


def by_fork(_way: str, host: str, port: int) -> int:
    """A child that was forked, as multiprocessing does: still guarded, and its guard still vouches."""
    child = os.fork()
    if child == 0:
        os._exit(by_socket("", host, port))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def by_sendto(_way: str, host: str, port: int) -> int:
    with socket.socket(_family(host), socket.SOCK_DGRAM) as s:
        s.sendto(b"x", (host, port))
    return 0


def by_ctypes(way: str, host: str, port: int) -> int:
    """WAY: `udp`, else TCP."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(_family(host), socket.SOCK_DGRAM if way == "udp" else socket.SOCK_STREAM) as s:
        address = _sockaddr(host, port)
        return ctypes.get_errno() if libc.connect(s.fileno(), address, len(address)) else 0


def by_syscall(_way: str, host: str, port: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    with socket.socket(_family(host)) as s:
        address = _sockaddr(host, port)
        failed = libc.syscall(_SYS_CONNECT[os.uname().machine], s.fileno(), address, len(address))
        return ctypes.get_errno() if failed else 0


def by_library(way: str, host: str, port: int) -> int:
    return _through(ctypes.CDLL(str(_library())), way, host, port)


def by_deleted(way: str, host: str, port: int) -> int:
    """A library whose file is gone once it is loaded."""
    with tempfile.TemporaryDirectory() as where:
        copy = shutil.copy(_library(), Path(where) / "libgone.so")
        library = ctypes.CDLL(str(copy))
    return _through(library, way, host, port)


def by_memfd(way: str, host: str, port: int) -> int:
    """A library that never was a file."""
    fd = os.memfd_create("bypass")
    os.write(fd, _library().read_bytes())
    return _through(ctypes.CDLL(f"/proc/self/fd/{fd}"), way, host, port)


def by_jit(_way: str, host: str, port: int) -> int:
    """Three instructions in a page of its own: mov eax, SYS_connect; syscall; ret (x86-64)."""
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8" + struct.pack("=I", _SYS_CONNECT["x86_64"]) + b"\x0f\x05\xc3")
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    code = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)(start)
    _kept.append(page)
    with socket.socket(_family(host)) as s:
        address = _sockaddr(host, port)
        return -int(code(s.fileno(), address, len(address)))


def by_extension(way: str, host: str, port: int) -> int:
    sys.path.insert(0, os.environ["BYPASS_NATIVE"])
    import bypass_extension  # type: ignore[import-not-found]

    return int(bypass_extension.connect(way, host, port))


def by_uvloop(_way: str, host: str, port: int) -> int:
    import uvloop

    async def dial() -> None:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), WAIT_S)
        writer.close()

    uvloop.run(dial())
    return 0


def by_gevent(way: str, host: str, port: int) -> int:
    """WAY: `patched` puts gevent in place of the standard library; `ares` looks a name up through its C resolver."""
    import gevent
    from gevent import monkey
    from gevent import socket as green

    if way == "ares":
        from gevent.resolver.ares import Resolver

        with contextlib.suppress(socket.herror, socket.gaierror):  # nobody answers
            Resolver(servers=[host], udp_port=port, timeout=0.5, tries=1).gethostbyname("a.test")
        return 0
    if way == "patched":
        monkey.patch_all()
    dialled = gevent.spawn((socket if way == "patched" else green).create_connection, (host, port), WAIT_S)
    dialled.get().close()
    return 0


def by_pycurl(_way: str, host: str, port: int) -> int:
    import pycurl

    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, f"http://{_bracketed(host)}:{port}/")
    curl.setopt(pycurl.TIMEOUT, WAIT_S)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.WRITEFUNCTION, lambda _part: None)
    try:
        curl.perform()
    except pycurl.error as error:
        if error.args[0] == pycurl.E_COULDNT_CONNECT:
            return int(curl.getinfo(pycurl.OS_ERRNO)) or errno.ENOMSG
    return 0


def by_grpc(_way: str, host: str, port: int) -> int:
    """Connects in a thread of its own. What is no error of the connection (the peer speaks no HTTP/2) counts as 0."""
    import grpc

    options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(f"{_bracketed(host)}:{port}", options=options) as channel:
        call = channel.unary_unary("/test.Test/Call", _unchanged, _unchanged)
        try:
            call(b"", timeout=WAIT_S)
        except grpc.RpcError as error:
            text = str(error.details())
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return errno.ETIMEDOUT
            return _errno_in(text) if re.search("connect failed|Failed to connect to remote host", text) else 0
    return 0


def by_psycopg2(_way: str, host: str, port: int) -> int:
    import psycopg2

    try:
        psycopg2.connect(host=host, port=port, user="u", dbname="d", sslmode="disable", connect_timeout=WAIT_S)
    except psycopg2.OperationalError as error:
        text = str(error)
        return _errno_in(text) if re.search(r"port \d+ failed: (?!server closed|received)", text) else 0
    return 0


def by_getaddrinfo(way: str, host: str, port: int) -> int:
    """No connection: libc connects UDP sockets to the addresses to sort them (RFC 6724), if there are several.

    HOST is a name here; `::` is the loopback device, v4 and v6. WAY: `ctypes` calls the C function."""
    name = None if host == "::" else host
    if way == "ctypes":
        found = ctypes.c_void_p()
        c_name = name.encode() if name else None
        return int(ctypes.CDLL(None).getaddrinfo(c_name, str(port).encode(), None, ctypes.byref(found)))
    return 0 if len(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)) > 1 else errno.ENOMSG


METHODS: dict[str, Callable[[str, str, int], int]] = {
    "socket": by_socket,
    "asyncio": by_asyncio,
    "thread": by_thread,
    "fork": by_fork,
    "sendto": by_sendto,
    "ctypes": by_ctypes,
    "syscall": by_syscall,
    "library": by_library,
    "deleted": by_deleted,
    "memfd": by_memfd,
    "jit": by_jit,
    "extension": by_extension,
    "uvloop": by_uvloop,
    "gevent": by_gevent,
    "pycurl": by_pycurl,
    "grpc": by_grpc,
    "psycopg2": by_psycopg2,
    "getaddrinfo": by_getaddrinfo,
}


def _library() -> Path:
    return Path(os.environ["BYPASS_NATIVE"]) / "libbypass.so"


def _through(library: ctypes.CDLL, way: str, host: str, port: int) -> int:
    return int(library.bypass_connect(way.encode(), host.encode(), port))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _sockaddr(host: str, port: int) -> bytes:
    family = _family(host)
    packed = struct.pack("=H", family) + struct.pack("!H", port)
    address = socket.inet_pton(family, host)
    return packed + (address + bytes(8) if family == socket.AF_INET else bytes(4) + address + bytes(4))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _unchanged(message: bytes) -> bytes:
    return message


def _errno_in(text: str) -> int:
    """The error whose message of strerror(3) stands in `text`; the longest, since some are part of others."""
    lower = text.lower()
    if "timeout expired" in lower:
        return errno.ETIMEDOUT
    found = [n for n in errno.errorcode if os.strerror(n).lower() in lower]
    return max(found, key=lambda n: len(os.strerror(n)), default=errno.ENOMSG)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
