"""The few system calls that Python 3.11 lacks, through libc; the launcher's only ctypes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace of `fd`; setns(2). Needs CAP_SYS_ADMIN.

    :raises OSError: with the kernel's errno.
    """
    if _libc.setns(fd, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


def enter_netns(name: str) -> None:
    """Move the calling thread into a network namespace given by its name in /run/netns or by a path.

    :raises OSError: it is not there, or the caller lacks CAP_SYS_ADMIN.
    """
    path = Path(name) if "/" in name else Path("/run/netns") / name
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
    finally:
        os.close(fd)


def memory_file(name: str, content: bytes) -> int:
    """A descriptor (close-on-exec) that reads `content` from its start."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
