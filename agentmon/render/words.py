"""One value as text. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, tzinfo


def printable(text: str) -> str:
    """`text` with everything that is not printable escaped: names and command lines come from jobs, and a terminal
    would obey what they write."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def tokens(count: int | None) -> str:
    """200000 → "200,000"; None → "-"."""
    return "-" if count is None else f"{count:,}"


def duration(ns: int) -> str:
    """The two largest units: "850 µs", "12.3 ms", "4.2 s", "3 min 20 s", "5 h 12 min", "2 d 3 h"."""
    if ns < 1_000_000:
        return f"{ns / 1_000:.0f} µs"
    if ns < 1_000_000_000:
        return f"{ns / 1_000_000:.1f} ms"
    seconds = ns / 1_000_000_000
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, name, small, rest in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small} {rest}"
    raise AssertionError(ns)


def clock(rfc3339: str, zone: tzinfo | None = None) -> str:
    """The time of day, "03:04:05", of an RFC 3339 text in `zone` (None: the machine's); what is no time is kept."""
    try:
        moment = datetime.fromisoformat(rfc3339[:19] + "+00:00")
    except ValueError:
        return printable(rfc3339)
    return f"{moment.astimezone(zone):%H:%M:%S}"


def listed(words: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *rest, last = list(words) or [""]
    return f"{', '.join(rest)} and {last}" if rest else last


def command(argv: Iterable[str], width: int = 60) -> str:
    """A command line on one line, shortened."""
    text = printable(" ".join(argv))
    return text if len(text) <= width else text[: width - 1] + "…"
