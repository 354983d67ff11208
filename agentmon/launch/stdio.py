"""A job's standard streams: a pty or three pipes, made here. Never an inherited descriptor, never a socket."""

from __future__ import annotations

import os
import termios
from dataclasses import dataclass

from agentmon.launch.spec import LaunchSpec


@dataclass(frozen=True, slots=True)
class Stdio:
    """Both ends. `inner` becomes 0, 1, 2 of the job; `outer` goes to the command line: (master,), or
    (stdin_w, stdout_r, stderr_r)."""

    inner: tuple[int, int, int]
    outer: tuple[int, ...]

    def close_inner(self) -> None:
        for fd in set(self.inner):
            os.close(fd)

    def close_outer(self) -> None:
        for fd in self.outer:
            os.close(fd)


def open_stdio(spec: LaunchSpec) -> Stdio:
    """The job's user owns its ends: `> /dev/stdout` opens them anew and is checked like any file."""
    if spec.tty:
        master, slave = os.openpty()
        termios.tcsetwinsize(slave, (spec.rows, spec.cols))
        os.fchown(slave, spec.uid, -1)
        os.fchmod(slave, 0o600)
        return Stdio((slave, slave, slave), (master,))
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    for fd in (in_r, out_w, err_w):
        os.fchown(fd, spec.uid, spec.gid)
    return Stdio((in_r, out_w, err_w), (in_w, out_r, err_r))
