"""Reading what others wrote as JSON: every function takes anything, and none raises."""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]
MOST_VALUES = 2_000_000  # what is larger would take gigabytes as objects; a million embeddings' numbers are less


def parse_object(data: bytes) -> Json | None:
    """The JSON object in `data`; None for anything else, and for one of more than MOST_VALUES values."""
    if len(data) > MOST_VALUES and data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_VALUES:
        return None
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def count(value: object) -> int | None:
    """A token count as providers write it; None for what is absent, null, negative or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value:
        return None
    return int(min(value, 1 << 53))


def table(value: object) -> Json:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[Json]:
    """The objects in `value` if it is a list, else none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """`value` if it is text, shortened to what a name or an id may be; else ""."""
    return value[:200] if isinstance(value, str) else ""
