"""The elements of one JSON array, cut incrementally out of a byte stream: Gemini's framing without `alt=sse`.

Only brackets and strings are followed, in bytes; an element is handed on whole. One of more than `cap` bytes is dropped
and flagged.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from agentmon.providers.sse import EVENT_CAP

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')


class ArrayReader:
    """Calls `on_element(data)` for each object or array in the outermost one; `ended` once that has closed.

    Plain values between them are ignored: no protocol has them there.
    """

    def __init__(self, on_element: Callable[[bytes], None], cap: int = EVENT_CAP) -> None:
        self._on_element = on_element
        self._cap = cap
        self._element = bytearray()
        self._depth = 0  # 1: between elements
        self._in_string = self._escaped = False
        self._dropping = False
        self.overflowed = self.ended = False

    def feed(self, data: bytes) -> None:
        at = kept = 0
        while at < len(data) and not self.ended:
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(data, at)
            if found is None:
                break
            at = found.end()
            mark = found[0]
            if mark == b"\\":
                self._escaped = True
            elif mark == b'"':
                self._in_string = not self._in_string
            elif mark in b"{[":
                self._depth += 1
                if self._depth == 2:
                    kept = found.start()
            else:
                self._depth -= 1
                if self._depth == 1:
                    self._keep(data[kept:at])
                    self._element_ended()
                self.ended = self._depth <= 0
        if self._depth >= 2:
            self._keep(data[kept:])

    def _keep(self, data: bytes) -> None:
        if self._dropping or len(self._element) + len(data) > self._cap:
            self._dropping = self.overflowed = True
            self._element.clear()
        else:
            self._element += data

    def _element_ended(self) -> None:
        element, dropped = bytes(self._element), self._dropping
        self._element.clear()
        self._dropping = False
        if not dropped:
            self._on_element(element)
