"""How often the tests of races and of kills at random moments repeat themselves: `make torture` says 100."""

from __future__ import annotations

import os


def rounds(few: int) -> int:
    """`few` in the suite, else what AGENTMON_ROUNDS says."""
    return int(os.environ.get("AGENTMON_ROUNDS", few))
