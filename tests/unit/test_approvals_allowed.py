"""Who sees and decides proposals: root all, an owner those of his bottles, and deciding only where it was granted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from agentmon import wire
from agentmon.channel import Peer
from agentmon.control.state import Bottle, Host, Job, Phase
from agentmon.daemon.ops_approvals import ApprovalOps
from agentmon.errors import AgentmonError, BadInput, Refused
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Grants, Settings

OWNER, OTHER = 1000, 1001


class Queue:
    """Two proposals, one of each owner's bottle."""

    def __init__(self) -> None:
        self.decided: list[tuple[int, str, int, str]] = []

    def waiting(self, may_see: Any) -> list[dict[str, Any]]:
        return [{"id": n, "bottle": name} for n, name in ((1, "mine"), (2, "yours")) if may_see(name)]

    def bottle_of(self, number: int) -> str:
        if number not in {1, 2}:
            raise BadInput(f"no proposal {number} waits", "waiting: 1, 2")
        return {1: "mine", 2: "yours"}[number]

    async def decide(self, number: int, verb: str, uid: int, reason: str) -> dict[str, Any]:
        self.decided.append((number, verb, uid, reason))
        shown = dict.fromkeys(("host", "method", "path", "detector", "place"), "x")
        return {**shown, "id": number, "reason": reason, "state": "approved"}


def ask(uid: int, op: str, granted: bool = False, **args: Any) -> tuple[Any, Queue, list[Any]]:
    """(the reply's value, the queue, rows of the audit)."""
    queue, audit, sent = Queue(), [], []
    job = Job(("job",), (), "/", OWNER, OWNER, (), tty=False, owner=OWNER)
    mine = Bottle(16, "mine", "r16", Phase.RUNNING, EffectivePolicy("mine", ()), job, 1)
    yours = replace(mine, slot=17, name="yours", job=replace(job, owner=OTHER))

    async def done(*row: Any) -> None:
        audit.append(row)

    daemon = SimpleNamespace(
        approvals=queue, host=Host(16, 20, bottles={16: mine, 17: yours}),
        settings=Settings(grants=Grants(approve=granted)), ops=SimpleNamespace(trail=SimpleNamespace(done=done)),
    )  # fmt: skip
    connection = SimpleNamespace(peer=Peer(1, uid, uid, frozenset((uid,))), send=sent.append)
    ops = ApprovalOps(daemon)  # type: ignore[arg-type]
    handler = ops.list if op == "approvals" else ops.decide
    asyncio.run(handler(connection, wire.Request(1, op, args)))  # type: ignore[arg-type]
    return sent[0].value, queue, audit


@pytest.mark.parametrize(("uid", "seen"), [(0, [1, 2]), (OWNER, [1]), (OTHER, [2]), (1002, [])])
def test_each_sees_what_waits_of_his_own_bottles(uid: int, seen: list[int]) -> None:
    assert [row["id"] for row in ask(uid, "approvals")[0]] == seen


@pytest.mark.parametrize(("uid", "granted", "number"), [(0, False, 1), (0, False, 2), (OWNER, True, 1)])
def test_who_may_decides_and_it_is_audited(uid: int, granted: bool, number: int) -> None:
    value, queue, audit = ask(uid, "approve", granted, id=number, reason="why not")
    assert value["state"] == "approved" and queue.decided == [(number, "approve", uid, "why not")]
    ((who, action, bottle, detail),) = audit
    assert (who, action, bottle) == (uid, "approve", queue.bottle_of(number))
    assert (detail["id"], detail["reason"], detail["result"]) == (number, "why not", "done")


@pytest.mark.parametrize(
    ("uid", "granted", "number", "error", "said"),
    [
        (OWNER, False, 1, Refused, "grants: {approve: true}"), (OWNER, True, 2, BadInput, "agentmon approvals list"),
        (OWNER, True, 9, BadInput, "agentmon approvals list"), (0, False, 9, BadInput, "waiting: 1, 2"),
    ],
)  # fmt: skip
def test_who_may_not_learns_nothing_of_others(
    uid: int, granted: bool, number: int, error: type[AgentmonError], said: str
) -> None:
    with pytest.raises(error) as caught:
        ask(uid, "reject", granted, id=number, reason="no")
    assert said in caught.value.hint and "yours" not in caught.value.message.replace("of yours", "")
