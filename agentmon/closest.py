"""Which known word somebody may have meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`, "" where none is like it."""
    return next(iter(get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)), "")
