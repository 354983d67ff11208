"""Pipes that bytes pass through inside the kernel: lent for a turn of a flow, kept only while its receiver is full."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

LARGE = 1 << 20  # fs.pipe-max-size of an unprivileged user
_SPARE = 4
_SPLICE_F_MOVE, _SPLICE_F_NONBLOCK = 1, 2
_FLAGS = _SPLICE_F_MOVE | _SPLICE_F_NONBLOCK

_spare: list[Pipe] = []


@dataclass(eq=False, slots=True)
class Pipe:
    """`held` bytes are in it. `size_bytes` is what it can hold: less than LARGE once the user has many
    (fs.pipe-user-pages-soft, pipe(7)); bytes move on with any size."""

    read_end: int
    write_end: int
    size_bytes: int
    held: int = 0

    def fill(self, source: int, most: int) -> int:
        """Take up to `most` bytes from a socket; 0 at its end. The pipe must be empty.

        :raises BlockingIOError: there are none now. :raises OSError: the connection broke. See splice(2).
        """
        self.held = os.splice(source, self.write_end, most, flags=_FLAGS)
        return self.held

    def drain(self, sink: int) -> int:
        """Pass on what the socket takes; how much that was. :raises OSError: the connection broke."""
        before = self.held
        try:
            while self.held:
                self.held -= os.splice(self.read_end, sink, self.held, flags=_FLAGS)
        except (BlockingIOError, InterruptedError):
            pass
        return before - self.held

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


def lend() -> Pipe:
    """An empty pipe. :raises OSError: EMFILE or ENFILE."""
    if _spare:
        return _spare.pop()
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, LARGE)
    except PermissionError:
        size = fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)
    return Pipe(read_end, write_end, size)


def give_back(pipe: Pipe) -> None:
    """What is still in it is lost."""
    if pipe.held or pipe.size_bytes < LARGE or len(_spare) >= _SPARE:
        pipe.close()
    else:
        _spare.append(pipe)
