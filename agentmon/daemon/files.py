"""Files that bottles see: the private HOME and the directories around it. All under /run/agentmon; needs root."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from agentmon import paths
from agentmon.control.state import Job

LEDGER_USER = "agentmon-ledger"


def make_directories() -> None:
    """/run and /var/lib directories with their modes; idempotent."""
    for path, mode in (
        (paths.RUN, 0o755), (paths.SVC, 0o755), (paths.STATE, 0o700), (paths.HOMES, 0o711), (paths.TRUST, 0o755),
        (paths.RESTORED, 0o700), (paths.LIB, 0o755), (paths.EVENTS.parent, 0o750), (paths.SAVED, 0o700),
    ):  # fmt: skip
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
    entry = pwd.getpwnam(LEDGER_USER)
    paths.LEDGER.parent.mkdir(exist_ok=True)
    os.chown(paths.LEDGER.parent, entry.pw_uid, entry.pw_gid)
    paths.LEDGER.parent.chmod(0o700)


def make_home(slot: int, job: Job) -> Path:
    """An empty directory of the job's user; what was left in it by an earlier bottle of this slot is gone."""
    home = paths.HOMES / str(slot)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700)
    os.chown(home, job.uid, job.gid)
    return home


def remove(slot: int) -> None:
    shutil.rmtree(paths.HOMES / str(slot), ignore_errors=True)
    shutil.rmtree(paths.RESTORED / str(slot), ignore_errors=True)
    (paths.STATE / f"{slot}.json").unlink(missing_ok=True)


def remove_all() -> None:
    """What a daemon leaves under /run when it ends with no bottle: nothing."""
    shutil.rmtree(paths.RUN, ignore_errors=True)
