"""Of which bottle a policy is: that decides what is asked of who wants it."""

from __future__ import annotations

from enum import Enum


class Checks(Enum):
    OF_NEW = "new"  # a bottle that is to be started: nobody gets more than he may have
    OF_RUNNING = "running"  # it was granted when it began; where the host gives less by now, both amounts hold
