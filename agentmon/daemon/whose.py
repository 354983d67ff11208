"""Which process of a bottle holds a socket: by its local port, from /proc. Needs CAP_SYS_PTRACE."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LOOPBACK = re.compile(r"[0-9A-F]{6}7F|0{24}01000000|0{16}FFFF0000[0-9A-F]{6}7F")  # words are little endian
CMDLINE = 512  # characters of a command line that an event has


def process(pids: Iterable[int], proto: str, port: int) -> dict[str, Any]:
    """Event fields (pid, ppid, uid, comm, exe, cmdline …) of the process that holds local `port`; {} if it has gone.

    Also {} where several sockets could be meant (SO_REUSEPORT): better nobody than the wrong one.

    :param pids: the bottle's processes; all are in one network namespace.
    """
    pids = tuple(pids)
    inodes: set[str] = set()
    for pid in pids:
        if inodes := _inodes(pid, proto, port):
            break
    if len(inodes) != 1:
        return {}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in pids:
        if _holds(pid, wanted):
            return describe(pid)
    return {}


def _inodes(pid: int, proto: str, port: int) -> set[str]:
    """Inodes of the sockets bound to `port` in the process's namespace (proc(5), /proc/net/udp), but for those on
    loopback: these have sent nothing to a service."""
    found = set()
    for name in (proto, f"{proto}6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) < 10:
                continue
            address, _, local = fields[1].rpartition(":")
            if int(local, 16) == port and not _LOOPBACK.fullmatch(address):
                found.add(fields[9])
    return found


def _holds(pid: int, wanted: set[str]) -> bool:
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(entry.path) in wanted:
                    return True
            except OSError:
                continue
    except OSError:
        return False
    return False


def describe(pid: int) -> dict[str, Any]:
    """What is known of a living process; {} when it has gone."""
    proc = Path(f"/proc/{pid}")
    try:
        stat = (proc / "stat").read_text()
        name, _, rest = stat.partition("(")[2].rpartition(")")
        exe = str((proc / "exe").readlink())
        cmdline = (proc / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        uid = proc.stat().st_uid
    except (OSError, ValueError, IndexError):
        return {}
    return {
        "pid": pid,
        "tgid": pid,
        "ppid": int(rest.split()[1]),
        "uid": uid,
        "comm": name,
        "exe": exe,
        "cmdline": cmdline[:CMDLINE],
    }
