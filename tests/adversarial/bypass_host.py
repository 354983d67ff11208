"""Techniques on the host around the bottle: system calls, its processes, files and Unix sockets. Stdlib only."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import socket
import termios
from collections.abc import Callable
from pathlib import Path

from bypass_table import LIBC, WAIT_S, Refused, attempt, checked, talk


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
