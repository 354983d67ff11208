"""Connections to a shared ledger's database, and the one place where PostgreSQL's errors become sentences.

The settings' URL has no password: that is a credential (root-owned file, systemd, command), handed over apart. Every
session has the schema, the host's time zone and limits of its own, so that a host that hangs does not hold up others.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import psycopg.conninfo
from psycopg import errors as pg

from agentmon.credentials.secret import Secret
from agentmon.ledger.postgres_migrations import SCHEMA
from agentmon.ledger.store import LedgerTrouble

CREDENTIAL = "ledger"
CHANNEL = "agentmon_ledger"
CONNECT_S = 3
HANGS_S = 4.0  # a server that does not answer for so long is away
TURN_S = 2  # a host that stops in the middle of its turn loses it after so long; others wait a little longer
_SESSION = {
    "search_path": SCHEMA,
    "application_name": "agentmon",
    "idle_in_transaction_session_timeout": f"{TURN_S}s",
    "lock_timeout": f"{TURN_S + 1}s",
    "statement_timeout": "30s",
    "synchronous_commit": "on",
    "tcp_keepalives_idle": "5",  # a host that has gone without a word is noticed by the server within seconds
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "default_transaction_isolation": "read committed",
}
_NETWORK = {
    "connect_timeout": CONNECT_S, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
    "tcp_user_timeout": int(HANGS_S * 1000),
}  # fmt: skip

LOST = (pg.AdminShutdown, pg.CrashShutdown, pg.CannotConnectNow, pg.IdleInTransactionSessionTimeout)


@dataclass(frozen=True, slots=True)
class Database:
    """What to connect to.

    :param url: postgresql://…, without a password. :param password: None where the server asks for none.
    :param hostaddr: the host's address, looked up by the daemon; "" for a unix socket.
    """

    url: str
    password: Secret | None = field(default=None, repr=False)
    hostaddr: str = ""

    @property
    def place(self) -> str:
        """The database as messages call it."""
        given = psycopg.conninfo.conninfo_to_dict(self.url)
        port = f":{given['port']}" if given.get("port") else ""
        name = given.get("dbname") or given.get("user") or ""
        return f"PostgreSQL database {name} at {given.get('host') or 'localhost'}{port}"

    def connect(self) -> psycopg.Connection[Any]:
        """A session in autocommit. :raises psycopg.Error: see trouble()."""
        given: dict[str, Any] = dict(_NETWORK)
        if self.password is not None:
            given["password"] = self.password.reveal()
        if self.hostaddr:
            given["hostaddr"] = self.hostaddr
        db = psycopg.connect(self.url, autocommit=True, **given)
        try:
            settings = {**_SESSION, "TimeZone": zone()}
            sql = ", ".join(["set_config(%s, %s, false)"] * len(settings))
            db.execute(f"SELECT {sql}".encode(), [text for pair in settings.items() for text in pair])
        except BaseException:
            db.close()
            raise
        return db


def check_url(url: str) -> str:
    """What is wrong with a `ledger:` of the settings; "" for nothing."""
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error as e:
        return str(e).strip()
    return "a password stands in it" if given.get("password") else ""


def zone() -> str:
    """The host's time zone by a name that PostgreSQL has, else its distance to UTC now."""
    name = os.environ.get("TZ", "") or str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2]
    if name and Path("/usr/share/zoneinfo", name.removeprefix(":")).is_file():
        return name.removeprefix(":")
    seconds = time.localtime().tm_gmtoff
    sign, minutes = "+" if seconds >= 0 else "-", abs(seconds) // 60
    if not minutes:
        return "UTC"
    east = f"{sign}{minutes // 60:02d}:{minutes % 60:02d}"
    west = f"{'-' if sign == '+' else '+'}{minutes // 60:02d}:{minutes % 60:02d}"  # POSIX counts westwards
    return f"<{east}>{west}"


def is_lost(e: psycopg.Error) -> bool:
    """Whether the connection has gone, so that a COMMIT under way may have come through or not."""
    return isinstance(e, LOST) or (isinstance(e, (psycopg.OperationalError, psycopg.InterfaceError)) and not e.sqlstate)


def trouble(database: Database, e: psycopg.Error) -> LedgerTrouble:
    """What a person is told."""
    for kind, what, hint in _TROUBLES:
        if isinstance(e, kind):
            return LedgerTrouble(f"{database.place}: {what} ({_first_line(e)})", hint)
    if e.sqlstate is None:  # no connection: libpq has the server's words and no number
        gone = e.pgconn
        if gone is not None and gone.needs_password:
            what, hint = "the server asks for a password, and there is none", _PASSWORD
        elif gone is not None and gone.used_password:
            what, hint = "the server did not let us in", f"is the password right? {_PASSWORD}"
        else:
            what, hint = "it cannot be reached", "start it, or look at `ledger:` in settings.yml"
        return LedgerTrouble(f"{database.place}: {what} ({_first_line(e)})", hint)
    return LedgerTrouble(f"{database.place}: failed ({e.sqlstate}: {_first_line(e)})", "see the server's log")


def _first_line(e: psycopg.Error) -> str:
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)


_PASSWORD = (
    f"install -m 600 -o root -g root FILE /etc/agentmon/credentials/{CREDENTIAL}, then start agentmon daemon again"
)
_TROUBLES: tuple[tuple[type[psycopg.Error], str, str], ...] = (
    (pg.DiskFull, "its disk is full", "free some space there; metered requests are refused until then"),
    (
        pg.ReadOnlySqlTransaction,
        "it is read-only",
        "name the primary, or add target_session_attrs=read-write to the URL",
    ),
    (
        pg.InsufficientPrivilege,
        "the user may not do that",
        "the user of the URL must own the database's schema agentmon",
    ),
    (pg.LockNotAvailable, "another host does not end its turn", "it loses it in a moment; see the server's log if not"),
    (pg.QueryCanceled, "it is too slow", "see the server's load and log"),
    (pg.TooManyConnections, "it has no connection left", "raise max_connections: three for each host"),
    (pg.DataCorrupted, "it is damaged", "restore a copy; see docs/ledger.md"),
    (pg.IndexCorrupted, "it is damaged", "REINDEX, or restore a copy; see docs/ledger.md"),
    (pg.IdleInTransactionSessionTimeout, "this host was too slow in its turn", "see the load of this host"),
    (pg.CannotConnectNow, "it is starting or stopping", "wait"),
    (pg.AdminShutdown, "it was stopped", "start it again"),
    (pg.CrashShutdown, "it has crashed", "see the server's log"),
)
