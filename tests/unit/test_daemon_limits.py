"""The daemon says how many bottles a limit on open files leaves room for."""

from __future__ import annotations

import resource

from agentmon.daemon.main import too_few_files


def test_a_narrow_limit_is_told_with_the_bottles_that_it_leaves_room_for() -> None:
    assert too_few_files(1024).startswith("a limit of 1024 open files leaves room for 0 bottles: raise it")
    assert "room for 127 bottles" in too_few_files(1024 + 8 * 127)
    assert too_few_files(1024 + 8 * 128) == too_few_files(resource.RLIM_INFINITY) == ""
