"""A token bucket per bottle; pure: the caller passes the time."""

from __future__ import annotations


class Bucket:
    """`per_s` queries a second on average, and as many at once after a second's rest."""

    __slots__ = ("_at_ns", "_tokens", "per_s")

    def __init__(self, per_s: int, now_ns: int) -> None:
        self.per_s = per_s
        self._tokens = float(per_s)
        self._at_ns = now_ns

    def take(self, now_ns: int) -> bool:
        """Whether one more query is within the limit."""
        self._tokens = min(float(self.per_s), self._tokens + (now_ns - self._at_ns) * self.per_s / 1e9)
        self._at_ns = now_ns
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
