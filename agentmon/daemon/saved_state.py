"""What is known of a saved bottle beside its files, as one JSON text; and what has to be as it was for it to go on."""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentmon.control.state import Bottle
from agentmon.daemon import persist
from agentmon.errors import BadInput
from agentmon.events import now_ns
from agentmon.launch.argv import bindable

_VERSION = 1
_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    """:param parts: bytes of each archive. :param manifests: digest by path, "" for one that was not there."""

    bottle: Bottle
    user: str
    saved_ns: int  # CLOCK_REALTIME
    parts: Mapping[str, int]
    processes: int
    manifests: Mapping[str, str]

    def describe(self) -> str:
        sizes = ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in self.parts.items())
        return f"saved: {sizes}; {self.processes} processes are stopped"


def make(bottle: Bottle, parts: Mapping[str, int], processes: int, settings_file: str) -> Saved:
    """:param settings_file: is no manifest, although the policy was made of it too."""
    manifests = {path: digest(path) for path in bottle.policy.sources if path != settings_file}
    return Saved(bottle, _user(bottle.job.uid), now_ns(), dict(parts), processes, manifests)


def encode(saved: Saved) -> bytes:
    plain: dict[str, Any] = {
        "version": _VERSION, "user": saved.user, "saved_ns": saved.saved_ns, "parts": dict(saved.parts),
        "processes": saved.processes, "manifests": dict(saved.manifests),
    }  # fmt: skip
    return msgspec.json.encode({**plain, "bottle": msgspec.Raw(persist.encode(saved.bottle))})


def decode(data: bytes) -> Saved:
    """:raises BadInput: not what this version writes."""
    try:
        raw: dict[str, Any] = msgspec.json.decode(data)
        if raw["version"] != _VERSION:
            raise BadInput(
                f"version {raw['version']}, this agentmon reads {_VERSION}", "use the agentmon that wrote it"
            )
        bottle = persist.decode(msgspec.json.encode(raw["bottle"]))
        return Saved(
            bottle, str(raw["user"]), int(raw["saved_ns"]), {str(k): int(v) for k, v in raw["parts"].items()},
            int(raw["processes"]), {str(k): str(v) for k, v in raw["manifests"].items()},
        )  # fmt: skip
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise BadInput(f"not the state of a bottle: {e!r}") from e


def check(saved: Saved, files: Path) -> None:
    """That everything the bottle needs is there, and its user is who he was. What was saved stays whatever is missing.

    :param files: the directory of its archives. :raises BadInput: what is missing, and what to do.
    """
    job, name = saved.bottle.job, saved.bottle.name
    kept = f"what was saved of {name} stays: resume it when that is mended, or agentmon kill {name}"
    now = _user(job.uid)
    if now != saved.user:
        whose = f"belongs to {now} now" if now else "is nobody's now"
        raise BadInput(f"uid {job.uid} was user {saved.user} when {name} was frozen, and {whose}", kept)
    for path in (job.cwd, *saved.bottle.policy.ro, *saved.bottle.policy.rw):
        if bindable(path) and not os.path.lexists(path):
            raise BadInput(f"{path} is not there any more, and {name} works in it", kept)
    for part, size in saved.parts.items():
        file = files / f"{part}.tar"
        if not file.is_file() or file.stat().st_size != size:
            raise BadInput(f"{file} is missing or not complete", kept)


def check_manifests(saved: Saved) -> None:
    """:raises BadInput: one is not what it was when the bottle was frozen."""
    name = saved.bottle.name
    for path, before in saved.manifests.items():
        if digest(path) != before:
            hint = f"put it back, or as root: agentmon resume {name} --saved-policy, or agentmon kill {name}"
            raise BadInput(f"{path} has changed since {name} was frozen", hint)


def digest(path: str) -> str:
    """SHA-256 of a manifest; "" where there is no such file. The path may be anybody's word: what is not a plain file
    is not even opened (a watchdog starts when it is)."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return ""
        with open(f"/proc/self/fd/{place}", "rb") as file:
            return hashlib.sha256(file.read(_MANIFEST_BYTES)).hexdigest()
    except OSError:
        return ""
    finally:
        os.close(place)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
