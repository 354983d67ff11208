"""`--since`: a moment as people write it. Pure but for the time it is told."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from agentmon.errors import BadInput

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def since_ns(text: str | None, now_ns: int) -> int:
    """Nanoseconds since the epoch of "90s", "15m", "2h", "7d", "1w" ago, or of an ISO date or time (without a zone:
    local).

    :raises BadInput: neither.
    """
    if not text:
        return 0
    if found := re.fullmatch(r"(\d{1,9})([smhdw])", text):
        return now_ns - int(found[1]) * _UNITS_S[found[2]] * 1_000_000_000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f'--since "{text}" is no time', "write 15m, 2h, 7d, 2026-01-31, or 2026-01-31T12:00:00Z"
        ) from None
    return int(moment.astimezone(UTC).timestamp()) * 1_000_000_000
