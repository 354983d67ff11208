"""The host's Unix sockets and a bottle: which of its places are its own, which sockets are mounted, which are covered.

own places, and what the policy names    ─▶ places(): what BPF lets it connect to, as text
sockets that the policy names            ─▶ mounted from the host, given()
sockets in directories that are shown    ─▶ covered with /dev/null, covered(): a symbolic link in an own place leads
                                            the kernel there after BPF has decided by the text of the path
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from agentmon.errors import BadInput
from agentmon.launch.argv import inside, shown_paths
from agentmon.launch.spec import LaunchSpec

OWN = ("/tmp/", "/var/tmp/", "/run/", "/var/run/", "/dev/shm/")
MAX_COVERED = 256  # a mount each
_PATH_COLUMN = 7  # of /proc/net/unix: Num RefCount Protocol Flags Type St Inode Path


class Places(NamedTuple):
    """What ebpf.spec.BottlePolicy.unix and unix_closed are given."""

    open: tuple[str, ...]
    closed: tuple[str, ...]


def places(spec: LaunchSpec, *, home_is_private: bool) -> Places:
    """Pure. A directory that is shown inside an own place (a project in HOME) is closed; what the policy names is open
    wherever it is."""
    own = (*OWN, *([_directory(spec.home)] if home_is_private else []))
    closed = tuple(_directory(path) for path in sorted(shown_paths(spec)))
    if not home_is_private:
        closed = (*closed, _directory(spec.home))
    return Places((*own, *spec.unix), tuple(c for c in dict.fromkeys(closed) if c not in spec.unix))


def given(paths: Iterable[str]) -> dict[str, int]:
    """An O_PATH descriptor for each path of `unix:` that exists, by where it is mounted.

    :raises BadInput: it is neither a socket nor, with "/" behind it, a directory.
    """
    found = {}
    for path in paths:
        try:
            fd = os.open(path.rstrip("/"), os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue  # made later: then it is not mounted, and a directory would have been the better word
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISDIR(mode) if path.endswith("/") else stat.S_ISSOCK(mode)):
            os.close(fd)
            kind = "directory" if path.endswith("/") else "socket"
            raise BadInput(f'unix: "{path}" is no {kind}', "a directory ends in /, a socket does not")
        found[inside(path)] = fd
    return found


def covered(shown: Mapping[str, int], allowed: Iterable[str], table: str | None = None) -> list[str]:
    """Paths, as the bottle sees them, of the sockets that are bound below what is shown and not allowed. Reads the
    caller's network namespace. A socket bound by a relative path is not found; nor is one of another namespace.

    :param shown: path inside to a descriptor of what is mounted there.
    :param table: text of /proc/net/unix.
    :raises BadInput: a shown path is a socket itself, or there are more than MAX_COVERED.
    """
    roots = {}
    for path, fd in shown.items():
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            hint = "name it under `unix:` in a manifest of the host's bottles_dir"
            raise BadInput(f'"{path}" is a socket: it cannot be shown as a file', hint)
        roots[os.readlink(f"/proc/self/fd/{fd}")] = path
    kept = tuple(allowed)
    found: dict[str, None] = {}
    directories: dict[str, str] = {}
    for written in _bound(Path("/proc/net/unix").read_text(errors="surrogateescape") if table is None else table):
        parent, _, name = written.rpartition("/")
        real = directories.get(parent)
        if real is None:
            real = directories[parent] = os.path.realpath(parent or "/")
        for root, seen_as in roots.items():
            if not f"{real}/".startswith(f"{root.rstrip('/')}/"):
                continue
            path = f"{seen_as}{real[len(root) :]}/{name}"
            if not _is_allowed(path, kept) and _is_socket(f"{real}/{name}"):
                found[path] = None
    if len(found) > MAX_COVERED:
        what = f"{len(found)} sockets of the host are in the directories that are shown to the bottle"
        raise BadInput(what, "show fewer directories: run it elsewhere, with --ro and --rw for what it needs")
    return sorted(found)


def _bound(table: str) -> Iterable[str]:
    """The absolute paths in /proc/net/unix, which may have spaces; abstract names begin with "@"."""
    for line in table.split("\n")[1:]:
        words = line.split(None, _PATH_COLUMN)
        if len(words) > _PATH_COLUMN and words[_PATH_COLUMN].startswith("/"):
            yield words[_PATH_COLUMN]


def _is_allowed(path: str, allowed: Iterable[str]) -> bool:
    return any(path.startswith(a) if a.endswith("/") else path == a for a in allowed)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _directory(path: str) -> str:
    return path.rstrip("/") + "/"
