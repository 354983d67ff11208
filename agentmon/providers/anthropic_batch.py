"""Results of Anthropic message batches: JSON lines, in any order, each with a whole message.

Source: anthropics/anthropic-sdk-python, src/anthropic/types/messages/message_batch_individual_response.py.

Results may be asked for again and again. Within one answer a message counts once, by its id; the row's request id is
made of all ids, so that the ledger takes the same results only once. Batches are not created through agentmon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from agentmon import wire
from agentmon.providers.anthropic_usage import read_message
from agentmon.providers.jsonread import parse_object, table, text
from agentmon.providers.lines import Lines

_MOST = 100_000  # requests in a batch, by the provider's own limit


class BatchResults:
    """Parser of the lines; `complete` where every line was read.

    What is remembered of a message is a digest of its id: a hundred bytes each, at most _MOST of them.
    """

    ends_with_body = True

    def __init__(self) -> None:
        self._lines = Lines(self._line)
        self._seen: set[bytes] = set()
        self._ids = 0  # of all messages, in any order
        self._sum = wire.Usage("claude")
        self._whole = True

    def feed(self, data: bytes) -> None:
        self._lines.feed(data)

    def close(self) -> None:
        self._lines.close()

    @property
    def overflowed(self) -> bool:
        return self._lines.overflowed

    def _line(self, line: bytes) -> None:
        if not line.strip():
            return
        document = parse_object(line)
        result = table((document or {}).get("result"))
        if not result:
            self._whole = False
            return
        message = table(result.get("message"))
        usage = read_message(message)
        digest = hashlib.sha256(text(message.get("id")).encode()).digest()[:16]
        if usage is None or digest in self._seen:
            return
        if len(self._seen) >= _MOST:
            self._whole = False
            return
        self._seen.add(digest)
        self._ids ^= int.from_bytes(digest)
        s = self._sum
        self._sum = msgspec.structs.replace(
            s, model=usage.model, input=s.input + usage.input, cache_read=s.cache_read + usage.cache_read,
            cache_write_5m=s.cache_write_5m + usage.cache_write_5m,
            cache_write_1h=s.cache_write_1h + usage.cache_write_1h,
            output=s.output + usage.output, reasoning=s.reasoning + usage.reasoning,
        )  # fmt: skip

    def usage(self) -> wire.Usage | None:
        if not self._seen:
            return None
        raw = msgspec.json.encode({"messages": len(self._seen)})
        complete = self._whole and not self.overflowed
        return msgspec.structs.replace(self._sum, request_id=f"batch:{self._ids:032x}", complete=complete, raw=raw)


def parser(headers: Mapping[str, str]) -> BatchResults:
    return BatchResults()
