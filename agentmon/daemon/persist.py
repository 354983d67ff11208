"""What survives the daemon: one JSON file per bottle under /run/agentmon/state (root, 0600), and the epoch counter.

Written to a temporary name and renamed, so that a reader sees the old file or the new one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from agentmon import paths
from agentmon.control.state import Attached, Bottle, Job, Phase
from agentmon.policy.plain import from_plain, to_plain


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path`; durable against a crash of this process (not of the host: /run is volatile)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def encode(bottle: Bottle) -> bytes:
    data = {f.name: getattr(bottle, f.name) for f in fields(bottle) if f.name != "policy"}
    return msgspec.json.encode({**data, "policy": to_plain(bottle.policy)})


def decode(data: bytes) -> Bottle:
    """:raises msgspec.MsgspecError, KeyError, ValueError: not a state file of this version."""
    raw: dict[str, Any] = msgspec.json.decode(data)
    policy = from_plain(raw.pop("policy"))
    job = msgspec.convert(raw.pop("job"), Job)
    phase = Phase(raw.pop("phase"))
    attached = msgspec.convert(raw.pop("attached", None), Attached | None)
    return Bottle(policy=policy, job=job, phase=phase, attached=attached, **raw)


def save(bottle: Bottle) -> None:
    write_atomic(paths.STATE / f"{bottle.slot}.json", encode(bottle))


def forget(slot: int) -> None:
    (paths.STATE / f"{slot}.json").unlink(missing_ok=True)


def load_all() -> dict[int, Bottle | None]:
    """Every saved bottle; None for a file that cannot be read (its slot is cleaned, not adopted)."""
    out: dict[int, Bottle | None] = {}
    for path in sorted(paths.STATE.glob("*.json")):
        if not path.stem.isdigit():
            continue
        out[int(path.stem)] = None
        with contextlib.suppress(msgspec.MsgspecError, KeyError, ValueError, TypeError, OSError):
            out[int(path.stem)] = decode(path.read_bytes())
    return out


def load_epoch() -> int:
    """The last epoch handed out on this host; 0 on a new one."""
    try:
        return int(paths.EPOCH.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def save_epoch(epoch: int) -> None:
    write_atomic(paths.EPOCH, b"%d\n" % epoch)
