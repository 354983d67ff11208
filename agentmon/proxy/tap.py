"""The copy: a stream callable that passes an answer on, unchanged and undelayed, while the parser reads along.

Only where an extra usage chunk has to be taken out do bytes wait for the end of their event. The callable runs on the
event loop: no I/O, no regular expressions over content, and it never raises; trouble sets `failed` and the bytes go on,
or, where the policy says so, nothing more does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from agentmon import wire
from agentmon.providers.counting import BYTES_PER_TOKEN
from agentmon.providers.declaration import Parser
from agentmon.providers.decoding import Decoder, unknown
from agentmon.providers.sse import EventGate

_STEP = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer's head says that matters here. `coding`: Content-Encoding; `sse`: it is an event stream."""

    coding: str
    sse: bool


class Tap:
    """:param on_growth: called with the usage each time the provider said more of it, and where it says nothing before
    the end, with an estimate each time _STEP more tokens of text have passed.
    :param on_unreadable: called once, with why, as soon as the usage cannot be read any more; from then on nothing
    passes. None: everything does."""

    def __init__(
        self,
        parser: Parser,
        answer: Answer,
        gate: EventGate | None,
        on_growth: Callable[[wire.Usage], None],
        on_unreadable: Callable[[str], None] | None = None,
    ) -> None:
        self._parser = parser
        self._decoder = Decoder(answer.coding, parser.feed)
        self._gate = gate
        self._on_growth = on_growth
        self._on_unreadable = on_unreadable
        coding = unknown(answer.coding)
        self.unknown_coding = f"its content coding {coding[:40]!r} is unknown" if coding else ""
        self.broken = ""  # why nothing passes any more
        self._last: wire.Usage | None = None
        self._can_end = answer.sse and not answer.coding
        self._told = 0  # tokens of text at the last estimate
        self._mid_line = self._ended = False
        self.failed = ""
        self.bytes = 0

    def __call__(self, data: bytes) -> bytes | list[bytes]:
        """What the client gets for these bytes of the body; b"" is the end, or an empty frame."""
        if self.broken:
            return []
        try:
            self._read(data)
        except Exception as e:  # noqa: BLE001  the client's bytes go on; the row says that usage is incomplete
            self.failed = self.failed or f"{type(e).__name__}: {e}"
        if self._on_unreadable is not None and (why := self._unreadable()):
            self.broken = why
            self._on_unreadable(why)
            return []
        if self._gate is None:
            return data or []
        out = self._gate.feed(data) if data else self._gate.flush()
        return [out] if out else []

    def _read(self, data: bytes) -> None:
        self.bytes += len(data)
        self._decoder.feed(data)
        if data:
            self._mid_line = data[-1] not in b"\r\n"
        usage = self._parser.usage()
        if usage is not None and usage is not self._last and usage != self._last:
            self._last = usage
            self._on_growth(usage)
        if self.output_seen >= self._told + _STEP:
            self._told = self.output_seen
            self._on_growth(self._counted())

    def _unreadable(self) -> str:
        """Why the usage cannot be read any more; "" while it may be."""
        if why := self.failed or self._decoder.failed:
            return why
        if getattr(self._parser, "overflowed", False):
            return "an event was too large to be read"
        return "its framing is damaged" if getattr(self._parser, "damaged", False) else ""

    def _counted(self) -> wire.Usage:
        """What has been said, or the text if that is more; at four bytes a token, so that nothing is cut too early."""
        said = self._last or wire.Usage("")
        output = max(said.output, self._told * BYTES_PER_TOKEN // 4)
        return msgspec.structs.replace(said, output=output, source="estimate", complete=False)

    @property
    def output_seen(self) -> int:
        """Tokens of output that the text so far amounts to, on the high side."""
        return int(getattr(self._parser, "output_seen", 0))

    def ended(self) -> None:
        """The body came to its regular end; without this, close() finds one that broke off."""
        self._ended = True

    def close(self) -> wire.Usage | None:
        """The body has ended or broken off: the usage there is; not `complete` where anything could not be read."""
        try:
            self._decoder.close()
            self._parser.close()
        except Exception as e:  # noqa: BLE001  see above
            self.failed = self.failed or f"{type(e).__name__}: {e}"
        usage = self._parser.usage()
        self.failed = self._unreadable() or ("" if usage is not None else self.unknown_coding)
        unended = not self._ended and getattr(self._parser, "ends_with_body", False)
        if usage is not None and (self.failed or unended):
            usage = msgspec.structs.replace(usage, complete=False)
        return usage

    @property
    def can_end_with_event(self) -> bool:
        """Whether an error event may be written into this stream: not where it is compressed, or JSON after all."""
        return self._can_end and getattr(self._parser, "streams", True)

    @property
    def may_change_length(self) -> bool:
        """Whether bytes may be added or left out: its end must then not be told by a length."""
        return self._can_end

    def before_event(self) -> bytes:
        """What has to be written so that an event of ours can follow: an event cut in its middle becomes part of it."""
        return b"\n" if self._mid_line and (self._gate is None or self._gate.inside) else b""
