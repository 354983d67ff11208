"""What can go wrong at the kernel edge: few types, each with what to do in `hint`."""

from __future__ import annotations

import errno
import os


class BpfError(OSError):
    """The kernel refused an operation: errno is kept, `operation` says what was asked."""

    def __init__(self, number: int, operation: str, hint: str = "") -> None:
        super().__init__(number, f"{operation}: {os.strerror(number) if number else 'failed'}")
        self.operation = operation
        self.hint = hint or _HINTS.get(number, "")


class VerifierRefused(BpfError):
    """The kernel did not accept a program. `log` is the whole text of the verifier and compiler."""

    def __init__(self, program: str, number: int, log: str) -> None:
        last = last_useful_line(log)
        super().__init__(number, f"loading the BPF program {program}" + (f" ({last})" if last else ""))
        self.program = program
        self.log = log
        self.hint = self.hint or "report the kernel version together with the log of this error"


class MapFull(BpfError):
    """A deciding map has no room. Nothing was changed; what does not fit stays refused."""

    def __init__(self, table: str, limit: int) -> None:
        super().__init__(
            errno.E2BIG,
            f"BPF map {table} holds {limit} entries and has no room for more",
            "remove bottles that are not needed, or write networks and port ranges instead of single addresses",
        )
        self.table = table
        self.limit = limit


class Missing(Exception):
    """The host lacks something that cannot be replaced: `what` is missing, `hint` says how to get it."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class Unencodable(ValueError):
    """A policy that the maps cannot express; the message names the address and the limit."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Misplaced(ValueError):
    """A cgroup to which the programs cannot be attached."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.hint = (
            "attach to the cgroup of the container or runner itself: /proc/PID/cgroup of a process in it names it"
        )


class UnknownSlot(LookupError):
    """No bottle with this slot is known to the programs."""

    def __init__(self, slot: int) -> None:
        super().__init__(f"slot {slot}: no such bottle in the BPF maps; apply() a policy to it first")
        self.slot = slot


_HINTS = {
    errno.EPERM: "run as root (CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN are needed); check kernel lockdown",
    errno.EINVAL: "the kernel is older than 6.1, or was built without CONFIG_CGROUP_BPF",
    errno.ENOSYS: "the kernel was built without CONFIG_BPF_SYSCALL",
    errno.ENOMEM: "the host has no memory left for BPF maps",
}

_NOISE = ("processed ", "HINT:", "bpf: Failed to load program", "Traceback", "  File ", "Exception:")


def last_useful_line(log: str) -> str:
    """The verifier's own verdict: the last line that is neither a statistic nor a stack trace."""
    for line in reversed(log.splitlines()):
        text = line.strip()
        if text and not any(text.startswith(n.strip()) for n in _NOISE):
            return text
    return ""
