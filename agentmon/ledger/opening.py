"""Which ledger this host has, for whoever reads it: the file, or the process that has the database.

What the daemon has told its ledger (svc/ledger.json) goes before the settings: it may have been started with others.
"""

from __future__ import annotations

import contextlib

import msgspec

from agentmon import paths
from agentmon.ledger.asking import AskingReader
from agentmon.ledger.reader import Reader
from agentmon.ledger.reading import Reading
from agentmon.policy import settings


class _Config(msgspec.Struct):
    """What is needed of the ledger's CONFIG."""

    socket: str
    database: object = None


def opened(path: str = "") -> Reading:
    """The host's ledger, or the file at `path`.

    :raises AgentmonError: it cannot be read by this user, or now.
    """
    if path:
        return Reader(path)
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        config = msgspec.json.decode((paths.SVC / "ledger.json").read_bytes(), type=_Config)
        return AskingReader(config.socket) if config.database else Reader(str(paths.LEDGER))
    if settings.load().ledger_is_shared:
        return AskingReader(str(paths.SVC / "ledger.sock"))
    return Reader(str(paths.LEDGER))
