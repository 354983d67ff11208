"""What `ci start` leaves for `ci exec`, `ci stop` and `ci report`: one JSON file a name, root's."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from agentmon import paths
from agentmon.errors import BadInput, Refused

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")


class Process(msgspec.Struct, frozen=True):
    """A process that a session started. `start` is field 22 of proc_pid_stat(5): with it a number that was given to
    another process is not mistaken for it."""

    pid: int
    start: int


class Session(msgspec.Struct, frozen=True):
    """`bottle` is its name too. Times are CLOCK_REALTIME; `stopped_ns` 0: it has not been stopped."""

    bottle: str
    what: str  # what is held, as people say it
    mode: str  # observe | enforce
    inode: int  # of the network namespace
    started_ns: int
    stopped_ns: int = 0
    baseline: str = ""  # absolute path; "": none was given
    watch: Process | None = None
    holder: Process | None = None  # of a place that steps enter; None: what was held was there before
    cgroup: str = ""  # of that place


def file(name: str) -> Path:
    return paths.CI / f"{name}.json"


def steps_file(name: str) -> Path:
    """Where watch.py writes."""
    return paths.CI / f"{name}.steps"


def checked(name: str) -> str:
    """:raises BadInput: it cannot name a session."""
    if not NAME.fullmatch(name):
        raise BadInput(f'--name "{name}" cannot name a CI session', "small letters, digits and -, at most 41")
    return name


def load(name: str) -> Session:
    """:raises BadInput: there is none. :raises Refused: this user may not read it."""
    try:
        return msgspec.json.decode(file(checked(name)).read_bytes(), type=Session)
    except FileNotFoundError:
        raise BadInput(f"no CI session {name!r} was started on this host", "sudo agentmon ci start") from None
    except PermissionError:
        raise Refused(f"you may not read {file(name)}", "use sudo") from None
    except msgspec.MsgspecError as e:
        raise BadInput(f"{file(name)}: {e}", "remove the file, and start again") from None


def save(session: Session) -> None:
    """As a whole or not at all. :raises OSError: it cannot be written."""
    paths.CI.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file(session.bottle).with_suffix(".new")
    new.write_bytes(msgspec.json.encode(session))
    os.replace(new, file(session.bottle))
