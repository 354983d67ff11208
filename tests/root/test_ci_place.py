"""The place that a job's steps enter, without a daemon: its namespace, its cgroup, who a step is there, and its end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.addresses import Pool
from agentmon.ci import place, session, watch
from agentmon.ci.session import Session
from agentmon.errors import HostLacks
from tests.support.live import COMMAND, ROOT, until

pytestmark = pytest.mark.root
NAME = f"test-{os.getpid()}"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session as `ci start` leaves it, but for what holds it."""
    monkeypatch.setenv("AGENTMON_ROOT", str(tmp_path))
    monkeypatch.setattr("agentmon.paths.CI", tmp_path / "var/lib/agentmon/ci")
    holder, cgroup = place.make(NAME)
    try:
        one = Session(NAME, "the place", "observe", place.inode_of(holder.pid), 1, holder=holder, cgroup=str(cgroup))
        session.save(one)
        yield one
    finally:
        place.remove(holder, str(cgroup))


def step(script: str, *by: str, options: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*by, *COMMAND, "ci", "exec", "--name", NAME, *options, "--", "bash", "-ec", script], cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_a_step_is_in_there_as_the_user_who_called_sudo(made: Session, tmp_path: Path) -> None:
    """With that one's PATH, of which nothing is run as root; names are asked of agentmon."""
    theirs = f"{traps(tmp_path)}:/usr/bin:/bin"
    script = "id -u; echo $PATH $HOME $MINE; stat -Lc %i /proc/self/ns/net; cat /proc/self/cgroup; cat /etc/resolv.conf"
    done = step(script, sudo(tmp_path), SUDO_UID="65534", PATH=theirs, MINE="kept", HOME="/root")
    uid, said, inode, *rest = done.stdout.splitlines()
    assert (uid, said, int(inode)) == ("65534", f"{theirs} /nonexistent kept", made.inode), done.stderr
    assert any(line.endswith(f"/agentmon-ci-{NAME}") for line in rest)
    assert rest[-2:] == [f"nameserver {address}" for address in Pool().resolver.all()]
    assert (
        "agentmon" not in Path("/etc/resolv.conf").read_text()
        and str(Pool().resolver.v4) not in Path("/etc/resolv.conf").read_text()
    )
    assert step("exit 7").returncode == 7 and step("true", options=("--step", "mine")).returncode == 0
    assert [seen.step for seen in watch.read(session.steps_file(NAME))] == ["mine"]
    for wrong in ("4242424242", "x"):
        done = step("true", SUDO_UID=wrong)
        assert done.returncode == 2 and "names no user" in done.stderr


def test_what_steps_left_is_ended_with_the_place(made: Session) -> None:
    assert step("sleep 300 >/dev/null 2>&1 & sleep 300 >/dev/null 2>&1 &").returncode == 0
    assert place.remove(made.holder, made.cgroup) == 2
    assert not Path(made.cgroup).exists() and place.remove(made.holder, made.cgroup) == 0
    assert made.holder is not None
    until(lambda: place.process_of(made.holder.pid) != made.holder)
    done = step("true")
    assert done.returncode == 1 and "has gone" in done.stderr


def test_a_place_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_HOLDER", "echo no such thing >&2; exit 1")
    with pytest.raises(HostLacks, match="no such thing"):
        place.make(NAME)
    assert not (place.find_v2() / f"agentmon-ci-{NAME}").exists()


def traps(tmp_path: Path) -> Path:
    """A directory with other programs by the names of those that enter a place."""
    found = tmp_path / "traps"
    found.mkdir()
    for name in ("nsenter", "unshare", "sh", "mount", "readlink", "setpriv"):
        (found / name).write_text("#!/bin/sh\necho trapped\n")
        (found / name).chmod(0o755)
    return found


def sudo(tmp_path: Path) -> str:
    """What can be seen of sudo with `secure_path`: it stays, with its caller's environment, and gives another PATH."""
    found = tmp_path / "sudo"
    found.write_text('#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"\nexit $?\n')
    found.chmod(0o755)
    return str(found)
