"""The process connector of this kernel: a program that begins is told, with its time."""

from __future__ import annotations

import select
import subprocess
import time

import pytest

from agentmon.ci.execs import Exec, Execs

pytestmark = pytest.mark.root


def test_the_kernel_tells_of_programs_that_begin() -> None:
    try:
        execs = Execs()
    except OSError as error:
        pytest.skip(f"this kernel, or this container, has no process connector: {error}")
    try:
        before = time.time_ns()
        job = subprocess.Popen(["true"])
        found: list[Exec] = []
        deadline = time.monotonic() + 10
        while job.pid not in {one.pid for one in found} and time.monotonic() < deadline:
            select.select([execs], [], [], 0.1)
            found += execs.read()
        assert job.wait(10) == 0
        at = next(one.at_ns for one in found if one.pid == job.pid)
        assert before - 10_000_000 < at < time.time_ns() + 10_000_000 and execs.read() is not None
    finally:
        execs.close()
