"""What a model will use and do, read from its name: `claude-scripted-in3000-out200-pace20` and the like.

    in read write out   tokens: uncached input, cache read, cache write, output (default in25 out40)
    chunks              deltas of a stream (default 8)          pace     milliseconds before each (default 0)
    status              the HTTP status that every call gets    drop     the connection is reset after so many deltas
    error               an error event after so many deltas     fake     text that looks like usage
    times               only the first so many calls of this model get `status`
    tool                the answer calls the first of the request's tools, instead of saying something

The output never exceeds the request's own limit; then the response says that the limit stopped it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r"-([a-z]+)(\d+)(?=-|$)")
_PART = {"in": "input", "read": "cache_read", "write": "cache_write", "out": "output"}
_PLAIN = ("chunks", "pace", "status", "drop", "error", "fake", "times", "tool")


@dataclass(frozen=True)
class Script:
    input: int = 25
    cache_read: int = 0
    cache_write: int = 0
    output: int = 40
    chunks: int = 8
    pace: int = 0
    status: int = 200
    drop: int = 0
    error: int = 0
    fake: int = 0
    times: int = 0
    tool: int = 0
    limited: bool = False  # the request's own limit was lower than `output`

    def output_at(self, delta: int) -> int:
        """Cumulative output tokens after `delta` of the deltas."""
        return self.output * delta // self.chunks

    def text(self, delta: int) -> str:
        if self.fake:
            return '"usage": {"input_tokens": 999999, "output_tokens": 999999}'
        return f"word{delta} – ✓ 🙂 "

    def piece(self, whole: str, delta: int) -> str:
        """What delta number `delta` brings of `whole`, cut anywhere."""
        step = len(whole) // self.chunks
        return whole[delta * step : None if delta == self.chunks - 1 else (delta + 1) * step]


def script(model: str, limit: int | None) -> Script:
    """The script of `model` under the output limit of the request."""
    values: dict[str, int] = {}
    if "scripted" in model:
        for word, number in _WORD.findall(model):
            if word in _PART or word in _PLAIN:
                values[_PART.get(word, word)] = int(number)
    values["chunks"] = max(1, values.get("chunks", 8))
    wanted = values.get("output", Script.output)
    limited = limit is not None and limit < wanted
    values["output"] = limit if limited and limit is not None else wanted
    return Script(**values, limited=limited)
