"""A token bucket; pure: the caller passes the time."""

from __future__ import annotations


class Bucket:
    """`size` tokens a period on average, and as many at once after a period's rest."""

    __slots__ = ("_at_ns", "_period_ns", "_tokens", "size")

    def __init__(self, size: int, now_ns: int, *, period_s: int = 1) -> None:
        self.size = size
        self._tokens = float(size)
        self._at_ns = now_ns
        self._period_ns = period_s * 1_000_000_000

    def take(self, now_ns: int, cost: int = 1) -> bool:
        """Whether `cost` more is within the limit; it is taken then."""
        self._tokens = min(float(self.size), self._tokens + (now_ns - self._at_ns) * self.size / self._period_ns)
        self._at_ns = now_ns
        if self._tokens < cost:
            return False
        self._tokens -= cost
        return True

    def resize(self, size: int) -> None:
        """Another limit from now on; what was spent stays spent."""
        self._tokens = max(0.0, self._tokens + size - self.size)
        self.size = size
