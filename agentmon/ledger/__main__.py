"""`python -m agentmon.ledger CONFIG`: lock the directory, bind, drop, open the file, serve.

CONFIG: {"socket", "path", "user" ("" stays what it is), "group" of the socket, "proxy_user", "usage_age_s" (null: usage
stays for ever), "database": null or {"url", "hostaddr", "command": argv of the password's credential or null}}. The
directory of `path` must exist, mode 0700, owned by `user`; with a database the outbox is in there. With `user` "" the
own uid counts as the daemon too: for tests without root.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon import errors, service
from agentmon.ledger.keeper import Keeper
from agentmon.ledger.owner import boot_id
from agentmon.ledger.server import Roles, Server
from agentmon.ledger.store import HOLD_NS, LedgerTrouble, Store

if TYPE_CHECKING:
    from agentmon.ledger.postgres_store import PostgresStore

_LOCK_WAIT_S = 5.0  # a predecessor that was told to stop is still committing


def main(argv: list[str]) -> int:
    config = service.read_config(argv)
    try:
        _serve(config)
    except errors.AgentmonError as e:
        print(f"error: ledger: {e.message}\nhint: {e.hint}", file=sys.stderr, flush=True)
        return e.exit_code
    return 0


def _serve(config: dict[str, Any]) -> None:
    path = Path(config["path"])
    _lock(path.parent, config.get("lock_wait_s", _LOCK_WAIT_S))
    sock = service.listen_unix(Path(config["socket"]), group=config.get("group", ""))
    user = config.get("user", "")
    roles = Roles(frozenset({0} if user else {0, os.geteuid()}), _uids(config.get("proxy_user", "agentmon-proxy")))
    boot_id()
    hold_ns = config.get("hold_ns", HOLD_NS)
    store: Keeper = Store(str(path), hold_ns=hold_ns)
    shared: PostgresStore | None = None
    if config.get("database"):
        try:
            from agentmon.ledger.postgres_service import shared_store
        except ImportError as e:
            what = f"`ledger: postgresql://…` needs psycopg, which does not load: {e}"
            raise errors.HostLacks(what, ".venv/bin/pip install 'psycopg[binary]'") from e
        store = shared = shared_store(config["database"], path.with_name("outbox.db"), hold_ns=hold_ns)
    if user:
        service.drop(user)
    os.umask(0o077)
    try:
        store.open()
    except LedgerTrouble as e:
        print(f"error: ledger: {e.message}\nhint: {e.hint}", file=sys.stderr, flush=True)  # served as unavailable

    async def body() -> None:
        reader = shared.reader if shared is not None else None
        server = Server(store, sock, roles, usage_age_s=config.get("usage_age_s"), reader=reader)
        await server.start()
        if shared is not None:
            shared.listen(server.refresh)
        try:
            await server.failed()
        finally:
            await server.stop()

    service.run(body)


def _lock(directory: Path, wait_s: float) -> None:
    """Keep every other ledger away from the directory, until this process ends.

    :raises errors.AgentmonError: there is no such directory, or another ledger works there and does not end.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise errors.HostLacks(f"{directory}: {e.strerror}", "the daemon creates it: agentmon daemon") from e
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as e:
            if time.monotonic() > deadline:
                raise errors.AgentmonError(
                    f"another ledger is working in {directory}", "the daemon stops it: agentmon daemon"
                ) from e
            time.sleep(0.02)


def _uids(user: str) -> frozenset[int]:
    try:
        return frozenset({pwd.getpwnam(user).pw_uid})
    except KeyError:
        return frozenset()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
