"""Where credentials come from: a command of the settings, a root-owned file, a systemd credential. Needs root.

Never the environment (docs/adr/0007). A source that cannot be trusted is refused, not read; no message quotes a value.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentmon import paths
from agentmon.credentials.secret import MAX_BYTES, Secret
from agentmon.errors import AgentmonError, BadInput

COMMAND_S = 10.0
_COMMAND_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

Signature = tuple[int, int, int, int]  # device, inode, mtime_ns, ctime_ns


@dataclass(frozen=True, slots=True)
class Store:
    """Reads by name. The first that there is: the command, the file, the systemd credential.

    :param commands: argv by name, from the settings. :param owner: uid that files must belong to.
    :param systemd: $CREDENTIALS_DIRECTORY of the daemon, None without one (systemd.exec(5), LoadCredential=).
    """

    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    directory: Path = paths.CREDENTIALS
    systemd: Path | None = None
    owner: int = 0
    timeout_s: float = COMMAND_S

    def read(self, name: str) -> Secret:
        """The credential as it is now.

        :raises AgentmonError: there is none, or its source is not to be trusted; with what to do.
        """
        if name in self.commands:
            return self._run(name, self.commands[name])
        for file in self._files(name):
            try:
                fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as e:
                raise BadInput(f"credential {name!r}: {file}: {e.strerror}", "a regular file, not a link") from e
            try:
                self._check(name, file, os.fstat(fd))
                return _secret(name, os.read(fd, MAX_BYTES + 2))
            finally:
                os.close(fd)
        hint = f"install -m 600 -o root -g root FILE {self.directory / name}"
        raise BadInput(f"credential {name!r} is not on this host", hint)

    def in_files(self) -> tuple[str, ...]:
        """The names of all that lie in files, those of systemd included."""
        found: set[str] = set()
        for place in (self.directory, self.systemd):
            with contextlib.suppress(OSError):
                found |= {entry.name for entry in os.scandir(place or "") if not entry.name.startswith(".")}
        return tuple(sorted(found))

    def signature(self, name: str) -> tuple[Signature | None, ...]:
        """Something that differs once a file of this name came, went or changed; () for a command."""
        return () if name in self.commands else tuple(_signature(file) for file in self._files(name))

    def _files(self, name: str) -> tuple[Path, ...]:
        return tuple(place / name for place in (self.directory, self.systemd) if place is not None)

    def _check(self, name: str, file: Path, found: os.stat_result) -> None:
        """:raises BadInput: others could read or replace the file."""
        place = file.parent.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadInput(f"credential {name!r}: {file} is no regular file", "a regular file of mode 0600")
        if found.st_uid != self.owner:
            raise BadInput(f"credential {name!r}: {file} belongs to uid {found.st_uid}", f"chown {self.owner} {file}")
        if found.st_mode & 0o077:
            mode = f"{stat.S_IMODE(found.st_mode):04o}"
            raise BadInput(f"credential {name!r}: {file} has mode {mode}: others can read it", f"chmod 600 {file}")
        if place.st_uid != self.owner or place.st_mode & 0o022:
            hint = f"chown {self.owner} {file.parent}; chmod 700 {file.parent}"
            raise BadInput(f"credential {name!r}: {file.parent} can be written by others than its owner", hint)

    def _run(self, name: str, argv: tuple[str, ...]) -> Secret:
        """Its standard output; its standard error is not looked at, since it could hold the value."""
        hint = f"see `credentials: {{{name}: …}}` in the settings"
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_COMMAND_ENV,
                cwd="/", timeout=self.timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            what = f"credential {name!r}: {argv[0]} did not end within {self.timeout_s:g} s"
            raise AgentmonError(what, hint) from None
        except OSError as e:
            raise BadInput(f"credential {name!r}: {argv[0]}: {e.strerror}", hint) from e
        if done.returncode != 0:
            raise AgentmonError(f"credential {name!r}: {argv[0]} ended with status {done.returncode}", hint)
        return _secret(name, done.stdout)


def store(commands: Mapping[str, tuple[str, ...]]) -> Store:
    """The host's store, for the daemon: $CREDENTIALS_DIRECTORY is the path that systemd gave it, no value."""
    systemd = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return Store(commands, systemd=Path(systemd) if systemd.startswith("/") else None)


def _signature(file: Path) -> Signature | None:
    try:
        found = file.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _secret(name: str, data: bytes) -> Secret:
    """:param data: the value, and at most one line end behind it."""
    try:
        return Secret(data.removesuffix(b"\n").removesuffix(b"\r").decode("ascii", "replace"))
    except BadInput as e:
        raise BadInput(f"credential {name!r}: {e.message}", e.hint) from None
