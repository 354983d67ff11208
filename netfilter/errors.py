"""What can go wrong: the kernel refused a change, or the host lacks something. Branch on type or errno."""

from __future__ import annotations

import errno as _errno


class KernelRefused(OSError):
    """The kernel refused `operation`; nothing of its transaction was applied. `errno` is the kernel's."""

    def __init__(self, errno: int, operation: str, detail: str = "") -> None:
        words = detail or _errno.errorcode.get(errno, str(errno))
        super().__init__(errno, f"{operation}: {words}")
        self.operation = operation
        self.detail = detail


class TooMuch(OSError):
    """Somebody made more of something than is looked at, or put back. errno is E2BIG."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(_errno.E2BIG, f"{what}: {detail}")


class Missing(Exception):
    """A kernel feature or a package is not there; `remedy` says how to get it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.what = what
        self.remedy = remedy
