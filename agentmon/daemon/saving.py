"""Private files of frozen bottles, to disk and back: what outlives a reboot of the host. Needs root.

    SAVED/RUN/   root 0700          bottle.json   the bottle and what it was made of (saved_state.py)
                                    home.tar  tmp.tar  var-tmp.tar   HOME (where it is private), /tmp, /var/tmp

All of it is 0600 of root: environments hold keys. tar(1) writes the archives of a bottle that is stopped, and takes
them apart as the job's own user: whatever names the job made up, nothing is written that its user could not write. A
save has happened with the rename of its directory, after all of it is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from agentmon import paths
from agentmon.control.state import Bottle, Job
from agentmon.daemon import saved_state
from agentmon.daemon.saved_state import Saved
from agentmon.errors import AgentmonError, BadInput, HostLacks

_TAR, _PRLIMIT = "/usr/bin/tar", "/usr/bin/prlimit"
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_COMMON = ("--numeric-owner", "--sparse", "--xattrs", "--xattrs-include=user.*")
_TIMEOUT_S = 600.0
_SPARED_BYTES = 64 << 20  # of the disk, and a twentieth of it: the ledger writes there as well
_STATE = "bottle.json"
RESTORED_PARTS = ("tmp", "var-tmp")  # HOME has its own place


class Saves:
    """What is saved, by run. One per daemon."""

    def __init__(self) -> None:
        self._saved: dict[str, Saved] = {}
        self._under_way: dict[str, asyncio.Task[Saved]] = {}

    def load(self) -> list[Saved]:
        """Read what is on disk, the newest of a name last; what cannot be read stays there, and is told on stderr."""
        for path in sorted(paths.SAVED.iterdir()) if paths.SAVED.is_dir() else ():
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)  # a save that the host did not live to finish
                continue
            try:
                self._saved[path.name] = saved_state.decode((path / _STATE).read_bytes())
            except (OSError, BadInput) as error:
                print(f"warning: {path}: what was saved of a bottle cannot be read: {error}, ignoring", file=sys.stderr)
        return sorted(self._saved.values(), key=lambda saved: saved.saved_ns)

    def of(self, run: str) -> Saved | None:
        return self._saved.get(run)

    async def save(self, bottle: Bottle, pids: Iterable[int], settings_file: str) -> Saved:
        """Write everything of a bottle whose processes are stopped.

        :raises AgentmonError, OSError: nothing is saved. :raises asyncio.CancelledError: drop() came.
        """
        task = asyncio.create_task(self._save(bottle, tuple(pids), settings_file))
        self._under_way[bottle.run] = task
        try:
            return await task
        except asyncio.CancelledError:
            if asyncio.current_task() is not None and asyncio.current_task().cancelling():  # type: ignore[union-attr]
                task.cancel()
                raise
            raise AgentmonError("it goes on, or was ended, before all was saved") from None
        finally:
            self._under_way.pop(bottle.run, None)

    async def settled(self, run: str) -> None:
        """Return when no save of it is under way."""
        if (task := self._under_way.get(run)) is not None:
            await asyncio.wait({task})

    async def stop(self, run: str) -> None:
        """End a save of it that is under way."""
        if (task := self._under_way.get(run)) is not None:
            task.cancel()
            await asyncio.wait({task})

    async def drop(self, run: str) -> None:
        """Forget and remove what was saved; idempotent."""
        await self.stop(run)
        self._saved.pop(run, None)
        await asyncio.to_thread(shutil.rmtree, paths.SAVED / run, ignore_errors=True)

    async def restore(self, bottle: Bottle) -> None:
        """The saved files, to where launch_spec() shows them from.

        :raises AgentmonError: an archive is missing or damaged. :raises OSError: no room.
        """
        saved = self._saved[bottle.run]
        own = paths.RESTORED / str(bottle.slot)
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(mode=0o700, parents=True)
        for part in RESTORED_PARTS:
            (own / part).mkdir(mode=0o700)
            os.chown(own / part, bottle.job.uid, bottle.job.gid)
        for part in saved.parts:
            target = paths.HOMES / str(bottle.slot) if part == "home" else own / part
            await _extract(paths.SAVED / bottle.run / f"{part}.tar", target, bottle.job)

    async def _save(self, bottle: Bottle, pids: tuple[int, ...], settings_file: str) -> Saved:
        init = first_process(pids)
        paths.SAVED.mkdir(mode=0o700, exist_ok=True)
        under, done = paths.SAVED / f".{bottle.run}", paths.SAVED / bottle.run
        shutil.rmtree(under, ignore_errors=True)
        under.mkdir(mode=0o700)
        try:
            inside = paths.RESTORED / str(bottle.slot) if bottle.restored else Path(f"/proc/{init}/root")
            places = {part: inside / (part if bottle.restored else part.replace("-", "/")) for part in RESTORED_PARTS}
            if bottle.policy.home == "private":
                places["home"] = paths.HOMES / str(bottle.slot)
            parts = {part: await _archive(place, under / f"{part}.tar") for part, place in sorted(places.items())}
            saved = saved_state.make(bottle, parts, len(pids), settings_file)
            await asyncio.to_thread(_finish, under, done, saved)
        except BaseException:
            shutil.rmtree(under, ignore_errors=True)
            raise
        self._saved[bottle.run] = saved
        return saved


def first_process(pids: Iterable[int]) -> int:
    """The host's pid of the bottle's pid 1: its view of the file system is the one that bwrap made, whatever
    namespaces the job has made for itself below.

    :raises AgentmonError: there is none, the command has not been started.
    """
    depth = len(_pids_of("self"))
    for pid in pids:
        inner = _pids_of(pid)
        if len(inner) == depth + 1 and inner[-1] == "1":
            return pid
    raise AgentmonError("its command had not begun: there is nothing to save")


def _pids_of(pid: int | str) -> list[str]:
    """NSpid of proc(5), outermost first."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[1:]
    return []


async def _archive(place: Path, file: Path) -> int:
    """Write one directory to `file`; its bytes. Other file systems below it, and sockets, are left out."""
    source = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        words = [_PRLIMIT, f"--fsize={_room(file.parent)}", _TAR, "--create", "--file=-", *_COMMON]
        words += ["--one-file-system", "-C", f"/proc/self/fd/{source}", "."]
        await _run(words, "cannot be saved", stdout=out, pass_fds=(source,))
        os.fsync(out)
        return os.fstat(out).st_size
    finally:
        os.close(source)
        os.close(out)


async def _extract(file: Path, target: Path, job: Job) -> None:
    into = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        archive = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        os.close(into)
        raise AgentmonError(f"{file}: {e.strerror}: what was saved is not complete") from e
    try:
        words = [_TAR, "--extract", "--file=-", *_COMMON, "--no-same-owner", "--preserve-permissions"]
        words += ["-C", f"/proc/self/fd/{into}"]
        await _run(words, "cannot be restored", stdin=archive, pass_fds=(into,), job=job)
    finally:
        os.close(into)
        os.close(archive)


async def _run(
    words: Sequence[str], what: str, *, pass_fds: tuple[int, ...], stdin: int = asyncio.subprocess.DEVNULL,
    stdout: int = asyncio.subprocess.DEVNULL, job: Job | None = None,
) -> None:  # fmt: skip
    """:raises AgentmonError: it failed, with its last word. :raises HostLacks: it is not there."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=stdin, stdout=stdout, stderr=asyncio.subprocess.PIPE, env=_ENV, cwd="/", umask=0o077,
            pass_fds=pass_fds, user=job.uid if job else None, group=job.gid if job else None,
            extra_groups=job.groups if job else None,
        )  # fmt: skip
    except FileNotFoundError as e:
        raise HostLacks(f"{e.filename} is not there", "apt-get install tar util-linux") from e
    assert process.stderr is not None
    last = ""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while line := await process.stderr.read(4096):  # as many words as it likes, the last are kept
                last = (last + line.decode(errors="replace"))[-4096:]
            await process.wait()
    except TimeoutError:
        raise AgentmonError(f"the private files {what} within {_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        why = next((line for line in reversed(last.splitlines()) if "Exiting with" not in line), "")[-200:]
        why = "no room on the disk" if process.returncode == -25 else why  # SIGXFSZ
        raise AgentmonError(f"the private files {what}: {why or f'tar ended with {process.returncode}'}")


def _room(directory: Path) -> int:
    found = os.statvfs(directory)
    spared = max(_SPARED_BYTES, found.f_blocks * found.f_frsize // 20)
    return max(0, found.f_bavail * found.f_frsize - spared)


def _finish(under: Path, done: Path, saved: Saved) -> None:
    """bottle.json, and all of it on the disk before it has its name."""
    fd = os.open(under / _STATE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(saved_state.encode(saved))
        file.flush()
        os.fsync(fd)
    _sync(under)
    shutil.rmtree(done, ignore_errors=True)  # of an earlier freeze of this run
    under.rename(done)
    _sync(done.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
