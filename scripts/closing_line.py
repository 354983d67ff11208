"""Adds pytest's closing lines, found in stdin, to one: "N passed, N failed, N skipped". Status 1: nothing passed."""

from __future__ import annotations

import re
import sys
from collections import Counter

_CLOSING = re.compile(r"^=*\s*\d+ \w+.* in [0-9.]+s")
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def main() -> int:
    total: Counter[str] = Counter()
    for line in sys.stdin:
        if _CLOSING.match(line):
            for number, word in _COUNT.findall(line):
                total["failed" if word.startswith("error") else word] += int(number)
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 0 if total["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
