"""Switches under /proc/sys/net, of the namespace of the calling thread. Needs CAP_NET_ADMIN to write."""

from __future__ import annotations

from pathlib import Path

from netfilter.errors import KernelRefused

_NET = Path("/proc/sys/net")


def read(path: str) -> str | None:
    """None where this kernel has no such switch (or the device has gone)."""
    try:
        return (_NET / path).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path: str, value: str) -> str | None:
    """Write net.`path` if it is something else; returns what it was, None where there is no such switch.

    :raises KernelRefused: /proc/sys is read-only, or no privilege.
    """
    before = read(path)
    if before is not None and before != value:
        try:
            (_NET / path).write_text(value)
        except OSError as e:
            raise KernelRefused(e.errno or 0, f"write net.{path.replace('/', '.')}={value}") from e
    return before
