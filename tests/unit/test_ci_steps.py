"""Whose an event is: what environments name, processes, parents and times; a watch over processes of this test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agentmon.ci.execs import Exec
from agentmon.ci.steps import UNNAMED, Seen, Steps, ns, step_of
from agentmon.ci.watch import LOOKS, Watch, main, read


@pytest.mark.parametrize(
    ("environ", "step"),
    [
        (b"PATH=/bin\0GITHUB_ACTION=__run_2\0CI_JOB_NAME=job\0", "__run_2"),
        (b"CI_JOB_NAME=unit tests\0", "unit tests"),
        (b"GITHUB_ACTION=build\0AGENTMON_STEP=mine\0", "mine"),
        (b"AGENTMON_STEP= \0STAGE_NAME=Deploy\0", "Deploy"),
        (b"XGITHUB_ACTION=no\0", ""),
        (b"", ""),
        (b"GITHUB_ACTION=a\x1b[31m\xff\0", "a\\x1b[31m\ufffd"),
        (b"GITHUB_ACTION=" + b"x" * 200, "x" * 80),
        (b"GITHUB_ACTION=first\0GITHUB_ACTION=second\0", "first"),  # as getenv(3)
    ],
)
def test_what_an_environment_names(environ: bytes, step: str) -> None:
    assert step_of(environ) == step


def at(second: int, **process: int) -> dict[str, Any]:
    return {"ts": f"2026-01-02T03:04:{second:02}.500000000Z", **process}


def test_an_event_is_its_processs_its_parents_or_the_step_that_began_last() -> None:
    began = ns("2026-01-02T03:04:00Z")
    second = 1_000_000_000
    steps = Steps(
        [Seen(7, began + 20 * second, "again"), Seen(5, began + 10 * second, "test"), Seen(7, began, "build")]
    )
    assert steps.names == ("build", "test", "again")
    assert steps.of(at(12, tgid=7)) == "build"  # a process of an earlier step that still runs
    assert steps.of(at(22, tgid=7)) == "again"  # the number belongs to another process by then
    assert steps.of(at(12, tgid=99, ppid=7)) == "build"
    assert steps.of(at(12, tgid=99)) == "test" == steps.of(at(12))
    assert steps.of({**at(0), "ts": "2026-01-02T03:03:59.000000000Z", "tgid": 7}) == UNNAMED == steps.of({"ts": "?"})
    assert Steps([]).of(at(1, tgid=7)) == UNNAMED


def test_times_keep_their_nanoseconds() -> None:
    assert ns("1970-01-01T00:00:01.000000002Z") == 1_000_000_002 and ns("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert ns("1970-01-01T00:00:01Z") == 1_000_000_000 and ns("no time") == 0


def test_processes_are_told_once_and_children_without_a_name_have_their_parents() -> None:
    """Real processes; a namespace of none has none."""
    inode = os.stat("/proc/self/ns/net").st_ino
    script = "import os, subprocess; subprocess.run(['env', '-i', 'sleep', '60'])"
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env={"GITHUB_ACTION": "a step", "PATH": os.environ["PATH"]}
    )
    try:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        deadline = time.monotonic() + 10
        while not children.read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.01)
        child = int(children.read_text())
        watch, found = Watch(inode), []
        for _ in range(LOOKS + 1):
            found += [seen for seen in watch.look() if seen.pid in {parent.pid, child}]
        assert [(seen.pid, seen.step) for seen in found] == [(parent.pid, "a step"), (child, "a step")]
        assert all(abs(seen.start_ns - time.time_ns()) < 60_000_000_000 for seen in found)
        assert not watch.alone
        elsewhere = Watch(1)
        assert elsewhere.look() == [] and elsewhere.alone
    finally:
        if "child" in locals():
            os.kill(child, 9)
        parent.kill()
        parent.wait()


def test_what_begins_is_told_at_once_and_a_program_of_another_step_too() -> None:
    """A process is of the step that its program began with; what runs as before is not told again."""
    watch = Watch(os.stat("/proc/self/ns/net").st_ino)
    job = subprocess.Popen(["sleep", "60"], env={"CI_JOB_NAME": "j", "PATH": os.environ["PATH"]})
    try:
        exe = Path(f"/proc/{job.pid}/cmdline")
        deadline = time.monotonic() + 10
        while not exe.read_bytes().startswith(b"sleep") and time.monotonic() < deadline:
            time.sleep(0.01)
        first = watch.began(Exec(job.pid, 5))
        assert first is not None and (first.pid, first.step) == (job.pid, "j") and first.start_ns != 5
        assert watch.began(Exec(job.pid, 6)) is None and job.pid not in {seen.pid for seen in watch.look()}
        watch._steps[job.pid] = "another"  # as if its program before had been of another step
        assert watch.began(Exec(job.pid, 7)) == Seen(job.pid, 7, "j")
        assert watch.began(Exec(1 << 30, 8)) is None
    finally:
        job.kill()
        job.wait()


def test_a_watch_writes_what_it_reads_until_it_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "steps"
    inode = os.stat("/proc/self/ns/net").st_ino
    job = subprocess.Popen(["sleep", "60"], env={"CI_JOB_NAME": "j", "PATH": os.environ["PATH"]})
    watch = subprocess.Popen([sys.executable, "-m", "agentmon.ci.watch", str(inode), str(file)])
    try:
        deadline = time.monotonic() + 20
        while job.pid not in {seen.pid for seen in read(file)} and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [seen.step for seen in read(file) if seen.pid == job.pid] == ["j"]
        watch.terminate()
        assert watch.wait(10) == -signal.SIGTERM  # nothing to be put in order
    finally:
        for process in (job, watch):
            process.kill()
            process.wait()
    file.write_bytes(file.read_bytes() + b'{"pid": 1, "sta')  # it was killed while it wrote
    assert read(file) and read(tmp_path / "none") == []


def test_nobody_to_watch_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmon.ci.watch._ALONE_S", 0.0)
    assert main(["1", str(tmp_path / "steps")]) == 0
