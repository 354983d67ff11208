"""Who holds, whether it lives, and who may say what."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

from agentmon.ledger.owner import alive, owner_of
from agentmon.ledger.server import Role, Roles
from tests.support.ledger_rig import until


def test_a_process_lives_until_it_ends_zombies_are_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = owner_of(child.pid)
    assert alive(owner) and alive(owner_of(os.getpid()))
    child.kill()
    until(lambda: not alive(owner), "a killed child, not yet reaped, is dead")
    child.communicate()
    assert not alive(owner)
    assert not alive(owner_of(child.pid)), "gone before it was looked at"


def test_another_process_with_its_pid_or_another_boot_is_not_it() -> None:
    me = owner_of(os.getpid())
    assert not alive(dataclasses.replace(me, start=me.start + 1))
    assert not alive(dataclasses.replace(me, boot="another"))


def test_roles_by_uid() -> None:
    roles = Roles(frozenset({0}), frozenset({990}))
    assert [roles.of(uid) for uid in (0, 990, 1000)] == [Role.DAEMON, Role.PROXY, Role.NOBODY]
    assert set(Role.PROXY.may_ask) < set(Role.DAEMON.may_ask)
    assert Role.NOBODY.may_ask == ()
