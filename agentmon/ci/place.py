"""A namespace and a cgroup that a job's steps enter, where its runner lives in the host's own namespace. Root.

A process that sleeps keeps both, so that they can be attached to before the first step comes. A step comes in by
util-linux: its cgroup, nsenter(1), a mount namespace in which names are asked of agentmon, setpriv(1), the command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from agentmon import paths
from agentmon.addresses import Pool
from agentmon.ci.session import Process
from agentmon.daemon.cgroups import find_v2
from agentmon.errors import HostLacks

_HOLDER = 'echo $$ >"$1/cgroup.procs" && exec unshare --net -- sh -c "echo ready && exec sleep infinity"'
# Sockets by which libc would have the host look names up, outside of every rule.
_ASKING = "/run/systemd/resolve/io.systemd.Resolve /run/nscd/socket /var/run/nscd/socket"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # of what runs as root here, whatever the caller's is
_INSIDE = f"""conf=$1 user=$2 group=$3 path=$4; shift 4
mount --bind "$conf" "$(readlink -f /etc/resolv.conf)" || exit 125
for socket in {_ASKING}; do
    if [ -S "$socket" ]; then mount --bind /dev/null "$socket" || exit 125; fi
done
if [ "$user" = 0 ]; then PATH=$path; exec "$@"; fi
exec setpriv --reuid "$user" --regid "$group" --init-groups -- env PATH="$path" "$@"
"""
_READY_S = 10.0
_GONE_S = 5.0


def make(name: str) -> tuple[Process, Path]:
    """What holds it, and its cgroup.

    :raises HostLacks: with what the kernel or a program said.
    """
    cgroup = find_v2() / f"agentmon-ci-{name}"
    try:
        cgroup.mkdir(exist_ok=True)
        process = subprocess.Popen(
            ["sh", "-c", _HOLDER, "sh", str(cgroup)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd="/", start_new_session=True,
        )  # fmt: skip
    except OSError as e:
        raise HostLacks(f"no place for the job's steps can be made: {e}", "run this as root, on the host") from e
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _READY_S)
    started = process_of(process.pid)
    if not ready or process.stdout.readline() != b"ready\n" or started is None:
        process.kill()
        said = process.communicate()[1].decode(errors="replace").strip()
        with contextlib.suppress(OSError):
            cgroup.rmdir()
        raise HostLacks(
            f"no place for the job's steps can be made: {said}", "unshare(1) of util-linux does it, as root"
        )
    process.stdout.close()
    if process.stderr is not None:
        process.stderr.close()
    return started, cgroup


def remove(holder: Process | None, cgroup: str) -> int:
    """End what is in it, what steps left running included; how many these were.

    :raises HostLacks: something there does not end."""
    if not cgroup:
        return 0
    path = Path(cgroup)
    try:
        left = [pid for pid in _processes(path) if holder is None or pid != holder.pid]
        (path / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + _GONE_S
        while _processes(path) and time.monotonic() < deadline:
            select.select([], [], [], 0.02)
        path.rmdir()
    except FileNotFoundError:
        return 0
    except OSError as e:
        raise HostLacks(
            f"{cgroup} cannot be removed: {e.strerror}", f"see {cgroup}/cgroup.procs; then stop it again"
        ) from e
    return len(left)


def _processes(cgroup: Path) -> list[int]:
    """Those that still run: a zombie is in its cgroup until its parent waits for it, and hinders nobody."""
    found = [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    return [pid for pid in found if process_of(pid) is not None]


def process_of(pid: int) -> Process | None:
    """Who has this number now; None: nobody, or one that has ended and is not waited for yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else Process(pid, int(fields[19]))


def end(process: Process) -> None:
    """SIGTERM, to this process and to none that has its number since; waits for its end, not for ever."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if process_of(process.pid) == process:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGTERM)
            select.select([fd], [], [], _GONE_S)
    finally:
        os.close(fd)


def argv(holder: Process, user: tuple[int, int], path: str, command: Sequence[str]) -> list[str]:
    """The command that enters and becomes `command`, as (uid, gid) and with this PATH; itself it needs PATH's."""
    inside = ["sh", "-c", _INSIDE, "sh", str(_resolv()), str(user[0]), str(user[1]), path, *command]
    return ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--", "unshare", "--mount", "--propagation", "slave", "--",
            *inside]  # fmt: skip


def enter(cgroup: str) -> None:
    """This process is in the place's cgroup from now on. :raises OSError: it has gone."""
    (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))


def _resolv() -> Path:
    path = paths.CI / "resolv.conf"
    path.write_text("".join(f"nameserver {address}\n" for address in Pool().resolver.all()))
    path.chmod(0o644)
    return path


def inode_of(pid: int | str) -> int:
    """Of a process's network namespace. :raises OSError: it has ended, or may not be looked at."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino
