"""Network namespaces by name (/run/netns, as ip-netns(8) keeps them), entered by own threads. Needs CAP_SYS_ADMIN."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from netfilter.errors import KernelRefused

T = TypeVar("T")
RUN = Path("/run/netns")
_CLONE_NEWNET = 0x4000_0000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, operation: str) -> None:
    if result != 0:
        raise KernelRefused(ctypes.get_errno(), operation)


def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that ends with it: whatever namespace it enters, nothing else is ever in there."""
    done: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            done.append(work())
        except BaseException as e:  # noqa: BLE001 - handed to the caller
            failed.append(e)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def inside(name: str, work: Callable[[], T]) -> T:
    """Run `work` in namespace `name`; sockets that it opens stay bound to it.

    :raises KernelRefused: ENOENT, no such namespace; EPERM, no privilege.
    """

    def enter() -> T:
        try:
            fd = os.open(RUN / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise KernelRefused(e.errno or errno.ENOENT, f"enter namespace {name}") from e
        try:
            _check(_libc().setns(fd, _CLONE_NEWNET), f"enter namespace {name}")
        finally:
            os.close(fd)
        return work()

    return in_thread(enter)


def create(name: str) -> None:
    """Make namespace `name`.

    :raises KernelRefused: EEXIST, the name is taken.
    """
    _shared_directory()
    path = RUN / name
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError as e:
        raise KernelRefused(errno.EEXIST, f"create namespace {name}", "the name is taken") from e

    def new() -> None:
        _check(_libc().unshare(_CLONE_NEWNET), f"create namespace {name}")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
        _check(_libc().mount(source, str(path).encode(), b"none", _MS_BIND, None), f"bind namespace {name}")

    try:
        in_thread(new)
    except OSError:
        path.unlink()
        raise


def delete(name: str) -> None:
    """Unbind and unlink; idempotent. The namespace ends with its last process or socket."""
    path = RUN / name
    _libc().umount2(str(path).encode(), _MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def exists(name: str) -> bool:
    return (RUN / name).exists()


def names(prefix: str) -> list[str]:
    """Names that begin with `prefix`."""
    return sorted(p.name for p in RUN.glob(f"{prefix}*")) if RUN.is_dir() else []


def _shared_directory() -> None:
    """/run/netns as a shared mount point, as ip-netns(8) makes it, so that both see each other's names."""
    RUN.mkdir(parents=True, exist_ok=True, mode=0o755)
    libc, path = _libc(), str(RUN).encode()
    if libc.mount(b"", path, b"none", _MS_SHARED | _MS_REC, None) != 0:
        _check(libc.mount(path, path, b"none", _MS_BIND | _MS_REC, None), "make /run/netns a mount point")
        _check(libc.mount(b"", path, b"none", _MS_SHARED | _MS_REC, None), "make /run/netns shared")
