"""What the daemon lets a member of its group do with a bottle of his own, and with no other by naming it beside."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentmon import wire
from agentmon.control.state import Phase
from agentmon.daemon.ops import Ops
from agentmon.errors import Refused
from tests.unit.test_control_machine import host

MEMBER = 1000


def asked(uid: int, op: str, **args: Any) -> None:
    before = host(mine=Phase.RUNNING)
    mine = before.bottles[16]
    tree = SimpleNamespace(parent=SimpleNamespace(name="agentmon-of-no-test"))
    daemon = SimpleNamespace(
        host=before.put(replace(mine, job=replace(mine.job, owner=MEMBER))),
        kernel=SimpleNamespace(tree=tree),
        settings=SimpleNamespace(grants=SimpleNamespace(raise_budget=False)),
    )
    connection = SimpleNamespace(peer=SimpleNamespace(uid=uid, pid=os.getpid()))
    Ops(cast(Any, daemon))._authorise(cast(Any, connection), wire.Request(1, op, args))


@pytest.mark.parametrize("op", ["cut", "freeze", "resume", "kill"])
def test_all_is_roots_also_beside_a_bottle_of_ones_own(op: str) -> None:
    asked(MEMBER, op, bottle="mine")
    asked(0, op, all=True)
    for args in ({"all": True}, {"bottle": "mine", "all": True}):
        with pytest.raises(Refused, match=f"may not use {op}"):
            asked(MEMBER, op, **args)
