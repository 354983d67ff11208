"""Whether two patterns have a common member: what the lint of declarations asks of hosts and of paths.

"*" stands for one or more characters other than the separator, "**" for one or more of any
"""

from __future__ import annotations

import re
from functools import cache

_TOKEN = re.compile(r"\*\*|\*|[^*]")
_ANY, _WITHIN = "**", "*"


def hosts_overlap(a: str, b: str) -> bool:
    """Host patterns as in match.py: "*." in front is any depth below."""
    return _overlap(_host(a), _host(b), ".")


def paths_overlap(a: str, b: str) -> bool:
    """Path patterns as in match.py."""
    return _overlap(tuple(_TOKEN.findall(a)), tuple(_TOKEN.findall(b)), "/")


def path_covers(wide: str, narrow: str) -> bool:
    """Whether every path of `narrow` is one of `wide`: the second is then never asked behind the first.

    Its own wildcards are tried with and without separators in them; for patterns as declarations have them that is all.
    """
    whole = re.compile("".join({"**": ".+", "*": "[^/]+"}.get(t, re.escape(t)) for t in _TOKEN.findall(wide)))
    stand_ins = (("\x01", "\x02"), ("\x01\x01", "\x02/\x02"), ("\x01", "/\x02/"))
    return all(whole.fullmatch(narrow.replace("**", deep).replace("*", flat)) for flat, deep in stand_ins)


def _host(pattern: str) -> tuple[str, ...]:
    return (_ANY, *pattern[1:]) if pattern.startswith("*.") else tuple(pattern)


def _overlap(a: tuple[str, ...], b: tuple[str, ...], separator: str) -> bool:
    """Both are walked together, as two small automata; a wildcard may stay for any number of characters."""

    if not (_agree(a, b) and _agree(a[::-1], b[::-1])):
        return False

    @cache
    def reach(i: int, j: int) -> bool:
        if i == len(a) or j == len(b):
            return i == len(a) and j == len(b)
        if not _share(a[i], b[j], separator):
            return False
        after_a = (i + 1, i) if a[i] in (_ANY, _WITHIN) else (i + 1,)
        after_b = (j + 1, j) if b[j] in (_ANY, _WITHIN) else (j + 1,)
        return any(reach(x, y) for x in after_a for y in after_b if (x, y) != (i, j))

    return reach(0, 0)


def _agree(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether the plain text that both begin with is the same: most pairs are told apart here."""
    for x, y in zip(a, b, strict=False):
        if _ANY in (x, y) or _WITHIN in (x, y):
            return True
        if x != y:
            return False
    return True


def _share(a: str, b: str, separator: str) -> bool:
    """Whether some character is one of both tokens."""
    if _ANY in (a, b):
        return True
    if _WITHIN in (a, b):
        return (b if a == _WITHIN else a) != separator
    return a == b
