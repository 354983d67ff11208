"""Runs one part of the suite beside another: python -m tests.lane [--apart] COMMAND [ARG...]; the command's status.

What a lane starts stays below it (it is the subreaper of its orphans), so that tests/conftest.py can tell its processes
from those of the lane beside it by AGENTMON_LANE, "<pid> apart" or "<pid> host". `--apart` gives it a network
namespace, /run/netns and bpffs of its own as well; process ids stay the host's, as BPF reports them. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_OF_ITS_OWN = (
    "mount --make-rprivate /",
    "mount -t tmpfs tmpfs /run/netns",
    "mount -t bpf bpf /sys/fs/bpf",
    "ip link set lo up",
    "sysctl -qw net.ipv4.conf.all.forwarding=0 net.ipv4.conf.default.forwarding=0",  # else as the host has them
)


def main(words: list[str]) -> int:
    apart = words[:1] == ["--apart"]
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_SUBREAPER, 1, 0, 0, 0), "become a subreaper")
    if apart:
        Path("/run/netns").mkdir(exist_ok=True)
        _check(libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "leave the host's namespaces")
        for command in _OF_ITS_OWN:
            subprocess.run(command.split(), check=True)
    os.environ["AGENTMON_LANE"] = f"{os.getpid()} {'apart' if apart else 'host'}"
    child = os.posix_spawnp(words[apart], words[apart:], os.environ)
    while True:  # orphans come here to be collected
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) & 0xFF)
