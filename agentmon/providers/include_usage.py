"""A chat stream's usage asked for on the client's behalf, and what that adds to the answer taken out again.

Asked for by `stream_options.include_usage`, the provider sends one extra chunk with empty `choices`, and `"usage":null`
in all others. A client that did not ask gets neither: its stream is byte for byte the one it would have got itself.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from agentmon.providers.jsonread import Json, parse_object, table
from agentmon.providers.sse import SseReader

_FLAG = b'{"stream_options":{"include_usage":true},'
_NULL = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


def include_usage(body: bytes) -> tuple[bytes, bool]:
    """The request with usage in its stream asked for, and whether that had to be added.

    Where the client said nothing the bytes stay as they are behind the added member; its own stream_options are kept.
    """
    request = parse_object(body)
    if request is None or request.get("stream") is not True:
        return body, False
    options = request.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True:
        return body, False
    start = body.find(b"{")
    if "stream_options" not in request:
        return body[:start] + _FLAG + body[start + 1 :], True
    request["stream_options"] = table(options) | {"include_usage": True}
    return msgspec.json.encode(request), True


def without_usage(raw: bytes) -> bytes:
    """This SSE event as a client that asked for no usage would have got it; b"" for the extra chunk."""
    if b'"usage"' not in raw or b'"choices"' not in raw:
        return raw
    chunk = _chunk(raw)
    if chunk is None or "usage" not in chunk:
        return raw
    if chunk.get("choices") == [] and isinstance(chunk["usage"], dict):
        return b""
    if chunk["usage"] is None and (b'"usage":null' in raw or _NULL.search(raw)):
        return _without_null(raw, chunk)
    return raw


def _chunk(raw: bytes) -> Json | None:
    """The chunk of an event; None for an event that is none."""
    if raw.startswith(b"data: {") and raw.endswith(b"}\n\n") and raw.count(b"\n") == 2 and b"\r" not in raw:
        return parse_object(raw[6:-2])  # as they nearly all are
    found: list[Json | None] = []
    reader = SseReader(lambda _name, data: found.append(parse_object(data)))
    reader.feed(raw)
    reader.close()
    return found[0] if len(found) == 1 else None


def _without_null(raw: bytes, chunk: Json) -> bytes:
    """`raw` without the null member of the chunk itself: a like one deeper inside is content and stays."""
    wanted: dict[str, Any] = {key: value for key, value in chunk.items() if key != "usage"}
    for place in reversed(list(_NULL.finditer(raw))[-8:]):
        less = raw[: place.start()] + raw[place.end() :]
        if _chunk(less) == wanted:
            return less
    return raw
