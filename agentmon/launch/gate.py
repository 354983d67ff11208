"""The forked child between spawner and bwrap: everything is prepared, then it waits at the gate and executes.

The leaf cgroup is frozen while the child is moved into it, so the move comes last and is the parent's: the child
reports that it is ready and blocks; the parent writes its pid to cgroup.procs and opens the gate. The freezer holds
the child in that read until the daemon thaws the bottle.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterable

from agentmon.errors import AgentmonError, BadInput
from agentmon.launch import host_sockets, messages
from agentmon.launch.argv import BWRAP, HostLayout, bindable, bwrap_options, inner_command, shown_paths
from agentmon.launch.seccomp import filter_bytes
from agentmon.launch.spec import LaunchSpec
from agentmon.launch.stdio import Stdio
from agentmon.launch.syscalls import enter_netns, memory_file

EXIT_LAUNCHER = 125


def run_child(spec: LaunchSpec, layout: HostLayout, stdio: Stdio, status_w: int, report_w: int, gate_r: int) -> None:
    """Become the job. Never returns; what fails before the gate is reported, what fails after it goes to stderr.

    :param report_w: gets an empty packet when ready, or one messages.Error.
    """
    try:
        argv = _prepare(spec, layout, stdio, status_w, (report_w, gate_r))
    except AgentmonError as e:
        _report(report_w, messages.Error(kind=e.kind, message=e.message, hint=e.hint))
    except OSError as e:
        _report(report_w, messages.Error(kind="HostLacks", message=f'cannot launch in bottle "{spec.bottle}": {e}'))
    except Exception as e:  # noqa: BLE001 - the last frame of a forked process: what is not reported here is lost
        _report(report_w, messages.Error(kind="AgentmonError", message=f"the launcher failed: {e!r}"))
    os.write(report_w, b"\n")
    if os.read(gate_r, 1) == b"":  # the spawner died before it had moved us: nothing may run
        os._exit(EXIT_LAUNCHER)
    os.execve(BWRAP, argv, {})


def _report(report_w: int, error: messages.Error) -> None:
    os.write(report_w, messages.encode(error))
    os._exit(EXIT_LAUNCHER)


def _prepare(spec: LaunchSpec, layout: HostLayout, stdio: Stdio, status_w: int, keep: tuple[int, int]) -> list[str]:
    os.setsid()
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # the daemon's and the spawner's is another
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # Python ignores some, a shell's & others: what is ignored stays so
    for target, fd in enumerate(stdio.inner):
        os.dup2(fd, target)
    _close_all_but({status_w, *keep})
    os.umask(spec.umask)
    for name, value in spec.rlimits.items():
        _limit(name, value)
    shown = _shown(spec)
    home = os.open(spec.home_source, os.O_PATH | os.O_CLOEXEC)
    covered = host_sockets.covered({spec.home: home, **shown}, spec.unix)
    os.close(home)
    data = (
        shown
        | host_sockets.given(spec.unix)
        | _host_files(layout)
        | {path: memory_file("etc", text.encode()) for path, text in spec.files.items()}
    )
    seccomp = memory_file("seccomp", filter_bytes(spec.io_uring))
    options = bwrap_options(spec, layout, data, seccomp, status_w, covered)
    args = memory_file("args", b"".join(os.fsencode(word) + b"\0" for word in options))
    for fd in (*data.values(), seccomp, args, status_w):
        os.set_inheritable(fd, True)
    os.chdir("/")
    enter_netns(spec.netns)
    return [BWRAP, "--args", str(args), "--", *inner_command(spec)]


def _shown(spec: LaunchSpec) -> dict[str, int]:
    """An O_PATH descriptor for each path that the bottle sees, opened as the user who asked: a directory closed to
    them must not become visible because root mounts it."""
    paths = shown_paths(spec)
    if spec.owner != 0:
        groups = os.getgroups()
        os.setgroups(spec.groups)
        os.setegid(spec.gid)
        os.seteuid(spec.uid)
    try:
        return {path: _open_path(path) for path in paths}
    finally:
        if spec.owner != 0:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def _open_path(path: str) -> int:
    """An earlier job may have left a symbolic link in place of a directory: where it leads must be showable too."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as e:
        raise BadInput(
            f'"{path}" cannot be shown to the bottle: {e.strerror}', "check --ro, --rw and where you are"
        ) from e
    real = os.readlink(f"/proc/self/fd/{fd}")
    if not bindable(real):
        os.close(fd)
        raise BadInput(f'"{path}" leads to {real}, which is private inside', "name the directory itself, not a link")
    return fd


def _host_files(layout: HostLayout) -> dict[str, int]:
    data = {}
    for path in layout.files:
        with contextlib.suppress(FileNotFoundError):  # uninstalled since the spawner looked
            data[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return data


def _close_all_but(keep: Iterable[int]) -> None:
    """Above the standard streams. A job at the gate may wait for long: it must not hold the spawner's sockets open."""
    low = 3
    for fd in sorted(keep):
        if fd > low:  # closerange(0, 0) would close everything
            os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _limit(name: str, value: int) -> None:
    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        raise BadInput(f'"{name}" is no resource limit of this host', "see RLIMIT_* in setrlimit(2)")
    resource.setrlimit(number, (value, value))
