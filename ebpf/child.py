"""Runs the loader as a child process and turns its answer into the typed errors of this package."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from ebpf.errors import BpfError, Missing, VerifierRefused
from ebpf.loader import ANSWER_FD, Request

TIMEOUT_S = 60
_PACKAGES = str(Path(__file__).resolve().parent.parent)


class Loaded(NamedTuple):
    """Groups of optional programs that this host does not take, with the reason; and the whole text of compiler and
    verifier, empty where both were content."""

    left_out: dict[str, str]
    log: str


def run(request: Request, timeout_s: int | None = None) -> Loaded:
    """Load, attach and pin in a child; returns when all programs are in force.

    :raises VerifierRefused: clang or the verifier said no; nothing was attached.
    :raises BpfError: an attachment was refused, or the child died or hung.
    :raises Missing: bcc.
    """
    answer = os.memfd_create("agentmon-bpf-answer")
    log = os.memfd_create("agentmon-bpf-log")
    try:
        code = _spawn(request, answer, log, TIMEOUT_S if timeout_s is None else timeout_s)
        text = _content(log).decode("utf-8", "replace")
        return Loaded(judge(_content(answer), code, text), text)
    finally:
        os.close(answer)
        os.close(log)


def _spawn(request: Request, answer: int, log: int, timeout_s: int) -> int:
    argv = [sys.executable, "-P", "-W", "ignore", "-m", "ebpf.loader", request.to_json()]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": _PACKAGES, "LC_ALL": "C.UTF-8"}
    # Above the numbers that are being assigned, so that no dup2 overwrites what a later one needs.
    high_answer, high_log = (_above(fd) for fd in (answer, log))
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, high_log, 1),
        (os.POSIX_SPAWN_DUP2, high_log, 2),
        (os.POSIX_SPAWN_DUP2, high_answer, ANSWER_FD),
    ]
    try:
        pid = os.posix_spawn(sys.executable, argv, environment, file_actions=actions)
    finally:
        os.close(high_answer)
        os.close(high_log)
    watch = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(watch)


def _above(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def judge(answer: bytes, code: int, log: str) -> dict[str, str]:
    """Turn what the child left into what it left out, or a typed error. Pure."""
    if not answer:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        last = log.strip().splitlines()[-1] if log.strip() else "it printed nothing"
        raise BpfError(0, f"the BPF loader {ended}: {last}", "run it again; if it repeats, report this text")
    result = json.loads(answer)
    match result.get("error"):
        case None:
            return dict(result.get("left_out", {}))
        case "missing":
            raise Missing(result["what"], result["hint"])
        case "refused":
            raise VerifierRefused(result["program"], result["errno"], log)
        case _:
            raise BpfError(result["errno"], result["operation"], result["hint"])
