"""Which beginnings of bodies were searched and had nothing: of a conversation that grows only the end is searched.

Pure. Thread-safe. Remembered are digests of body[:n * STEP], by run and host, the oldest forgotten first; no text.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

STEP = 8 << 10
OVERLAP = 16 << 10  # searched again before the new part: what began in the old one
_KEPT = 8192  # a run: 64 MiB of bodies


class Clean:
    """For one worker. `tag`: what else the result depends on (how the body is read)."""

    def __init__(self) -> None:
        self._runs: dict[str, OrderedDict[bytes, None]] = {}
        self._lock = threading.Lock()

    def until(self, run: str, host: str, tag: bytes, data: bytes) -> tuple[int, list[bytes]]:
        """How much of the beginning is known to be clean, and the digests to remember() if the rest is, too."""
        state = hashlib.blake2b(host.encode() + b"\0" + tag + b"\0", digest_size=20)
        view = memoryview(data)
        digests: list[bytes] = []
        for end in range(STEP, len(data) + 1, STEP):
            state.update(view[end - STEP : end])
            digests.append(state.copy().digest())
        with self._lock:
            known = self._runs.get(run, OrderedDict())
            clean = max((n + 1 for n, digest in enumerate(digests) if digest in known), default=0)
        return clean * STEP, digests

    def remember(self, run: str, digests: list[bytes]) -> None:
        with self._lock:
            known = self._runs.setdefault(run, OrderedDict())
            for digest in digests:
                known.pop(digest, None)
                known[digest] = None
            while len(known) > _KEPT:
                known.popitem(last=False)

    def forget(self, run: str) -> None:
        """The run is over, or is searched for other things."""
        with self._lock:
            self._runs.pop(run, None)
