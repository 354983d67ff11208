"""The process connector of this kernel: a program that begins is told, with its time; so short steps are seen."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentmon.ci import watch
from agentmon.ci.execs import Exec, Execs
from tests.support.live import COMMAND, ROOT, until

pytestmark = (
    pytest.mark.e2e
)  # the connector is of the first network namespace only: on the host, not in a lane of its own


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


def test_steps_that_are_over_before_the_next_look_have_their_names(tmp_path: Path) -> None:
    """Also where a program of no step becomes one of a step, as `ci step` does."""
    file = tmp_path / "steps"
    own = " ".join(COMMAND)
    short = "for n in 1 2 3; do GITHUB_ACTION=step$n sleep 0.03; done"
    script = f"read x; {short}; {own} ci step 'by hand' -- sleep 0.03; read x"
    runner = subprocess.Popen(["unshare", "-n", "sh", "-c", script], cwd=ROOT, stdin=subprocess.PIPE, text=True)
    looking: subprocess.Popen[bytes] | None = None
    try:
        inode = Path(f"/proc/{runner.pid}/ns/net")
        host = Path("/proc/self/ns/net").stat().st_ino
        until(lambda: inode.stat().st_ino != host)
        looking = subprocess.Popen([sys.executable, "-m", "agentmon.ci.watch", str(inode.stat().st_ino), str(file)])
        until(file.exists)
        assert runner.stdin is not None
        runner.stdin.write("go\n")
        runner.stdin.flush()
        until(lambda: {seen.step for seen in watch.read(file)} >= {"step1", "step2", "step3", "by hand"})
    finally:
        for process in (runner, looking):
            if process is not None:
                process.kill()
                process.communicate()
