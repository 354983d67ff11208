"""Whose an event is: the names that CI systems give to steps, and from processes and times to a step. Pure.

A step is named by the environment that its processes were started with; a child without such a variable has its
parent's. An event belongs to the step of its process, else of that one's parent, else to the step that began last.
All of this the job itself could write: it is a help for readers, no evidence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from agentmon.render.words import printable

# The first that is set wins: one's own mark, then a step, then what is the nearest to one.
VARIABLES = ("AGENTMON_STEP", "GITHUB_STEP", "GITHUB_ACTION", "STAGE_NAME", "BUILDKITE_LABEL", "CI_JOB_NAME",
             "CIRCLE_JOB")  # fmt: skip
UNNAMED = "-"
MAX_NAME = 80  # characters


class Seen(msgspec.Struct, frozen=True):
    """A process of a step. `start_ns` is CLOCK_REALTIME, up to a clock tick early."""

    pid: int
    start_ns: int
    step: str


def step_of(environ: bytes) -> str:
    """The step that a proc_pid_environ(5) names; "" for none."""
    found = dict(part.partition(b"=")[::2] for part in reversed(environ.split(b"\0")) if b"=" in part)
    for name in VARIABLES:
        if value := found.get(name.encode(), b"").strip():
            return printable(value.decode("utf-8", "replace"))[:MAX_NAME]
    return ""


class Steps:
    """Answers of() for the processes that were seen."""

    def __init__(self, seen: Iterable[Seen]) -> None:
        self._by_pid: dict[int, list[tuple[int, str]]] = {}
        began: dict[str, int] = {}
        self._runs: list[tuple[int, str]] = []  # whenever a step's processes begin after another step's
        for one in sorted(seen, key=lambda s: s.start_ns):
            self._by_pid.setdefault(one.pid, []).append((one.start_ns, one.step))
            began.setdefault(one.step, one.start_ns)
            if not self._runs or self._runs[-1][1] != one.step:
                self._runs.append((one.start_ns, one.step))
        self.names = tuple(began)  # in the order in which they began

    def of(self, event: Mapping[str, Any]) -> str:
        """The step of one of the contract's events; UNNAMED before the first one."""
        at = ns(str(event.get("ts", "")))
        for key in ("tgid", "pid", "ppid"):
            if step := _last(self._by_pid.get(int(event.get(key) or 0), ()), at):
                return step
        return _last(self._runs, at) or UNNAMED


def _last(began: Iterable[tuple[int, str]], at: int) -> str:
    """Of (time, step) in order, the last one that began by `at`."""
    known = list(began)
    place = bisect_right(known, at, key=lambda one: one[0])
    return known[place - 1][1] if place else ""


def ns(rfc3339: str) -> int:
    """Nanoseconds of an event's `ts`; 0 for what is none."""
    try:
        whole = int(datetime.fromisoformat(rfc3339[:19] + "+00:00").timestamp())
    except ValueError:
        return 0
    fraction = rfc3339[20:].rstrip("Z")
    return whole * 1_000_000_000 + (int(fraction.ljust(9, "0")[:9]) if fraction.isdecimal() else 0)
