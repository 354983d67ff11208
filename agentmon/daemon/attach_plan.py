"""Applying the plans of attach and detach: one method per action; the rest of a plan is as for any bottle."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentmon.control import actions as a
from agentmon.control import events as e
from agentmon.control.state import Attached, Bottle
from agentmon.daemon import attach
from agentmon.errors import AgentmonError, BadInput
from netfilter.spec import Holding

if TYPE_CHECKING:
    from agentmon.daemon.app import Daemon

_ROUNDS = 50  # of looking for processes that were forked meanwhile
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)


class Attaching:
    """What a daemon does to processes and namespaces that others started."""

    def __init__(self, daemon: Daemon) -> None:
        self._d = daemon
        self._found: dict[int, tuple[Holding, int]] = {}  # slot → what the host shuts, connections ended

    async def hold(self, bottle: Bottle, attached: Attached) -> None:
        """:raises BadInput: its own root could undo what holds it; what was done is undone by the plan's end."""
        held = await self._d.in_kernel(self._d.kernel.hold, bottle.slot)
        self._found[bottle.slot] = (held, 0)
        if held.open and not _is_hosts(attached.namespace):
            raise BadInput(
                f"{attached.what} is rootless: its user namespace owns its network, and {', '.join(held.open)}"
                " leads out where no rule of the host sees it, so its own root could undo what holds it",
                "start it with --network=none (attach gives it a way out), or as root's container",
            )

    async def programs(self, action: a.AttachPrograms) -> None:
        await self._d.in_kernel(self._d.kernel.attach_programs, action.slot)

    async def move_in(self, action: a.MoveIn) -> None:
        """Until none is left outside: a process may fork while it is moved."""
        attached, tree = self._attached(action.slot), self._d.kernel.tree
        for _ in range(_ROUNDS):
            inside = set(tree.processes(action.slot))
            outside = [pid for pid in attach.processes(attached.inode) if pid not in inside]
            if not outside:
                return
            tree.move_in(action.slot, outside)
        raise AgentmonError(f"{attached.what} makes processes faster than they can be moved", "stop it, then try again")

    async def end_older(self, action: a.EndOlder) -> None:
        ended = await self._d.in_kernel(self._d.kernel.end_older, action.slot)
        self._found[action.slot] = (self._found[action.slot][0], ended)

    async def holds(self, action: a.Holds) -> None:
        """The last step: tell the controller what holds it."""
        attached = self._attached(action.slot)
        held, ended = self._found.pop(action.slot)
        if self._d.sightings is not None:
            self._d.sightings.opened(action.slot)
        pids = self._d.kernel.tree.processes(action.slot)
        layers = () if held.open else ("host-nft",)
        layers += ("bottle-nft", *(("bpf",) if pids else ()), "resolver", "relay", "proxy")
        known = replace(attached, layers=layers, notes=_notes(attached, held, pids))
        self._d.started_attached()
        self._d.runner.dispatch(e.AttachFinished(action.slot, action.request, known, ended))

    async def let_go(self, action: a.LetGo) -> None:
        bottle = self._d.host.bottles.get(action.slot)
        if bottle is None or bottle.attached is None or bottle.attached.cgroup:
            return
        tree = self._d.kernel.tree
        if tree.job(action.slot).is_dir():
            tree.freeze(action.slot, frozen=False)
            tree.move_out(action.slot, Path(bottle.attached.came_from or "/nowhere"))

    def _attached(self, slot: int) -> Attached:
        bottle = self._d.host.bottles.get(slot)
        if bottle is None or bottle.attached is None:
            raise AgentmonError(f"the bottle in slot {slot} is gone")
        return bottle.attached


def _notes(attached: Attached, held: Holding, pids: list[int]) -> tuple[str, ...]:
    """What people have to know of how it is held."""
    notes = []
    if not attached.cgroup and pids:
        notes.append(f"{len(pids)} processes were moved to a cgroup of their own: they shared one with others")
    if not pids:
        notes.append("no process is in it yet: those that enter later are held by packet rules, not by BPF")
    others = len(set(attach.processes(attached.inode)) - set(pids))
    if pids and others:
        notes.append(f"{others} processes of other cgroups share its network: held by packet rules, not by BPF")
    if held.open:
        notes.append(
            f"{', '.join(held.open)} leads out where no rule of the host sees it: held inside and by BPF, which root in"
            " there could undo"
        )
    return tuple(notes)


def _is_hosts(namespace: str) -> bool:
    """Whether the user namespace that owns a network namespace is the host's."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(fd, _NS_GET_USERNS)
        try:
            return os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino
        finally:
            os.close(owner)
    finally:
        os.close(fd)
