"""`agentmon daemon`: checks the host, takes the lock, runs one Daemon, and says in one sentence what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import resource
import sys
from pathlib import Path

from agentmon.daemon import files, lock, specs
from agentmon.daemon.cgroups import Tree
from agentmon.errors import HostLacks
from agentmon.policy import settings as settings_file
from agentmon.policy import unbuilt

_FILES_ASIDE, _FILES_A_BOTTLE = 1024, 8  # the first 1024 are left to libnftables
_FEW_BOTTLES = 128
_FILES = 1 << 16  # descriptors: a bottle takes six, an ordinary limit is 1024
_NICE = -10  # of daemon and services: jobs that burn every processor must not hold up what cuts them; theirs is 0
_SWITCH_S = 0.0005  # how long a thread that decodes events may keep the loop, which cuts, from running (Python: 5 ms)


def main(settings_path: Path | None = None, *, until_idle: bool = False) -> None:
    """Run until a signal or idleness.

    :raises AgentmonError: the host lacks something, another daemon runs, or the settings are wrong.
    """
    if os.geteuid() != 0:
        raise HostLacks("the daemon changes nftables, BPF and cgroups: it must run as root", "sudo agentmon daemon")
    settings = settings_file.load(settings_path)
    unbuilt.refuse_settings(settings)
    _check_users()
    with contextlib.suppress(PermissionError):  # in a container without CAP_SYS_NICE
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    held = lock.take()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))
    if notice := too_few_files(hard):
        print(f"warning: {notice}", file=sys.stderr)
    files.make_directories()
    os.umask(0o022)
    from agentmon.daemon.app import Daemon
    from ebpf.programs import CgroupPrograms
    from netfilter.heal import HealingNetfilter

    async def body() -> None:
        bpf = CgroupPrograms(log_allowed=settings.log == "full")
        daemon = Daemon(settings, nft=HealingNetfilter(), bpf=bpf, tree=Tree(), until_idle=until_idle)
        await daemon.run()

    sys.setswitchinterval(_SWITCH_S)
    try:
        asyncio.run(body())
    finally:
        os.close(held)


def too_few_files(hard: int) -> str:
    """What to say of a hard limit on open files that leaves room for few bottles; "" for a wide one."""
    room = max(0, (hard - _FILES_ASIDE) // _FILES_A_BOTTLE)
    if hard == resource.RLIM_INFINITY or room >= _FEW_BOTTLES:
        return ""
    return f"a limit of {hard} open files leaves room for {room} bottles: raise it (LimitNOFILE= in the systemd unit)"


def _check_users() -> None:
    for user in (*specs.USERS.values(), "agentmon-job"):
        try:
            pwd.getpwnam(user)
        except KeyError:
            raise HostLacks(f"the system user {user} does not exist", "make setup creates it") from None
    for group in ("agentmon", "agentmon-svc"):
        try:
            grp.getgrnam(group)
        except KeyError:
            raise HostLacks(f"the system group {group} does not exist", "make setup creates it") from None
