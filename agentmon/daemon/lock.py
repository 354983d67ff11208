"""One daemon per host: a lock file that the kernel releases with its holder."""

from __future__ import annotations

import fcntl
import os
import socket
import time

from agentmon import paths
from agentmon.errors import HostLacks

_WAIT_S = 15.0
_POLL_S = 0.02


def take(wait_s: float = _WAIT_S) -> int:
    """The descriptor that keeps others out until this process ends. Waits for a daemon that is just ending.

    :raises HostLacks: another daemon runs and answers, or does not end in time.
    """
    end = time.monotonic() + wait_s
    while True:
        try:
            paths.RUN.mkdir(parents=True, exist_ok=True)
            fd = os.open(paths.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, FileExistsError):  # an ending daemon is just removing the directory
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_there(fd):
                return fd
        except BlockingIOError:
            if _answers() or time.monotonic() > end:
                os.close(fd)
                raise HostLacks("an agentmon daemon is already running", "agentmon ps shows its bottles") from None
        os.close(fd)
        time.sleep(_POLL_S)


def _still_there(fd: int) -> bool:
    """Whether the locked file is the one at the path: an ending daemon removes the directory under us."""
    try:
        return os.stat(paths.LOCK).st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _answers() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(paths.CONTROL_SOCKET))
        except OSError:
            return False
    return True
