"""Network namespaces by name (/run/netns, as ip-netns(8) keeps them), entered by own threads. Needs CAP_SYS_ADMIN."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from netfilter.errors import KernelRefused

T = TypeVar("T")
RUN = Path("/run/netns")
_CLONE_NEWNET = 0x4000_0000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2
_LIBC = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare come with Python 3.12


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


def unshare() -> None:
    """Put the calling thread into a namespace without a name, which ends with it: for `in_thread`."""
    _check(_LIBC.unshare(_CLONE_NEWNET), "make a network namespace")


def inside(name: str, work: Callable[[], T]) -> T:
    """Run `work` in namespace `name`; sockets that it opens stay bound to it.

    :raises KernelRefused: ENOENT, no such namespace; EPERM, no privilege.
    """

    with handle(name) as fd:
        return inside_fd(fd, work)


def inside_fd(fd: int, work: Callable[[], T]) -> T:
    """The same in the namespace of descriptor `fd`, which may have no name any more."""

    def enter() -> T:
        _check(_LIBC.setns(fd, _CLONE_NEWNET), "enter a namespace")
        return work()

    return in_thread(enter)


@contextlib.contextmanager
def handle(name: str) -> Iterator[int]:
    """A descriptor of namespace `name`, closed afterwards.

    :raises KernelRefused: ENOENT, no such namespace.
    """
    try:
        fd = os.open(RUN / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise KernelRefused(e.errno or errno.ENOENT, f"enter namespace {name}") from e
    try:
        yield fd
    finally:
        os.close(fd)


def create(name: str, first: Callable[[], T]) -> T:
    """Make namespace `name` and run `first` in it.

    :raises KernelRefused: EEXIST, the name is taken; whatever `first` raises, and then there is no such namespace.
    """
    _shared_directory()
    path = RUN / name
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError as e:
        raise KernelRefused(errno.EEXIST, f"create namespace {name}", "the name is taken") from e

    def new() -> T:
        _check(_LIBC.unshare(_CLONE_NEWNET), f"create namespace {name}")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
        _check(_LIBC.mount(source, str(path).encode(), b"none", _MS_BIND, None), f"bind namespace {name}")
        return first()

    try:
        return in_thread(new)
    except BaseException:
        delete(name)
        raise


def bind(name: str, path: str, inode: int) -> None:
    """Give the namespace at `path` the name `name`.

    :raises KernelRefused: EEXIST, the name is taken; ESTALE, `path` is not (or no longer) the namespace `inode`.
    """
    _shared_directory()
    place, operation = RUN / name, f"bind namespace {name}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise KernelRefused(errno.ESTALE, operation, f"{path} has gone") from e
    try:
        if os.fstat(fd).st_ino != inode:
            raise KernelRefused(errno.ESTALE, operation, f"{path} is another namespace by now")
        try:
            os.close(os.open(place, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        except FileExistsError as e:
            raise KernelRefused(errno.EEXIST, operation, "the name is taken") from e
        try:
            source = f"/proc/self/fd/{fd}".encode()
            _check(_LIBC.mount(source, str(place).encode(), b"none", _MS_BIND, None), operation)
        except KernelRefused:
            delete(name)
            raise
    finally:
        os.close(fd)


def delete(name: str) -> None:
    """Unbind and unlink; idempotent. The namespace ends with its last process or socket."""
    path = RUN / name
    _LIBC.umount2(str(path).encode(), _MNT_DETACH)
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
    path = str(RUN).encode()
    if _LIBC.mount(b"", path, b"none", _MS_SHARED | _MS_REC, None) != 0:
        _check(_LIBC.mount(path, path, b"none", _MS_BIND | _MS_REC, None), "make /run/netns a mount point")
        _check(_LIBC.mount(b"", path, b"none", _MS_SHARED | _MS_REC, None), "make /run/netns shared")
