"""Who may have how much of what all bottles share: no number of greedy ones takes the last of it. Pure.

places 0 ................ total − reserved ........ total
       any bottle below `each`            only one that holds fewer than `few`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable


class Shares:
    """`total` places. One owner holds at most `each`; the last `reserved` are for owners that hold fewer than `few`."""

    def __init__(self, total: int, each: int, *, reserved: int, few: int) -> None:
        self._open = total - reserved
        self._total = total
        self._each = each
        self._few = few
        self._held: Counter[Hashable] = Counter()
        self.taken = 0

    def held(self, owner: Hashable) -> int:
        return self._held[owner]

    def take(self, owner: Hashable) -> bool:
        """Whether `owner` got another place; who holds fewer gets one whenever who holds more does."""
        held = self._held[owner]
        if held >= self._each or self.taken >= (self._total if held < self._few else self._open):
            return False
        self._held[owner] = held + 1
        self.taken += 1
        return True

    def give(self, owner: Hashable) -> None:
        """A place that was taken is free again."""
        self.taken -= 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
