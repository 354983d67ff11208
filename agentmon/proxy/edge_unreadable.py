"""Answers whose usage cannot be read, where the bottle's policy has them broken off (`unreadable: cut`).

head      a content coding that nobody here undoes: our error is the answer, nothing of the provider's passes
in it     an event over the cap, damaged compression or framing: nothing more passes, the stream ends with the error
either    its hold is charged as for one that passed (settlement.charge), and the refusal is told
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agentmon.proxy import bodies
from agentmon.proxy.decide import Allow, Refuse
from agentmon.proxy.edge_layers import Ending
from agentmon.proxy.edge_live import Live, answer
from agentmon.proxy.exchange import Accounts
from agentmon.proxy.inbound import Stream
from agentmon.proxy.sightings import Sightings


class Unreadable:
    def __init__(self, sightings: Sightings, accounts: Accounts) -> None:
        self._sightings = sightings
        self._accounts = accounts

    def breaker(self, live: Live) -> Callable[[str], None] | None:
        """What a tap calls with the reason, once, to have the answer broken off; None where it is to pass."""
        if not self._cuts(live):
            return None

        def broken(why: str) -> None:
            error = self._told(live, why)
            if not self._held_back(live):
                self._accounts.spawn(self._end(live, live.ending_with(403, error)))

        return broken

    def head(self, live: Live) -> bool:
        """Of an answer whose head has come: whether ours is put in its place."""
        response, tap = live.flow.response, live.tap
        if tap is None or response is None or not tap.unknown_coding or not self._cuts(live):
            return False
        ours = answer(403, self._told(live, tap.unknown_coding))
        body = ours.raw_content or b""
        response.status_code, response.reason = ours.status_code, ours.reason
        response.headers = ours.headers
        del response.headers["content-length"]
        if live.flow.request.http_version == "HTTP/1.1":
            response.headers["transfer-encoding"] = "chunked"
        response.stream = _instead(body)
        self._accounts.spawn(self._end(live, Ending(None, body)))
        return True

    def whole(self, live: Live) -> None:
        """Of an answer that was held back as a whole and has been read: ours goes on in its place."""
        if live.tap is not None and live.tap.broken:
            live.flow.response = answer(403, bodies.answer_unreadable(live.host, live.tap.broken))

    def _cuts(self, live: Live) -> bool:
        """Errors and redirects cost nothing: they pass, whoever may read them."""
        billed = live.status is not None and live.status < 300
        return billed and live.bottle.view.unreadable == "cut"

    def _held_back(self, live: Live) -> bool:
        return live.held is not None and live.flow.response is not None and not live.flow.response.stream

    def _told(self, live: Live, why: str) -> bodies.Error:
        error = bodies.answer_unreadable(live.host, why)
        assert isinstance(live.verdict, Allow)
        refusal = Refuse(403, error, "unreadable", live.host, live.verdict.path, live.verdict.rule)
        named = self._sightings.refused(live.connection.slot, live.connection.source, refusal, live.facts)
        if named is not None:
            self._accounts.spawn(_wait(named))
        return error

    async def _end(self, live: Live, ending: Ending) -> None:
        await live.connection.cut(lambda flow: ending if flow is live.flow else None)


def _instead(body: bytes) -> Stream:
    """A stream callable that keeps everything back; where the answer ends before it is ended, `body` is its end."""
    return lambda data: [] if data else [body]


async def _wait(named: Awaitable[None]) -> None:
    await named
