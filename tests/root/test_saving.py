"""Private files to disk and back: as they were, as their user's, and nowhere else, whatever names a job made up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmon import paths
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon import saving
from agentmon.daemon.saved_state import Saved
from agentmon.daemon.saving import Saves
from agentmon.errors import AgentmonError
from agentmon.policy.effective import EffectivePolicy

pytestmark = pytest.mark.root
USER = pwd.getpwnam("agentmon-job")
JOB = Job(("agent",), (("KEY", "secret"),), "/", USER.pw_uid, USER.pw_gid, (), tty=False)
BOTTLE = Bottle(16, "one", "r1", Phase.FROZEN, EffectivePolicy("one", ()), JOB, 7)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SAVED", "HOMES", "RESTORED"):
        monkeypatch.setattr(paths, name, tmp_path / name)
    paths.HOMES.mkdir()
    make_home(16)
    return tmp_path


def make_home(slot: int) -> Path:
    home = paths.HOMES / str(slot)
    home.mkdir(mode=0o700)
    os.chown(home, JOB.uid, JOB.gid)
    return home


@pytest.fixture
def init() -> Iterator[int]:
    """pid 1 of a pid and mount namespace with a /tmp and /var/tmp of its own."""
    script = (
        "mount -t tmpfs a /tmp && mount -t tmpfs b /var/tmp && echo t >/tmp/t && chmod 1777 /tmp && echo v >/var/tmp/v"
    )
    words = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        f"{script} && echo up && exec sleep 1000",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    yield int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    process.kill()
    process.wait()
    process.stdout.close()


def as_user(script: str, cwd: Path) -> None:
    subprocess.run(
        ["/usr/bin/python3", "-c", script], cwd=cwd, user=JOB.uid, group=JOB.gid, extra_groups=[], check=True, env={}
    )


MESS = """
import os, socket
os.umask(0)
open("plain", "w").write("x")
os.chmod("plain", 0o640)
os.utime("plain", ns=(5, 7_000_000_000))
os.link("plain", "hard")
os.symlink("/etc", "out")
os.symlink("nowhere", "dangling")
os.mkdir("closed"); open("closed/in", "w").write("deep"); os.chmod("closed", 0)
os.mkdir("locked"); open("locked/in", "w").write("deep"); os.chmod("locked", 0o500)
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("sock")
open("suid", "w"); os.chmod("suid", 0o4755)
open("-rf", "w"); open("new\\nline", "w"); open(b"\\xff\\xfe", "w"); open("x" * 255, "w")
with open("sparse", "w") as f: f.truncate(1 << 40)
deep = "d" * 200
for _ in range(18):
    os.mkdir(deep); os.chdir(deep)
open("bottom", "w")
"""


def save(saves: Saves, init: int) -> Saved:
    return asyncio.run(saves.save(BOTTLE, [os.getpid(), init], ""))


def test_everything_a_job_can_make_comes_back_as_it_was(place: Path, init: int) -> None:
    home = paths.HOMES / "16"
    as_user(MESS, home)
    before = listing(home)
    saved = save(Saves(), init)
    assert set(saved.parts) == {"home", "tmp", "var-tmp"} and saved.parts["home"] < 10 << 20  # the hole is one
    for path in (paths.SAVED, *paths.SAVED.rglob("*")):
        found = path.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode) & 0o077) == (0, 0), path
    assert b"secret" in (paths.SAVED / "r1/bottle.json").read_bytes()
    saves = Saves()
    (loaded,) = saves.load()
    assert loaded == saved
    shutil.rmtree(home)
    make_home(17)
    asyncio.run(saves.restore(replace(BOTTLE, slot=17)))
    after = listing(paths.HOMES / "17")
    assert after == [line for line in before if line[0] != b"./sock"]
    restored = paths.RESTORED / "17"
    assert (restored / "tmp/t").read_text() == "t\n" and (restored / "var-tmp/v").read_text() == "v\n"
    assert stat.S_IMODE(restored.stat().st_mode) == 0o700 and restored.stat().st_uid == 0
    assert (restored / "tmp").stat().st_uid == JOB.uid and (restored / "tmp/t").stat().st_uid == JOB.uid
    asyncio.run(saves.drop("r1"))
    assert not any(paths.SAVED.iterdir()) and saves.of("r1") is None


def listing(root: Path) -> list[tuple[bytes, ...]]:
    """Names, types, modes, owners, sizes, link counts and targets, by find(1): paths longer than PATH_MAX."""
    words = ["find", ".", "-mindepth", "1", "-printf", r"%p\0%y %m %u %s %n %l\0"]
    out = subprocess.run(words, cwd=root, capture_output=True, check=True).stdout.split(b"\0")
    return sorted((name, rest) for name, rest in zip(out[::2], out[1::2], strict=False))


def test_an_archive_that_would_write_elsewhere_cannot(place: Path, init: int) -> None:
    """Whoever could write the archive could be anybody: it is taken apart with the rights of the job's user."""
    saves = Saves()
    save(saves, init)
    target = place / "target"
    target.mkdir(mode=0o755)
    with tarfile.open(paths.SAVED / "r1/home.tar", "w") as archive:
        for name, link in (("a", str(target)), ("a/b", ""), ("../up", ""), (f"{target}/c", ""), ("root", "")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            info.uid = info.gid = 0
            info.mode = 0o4755
            archive.addfile(info)
    make_home(17)
    with contextlib.suppress(AgentmonError):
        asyncio.run(saves.restore(replace(BOTTLE, slot=17)))
    assert not any(target.iterdir()) and not (paths.HOMES / "up").exists()
    assert (paths.HOMES / "17/root").stat().st_uid == JOB.uid


def test_without_room_nothing_is_left_of_it(place: Path, init: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (paths.HOMES / "16/big").write_bytes(os.urandom(1 << 20))
    monkeypatch.setattr(saving, "_room", lambda directory: 1 << 16)
    with pytest.raises(AgentmonError, match="cannot be saved: no room on the disk"):
        save(Saves(), init)
    assert not any(paths.SAVED.iterdir())


def test_one_that_is_stopped_in_the_middle_leaves_nothing(place: Path, init: int) -> None:
    saves = Saves()

    async def body() -> None:
        task = asyncio.create_task(saves.save(BOTTLE, [init], ""))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await saves.stop("r1")
        with pytest.raises(AgentmonError, match="before all was saved"):
            await task

    asyncio.run(body())
    assert not any(paths.SAVED.iterdir()) and saves.of("r1") is None


def test_a_damaged_archive_and_a_half_save_are_told(place: Path, init: int, capsys: pytest.CaptureFixture[str]) -> None:
    saves = Saves()
    save(saves, init)
    (paths.SAVED / "r1/home.tar").write_bytes(b"no archive" * 1000)
    make_home(17)
    with pytest.raises(AgentmonError, match=r"cannot be restored: .*tar"):
        asyncio.run(saves.restore(replace(BOTTLE, slot=17)))
    (paths.SAVED / "r1/home.tar").unlink()
    with pytest.raises(AgentmonError, match="not complete"):
        asyncio.run(saves.restore(replace(BOTTLE, slot=17)))
    (paths.SAVED / ".r2").mkdir()
    (paths.SAVED / "r3").mkdir()
    fresh = Saves()
    assert [found.bottle.run for found in fresh.load()] == ["r1"]
    assert not (paths.SAVED / ".r2").exists() and (paths.SAVED / "r3").exists()
    assert "r3: what was saved of a bottle cannot be read" in capsys.readouterr().err


def test_a_job_that_was_not_started_has_nothing_to_save(place: Path) -> None:
    with pytest.raises(AgentmonError, match="had not begun"):
        asyncio.run(Saves().save(BOTTLE, [os.getpid()], ""))
