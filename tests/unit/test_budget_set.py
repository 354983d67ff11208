"""Who may set the budget of a scope that others are charged to: root, whatever else is in the request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentmon import wire
from agentmon.daemon.ops import Ops
from agentmon.errors import Refused


class Asked(Exception):
    """The ledger would be told."""


class Ledger:
    async def set_budget_at(self, *_: Any) -> None:
        raise Asked


@pytest.mark.parametrize(("uid", "outcome"), [(1000, Refused), (0, Asked)])
def test_a_scope_is_set_by_root_only_also_with_a_bottle_of_ones_own(uid: int, outcome: type[Exception]) -> None:
    daemon = SimpleNamespace(providers={"claude": None}, ledger=Ledger())
    connection = SimpleNamespace(peer=SimpleNamespace(uid=uid))
    args = {"bottle": "mine", "scope": "host", "name": "host", "budget": "claude=5", "per": "day"}
    with pytest.raises(outcome):
        asyncio.run(Ops(cast(Any, daemon))._budget_set(cast(Any, connection), wire.Request(1, "budget_set", args)))
