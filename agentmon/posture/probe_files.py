"""Looking at files: owners, modes, what is in them, room and time. Reads secrets' owners and modes, never secrets."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from agentmon import paths, trust
from agentmon.errors import AgentmonError
from agentmon.ledger import reader
from agentmon.ledger.migrations import SchemaTooNew
from agentmon.policy import manifest, settings
from agentmon.posture.facts import Authority, Disk, Ledger, Own, Seen
from agentmon.posture.model import Unseen

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_LEDGER_BYTES = 256 << 20  # checking more than this takes too long for a report


def own(path: Path, problem: str = "", user: str = "") -> Own:
    """:raises OSError: it is not there. A symbolic link is what it leads to."""
    status = path.stat()
    wanted = None
    if user:
        with contextlib.suppress(KeyError):
            wanted = pwd.getpwnam(user).pw_uid
    return Own(str(path), status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), problem, wanted)


def settings_files() -> Seen[tuple[Own, ...]]:
    """settings.yml and every manifest of its bottles_dir, each read as the daemon would; directories too."""
    found, path = [], settings.default_path()
    try:
        values, problem = settings.load(), ""
    except AgentmonError as error:
        values, problem = settings.Settings(), str(error)
    if path.is_file():
        found.append(own(path, problem))
        found.append(own(path.parent))
    elif problem:
        found.append(own(paths.ETC, problem) if paths.ETC.is_dir() else Own(str(path), 0, 0, 0o644, problem))
    if values.bottles_dir.is_dir():
        found.append(own(values.bottles_dir))
        found += [
            own(file, _manifest_problem(file, values.bottles_dir)) for file in sorted(values.bottles_dir.glob("*.yml"))
        ]
    return tuple(found)


def _manifest_problem(file: Path, bottles_dir: Path) -> str:
    try:
        manifest.load_chain(file, bottles_dir)
    except AgentmonError as error:
        return str(error)
    return ""


def grants() -> Seen[tuple[str, ...]]:
    try:
        given = settings.load().grants
    except AgentmonError as error:
        return Unseen(str(error), error.hint)
    said = {"observe": "run with --observe", "raise_budget": "raise budgets", "approve": "decide on approvals"}
    return tuple(words for key, words in said.items() if getattr(given, key, False))


def credentials() -> Seen[tuple[Own, ...]]:
    if not paths.CREDENTIALS.is_dir():
        return ()
    return tuple(own(file) for file in sorted(paths.CREDENTIALS.iterdir()) if file.is_file())


def code() -> Seen[tuple[Own, ...]]:
    """The interpreter, the packages and every directory above them: whoever writes one of these is root."""
    here = Path(__file__).resolve()
    wanted: dict[Path, None] = {}
    for start in (Path(sys.executable).resolve(), here.parents[2] / "agentmon", here.parents[2] / "netfilter",
                  here.parents[2] / "ebpf", Path(sys.prefix)):  # fmt: skip
        wanted.update(dict.fromkeys([start, *start.parents]))
    return tuple(own(path) for path in wanted if not _sticky(path))


def _sticky(path: Path) -> bool:
    """A directory such as /tmp: everybody writes, nobody replaces what is another's."""
    return bool(path.stat().st_mode & stat.S_ISVTX)


def authority() -> Seen[Authority | None]:
    key = paths.CA_DIR / trust.KEY_FILE
    try:
        if not key.exists():
            return None
        ends = trust.expiry(paths.CA_DIR)
    except PermissionError:
        return Unseen(f"only root may read {key}", "sudo agentmon posture")
    left = ends - datetime.datetime.now(datetime.UTC)
    return Authority(own(key, user="agentmon-proxy"), left.days)


def run_files() -> Seen[tuple[Own, ...]]:
    """The control socket and the directories of state below /run/agentmon that are not for everybody."""
    names = (paths.CONTROL_SOCKET, paths.STATE, paths.LOCK)
    try:
        return tuple(own(path) for path in names if path.exists() and path.name != "daemon.lock")
    except PermissionError:
        return Unseen(f"{paths.RUN} is closed to this user", "sudo agentmon posture")


def ledger_files() -> Seen[tuple[Own, ...]]:
    directory = paths.LEDGER.parent
    if not directory.exists():
        return ()
    return (own(directory, user="agentmon-ledger"), *_ledger_own(directory))


def _ledger_own(directory: Path) -> Iterator[Own]:
    with contextlib.suppress(PermissionError):
        for file in sorted(directory.glob("ledger.db*")):
            with contextlib.suppress(FileNotFoundError):  # a log that was checkpointed away
                found = own(file, user="agentmon-ledger")
                yield Own(found.path, found.uid, found.gid, found.mode & 0o007, "", found.wanted_uid)


def ledger() -> Seen[Ledger | None]:
    """Every check of `ledger check`, where the file is not too large for a report."""
    path = paths.LEDGER
    try:
        if not path.exists():
            return None
        if path.stat().st_size > _LEDGER_BYTES:
            return Unseen(f"{path} has {path.stat().st_size >> 20} MiB", "sudo agentmon ledger check takes the time")
        with reader.Reader(str(path)) as read:
            problems = [f"{f.what}: {p}" for f in read.findings() for p in f.problems]
    except PermissionError:
        return Unseen(f"only root may read {path}", "sudo agentmon posture")
    except SchemaTooNew as error:
        return Unseen(error.message, "a daemon that starts brings an older one up to date; look again then")
    except AgentmonError as error:
        return Ledger(reader.sqlite_version(), (str(error),))
    return Ledger(reader.sqlite_version(), tuple(problems))


def disk() -> Seen[Disk]:
    """Of the file system that ledger and events are on."""
    path = next(p for p in (paths.LIB, *paths.LIB.parents) if p.exists())
    status = os.statvfs(path)
    return Disk(str(path), status.f_bavail * status.f_frsize, bool(status.f_flag & os.ST_RDONLY))


def clock() -> Seen[bool]:
    """adjtimex(2) with nothing to change; its struct timex has 208 bytes on every 64-bit kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(256))
    if state < 0:
        return Unseen(f"adjtimex: {os.strerror(ctypes.get_errno())}")
    return bool(state != _TIME_ERROR)
