"""Reports of a ledger that is no file: the command line asks the ledger's process, which alone has the database.

agentmon usage … ─ AskingReader (reading.py's methods) ─ wire.Read ─▶ server.py ─ answer() ─▶ postgres_reader.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from agentmon import wire
from agentmon.blocking import BlockingChannel
from agentmon.errors import BY_NAME, AgentmonError, DaemonUnreachable, Refused
from agentmon.ledger.finding import Finding
from agentmon.ledger.reading import Reading

_ANSWER_S = 120.0  # `ledger check` reads all of it


def answer(opened: Callable[[], Reading], m: wire.Read) -> wire.Message:
    """What a Read is answered with. Blocks; a connection of its own, so that nothing else waits for it."""
    try:
        with opened() as reader:
            found = reader.dicts(m.sql, tuple(m.values)) if m.sql else [asdict(f) for f in reader.findings()]
    except AgentmonError as e:
        return wire.Failed(m.id, e.kind, e.message, e.hint)
    told = wire.Done(m.id, found)
    if len(wire.encode(told)) > wire.MAX_FRAME:
        return wire.Failed(m.id, "AgentmonError", "the answer is too long", "ask for less: --since, or ledger export")
    return told


class AskingReader(Reading):
    """Asks the ledger on `socket`. Root only.

    :raises DaemonUnreachable: none runs. :raises Refused: this user may not ask it.
    """

    def __init__(self, socket: str) -> None:
        try:
            self._channel = BlockingChannel.connect(socket, _ANSWER_S)
            self._channel.recv()  # Ready; whom it does not know it hangs up on
        except (PermissionError, ConnectionResetError):
            raise Refused(f"you may not ask the ledger on {socket}", "use sudo") from None
        except OSError as e:
            raise DaemonUnreachable("the ledger is in a database, and no ledger runs here", "agentmon daemon") from e

    def close(self) -> None:
        self._channel.close()

    def dicts(self, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        return list(self._ask(sql, values))

    def findings(self) -> list[Finding]:
        return [Finding(f["what"], f["count"], tuple(f["problems"]), tuple(f["notes"])) for f in self._ask("", ())]

    def _ask(self, sql: str, values: tuple[Any, ...]) -> Any:
        try:
            told = self._channel.call(wire.Read(self._channel.next_id(), sql, values))
        except OSError as e:
            raise DaemonUnreachable(f"the ledger does not answer: {e}", "see its log: ledger.log") from e
        if isinstance(told, wire.Failed):
            raise BY_NAME.get(told.error, AgentmonError)(told.message, told.hint)
        return told.value
