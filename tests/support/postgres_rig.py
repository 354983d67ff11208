"""A real PostgreSQL server of the tests' own: a temporary directory, a unix socket only, an unprivileged user."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from agentmon.ledger.outbox import Outbox
from agentmon.ledger.postgres import Database
from agentmon.ledger.postgres_store import PostgresStore
from tests.support.ledger_rig import until

OWNER, ASKED = "ledger", "asked"  # roles: the second one has a password
PASSWORD = "correct horse"
_CONFIG = """
listen_addresses = ''
unix_socket_permissions = 0777
max_connections = 60
shared_buffers = 16MB
fsync = {fsync}
autovacuum = off
log_min_messages = warning
"""
_ACCESS = f"local all {ASKED} scram-sha-256\nlocal all all trust\nhost all {ASKED} all scram-sha-256\n"


def programs() -> Path | None:
    """Where initdb and postgres are: Debian keeps them out of $PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(re.sub(r"\D", "", p.parts[4])))
    where = str(found[-1]) if found else shutil.which("initdb")
    return Path(where).resolve().parent if where else None


class Server:
    """One cluster; may be killed, stopped (SIGSTOP) and started again."""

    def __init__(self, *, fsync: str = "off") -> None:
        bin = programs()
        assert bin is not None
        self._bin = bin
        self._user = "nobody" if os.geteuid() == 0 else None
        self.directory = Path(tempfile.mkdtemp(prefix="agentmon-pg-"))
        self.directory.chmod(0o755)
        self.data = self.directory / "data"
        self.data.mkdir(mode=0o700)
        if self._user:
            os.chown(self.data, pwd.getpwnam(self._user).pw_uid, pwd.getpwnam(self._user).pw_gid)
            os.chown(self.directory, pwd.getpwnam(self._user).pw_uid, -1)
        done = self._run("initdb", "-D", str(self.data), "-U", "super", "-A", "trust", "-N", "--locale=C", "-E", "UTF8")
        assert done.returncode == 0, done.stderr
        with (self.data / "postgresql.conf").open("a") as config:
            config.write(_CONFIG.format(fsync=fsync) + f"unix_socket_directories = '{self.directory}'\n")
        (self.data / "pg_hba.conf").write_text(_ACCESS)
        self._names = itertools.count(1)
        self.netns = ""  # a namespace in which it also listens on TCP, once started there
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        with self.super() as db:
            db.execute(f"CREATE ROLE {OWNER} LOGIN".encode())
            db.execute(f"CREATE ROLE {ASKED} LOGIN PASSWORD '{PASSWORD}' IN ROLE {OWNER}".encode())

    def _run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._bin / program, *args],
            user=self._user,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            argv: list[str | Path] = [self._bin / "postgres", "-D", str(self.data)]
            if self.netns:
                argv = ["nsenter", f"--net=/run/netns/{self.netns}", "setpriv", "--reuid", "nobody", *argv]
                argv += ["-c", "listen_addresses=*"]
            self._process = subprocess.Popen(
                argv, user=None if self.netns else self._user, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(self._answers, "the server answers")

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.directory / "log").read_text()
        try:
            self.super().close()
        except psycopg.OperationalError:
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        """To every process of the server."""
        assert self._process is not None
        for pid in [*_children(self._process.pid), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: at once, as in a crash; SIGINT: sessions are told."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        self.end()
        shutil.rmtree(self.directory)

    def super(self, database: str = "postgres") -> Any:
        """A session of the superuser, in autocommit; a context manager."""
        return psycopg.connect(self.url(database, "super"), autocommit=True)

    def url(self, database: str, user: str = OWNER) -> str:
        return f"postgresql://{user}@/{database}?host={self.directory}"

    def new(self) -> str:
        """The URL of an empty database of its own."""
        name = f"ledger{next(self._names)}"
        with self.super() as db:
            db.execute(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE template0".encode())
        return self.url(name)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def shared_store(url: str, outbox: Path, **named: Any) -> PostgresStore:
    """One host's store, with its outbox in that file."""
    return PostgresStore(Database(url), Outbox(str(outbox)), **named)
