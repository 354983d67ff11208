"""Directories whose files are followed by inotify(7): one call when something in them changed and is quiet again.

A directory that is not there yet is waited for in the nearest one above it. What changed is not asked: who is called
compares contents. The only file that speaks to inotify, by ctypes: three calls, not worth a package.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable, Iterable
from pathlib import Path

QUIET_S = 0.2
LATEST_S = 2.0  # so long may changes go on until they are looked at all the same
_MASK = 0x008 | 0x040 | 0x080 | 0x100 | 0x200 | 0x400 | 0x800  # CLOSE_WRITE MOVED_FROM MOVED_TO CREATE DELETE + own end
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # the values of IN_NONBLOCK and IN_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Watched:
    """:param places: directories. :param changed: called in the loop. :raises OSError: no inotify for this user."""

    def __init__(self, places: Iterable[Path], changed: Callable[[], object]) -> None:
        self._places = tuple(places)
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._first_s = 0.0
        self._fd = _libc.inotify_init1(_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watch()
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _watch(self) -> None:
        """Watching what is watched already changes nothing."""
        for place in self._places:
            there = next((p for p in (place, *place.parents) if p.is_dir()), Path("/"))
            for directory in {there, there.resolve()}:
                _libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 1 << 16)
        now_s = self._loop.time()
        if self._timer is None:
            self._first_s = now_s
        else:
            self._timer.cancel()
        wait_s = max(0.0, min(QUIET_S, self._first_s + LATEST_S - now_s))
        self._timer = self._loop.call_later(wait_s, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._watch()
        self._changed()


def contents(files: Iterable[Path]) -> tuple[tuple[str, bytes | None], ...]:
    """What stands in files, None for one that cannot be read: differs when a reader would read something else."""
    return tuple((str(file), _bytes(file)) for file in files)


def _bytes(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            return opened.read(1 << 22)
    except OSError:
        return None
