"""How much one bottle may have collected at a time, over all its connections: others need memory too. Pure."""

from __future__ import annotations

BOTTLE_BYTES = 256 << 20  # bodies, answers that are held, messages; of one bottle in one worker


class Shares:
    """Bytes taken, by slot."""

    def __init__(self, most: int = BOTTLE_BYTES) -> None:
        self._most = most
        self._taken: dict[int, int] = {}

    def take(self, slot: int, count: int) -> bool:
        """Whether `count` more bytes are there; nothing is taken where they are not."""
        now = self._taken.get(slot, 0) + count
        if now > self._most:
            return False
        self._taken[slot] = now
        return True

    def give(self, slot: int, count: int) -> None:
        left = self._taken.get(slot, 0) - count
        if left > 0:
            self._taken[slot] = left
        else:
            self._taken.pop(slot, None)

    def taken(self, slot: int) -> int:
        return self._taken.get(slot, 0)
