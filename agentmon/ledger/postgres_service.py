"""How the ledger's process comes to its database: the address from CONFIG, the password as root, before it drops.

No variable of the environment decides: libpq would read PGHOST, PGPASSWORD and others of whoever started the daemon.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentmon.credentials import sources
from agentmon.ledger.outbox import Outbox
from agentmon.ledger.postgres import CREDENTIAL, Database
from agentmon.ledger.postgres_store import PostgresStore


def shared_store(config: Mapping[str, Any], outbox: Path, *, hold_ns: int) -> PostgresStore:
    """A store that is not connected yet.

    :param config: {"url", "hostaddr", "command"}, see __main__.py.
    :raises AgentmonError: the password's source is not to be trusted.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it only notes is an error of ours already
    command = config.get("command")
    source = sources.store({CREDENTIAL: tuple(command)} if command else {})
    password = source.read(CREDENTIAL) if command or any(source.signature(CREDENTIAL)) else None
    database = Database(config["url"], password, config.get("hostaddr", ""))
    return PostgresStore(database, Outbox(str(outbox)), hold_ns=hold_ns)
