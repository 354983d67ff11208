"""What `agentmon posture` asks the daemon: each bottle beside the kernel now, and what only it knows.

Bottles are compared a few at a time, in turn, so that a report stays quick on a host with a thousand of them; each
comparison is a listing of that bottle's table and a lookup of every element of its policy.
"""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from agentmon.control.state import Bottle, Phase
from agentmon.daemon.kernel import Kernel
from agentmon.errors import AgentmonError
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import Depth, PolicySet, RuleError
from agentmon.providers import match
from agentmon.providers.declaration import Provider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentmon.daemon.app import Daemon

AT_ONCE = 32  # bottles compared in one report
PROCESSES = 1000  # of one bottle that are looked at
_DNS_PORTS = (53, 853)
_WIDE = 1 << 16
_METADATA = ("169.254.169.254", "168.63.129.16", "fd00:ec2::254")


class Posture:
    """For one daemon; `report` is the value of the control request `posture`."""

    def __init__(self, daemon: Daemon) -> None:
        self._d = daemon
        self._next = 0  # slot after the last one that was compared

    async def report(self) -> dict[str, Any]:
        """A plain value; see agentmon.posture.facts.Daemon."""
        daemon = self._d
        bottles = [b for b in daemon.host.bottles.values() if b.phase not in {Phase.STARTING, Phase.STOPPING}]
        turn = self._turn([b.slot for b in bottles])
        try:
            host = await daemon.healing.differences(None)
            host += [f"program {name} is not in force" for name in await daemon.in_kernel(daemon.kernel.bpf.missing)]
        except (OSError, AgentmonError) as error:
            host = [f"could not be compared: {error}"]
        guarded = await daemon.in_kernel(daemon.kernel.bpf.guarded)
        return {
            "host": host,
            "left_out": daemon.kernel.left_out(),
            "events_lost": daemon.log.lost,
            "services": [
                {"name": n, "pid": s.pid, "up": s.channel is not None} for n, s in sorted(daemon.services.items())
            ],
            "bottles": [await self._bottle(b, b.slot in turn, guarded) for b in bottles],
        }

    def _turn(self, slots: list[int]) -> frozenset[int]:
        ahead = sorted(slots, key=lambda slot: (slot < self._next, slot))
        turn = list(itertools.islice(ahead, AT_ONCE))
        self._next = turn[-1] + 1 if turn else 0
        return frozenset(turn)

    async def _bottle(self, bottle: Bottle, compared: bool, guarded: Mapping[int, int]) -> dict[str, Any]:
        policy, kernel = bottle.policy, self._d.kernel
        pids = kernel.tree.processes(bottle.slot)
        value: dict[str, Any] = {
            "name": bottle.name, "attached": bottle.attached is not None, "lacks": bottle.lacks,
            "observe": policy.observe, "io_uring": policy.io_uring, "home": policy.home, "guard": policy.guard,
            "unix": list(policy.unix), "pids": pids[:PROCESSES],
            "guarded": [p for p in pids if guarded.get(p) == bottle.slot],
            "compared": compared, **judged(policy, self._d.providers),
        }  # fmt: skip
        if compared:
            try:
                value["rules"] = await self._d.healing.differences(bottle.slot)
                value["programs"] = await self._d.in_kernel(programs_differing, kernel, bottle)
            except (OSError, AgentmonError) as error:
                value["rules"] = [f"could not be compared: {error}"]
        return value


def programs_differing(kernel: Kernel, bottle: Bottle) -> list[str]:
    """Runs in the kernel thread. :raises OSError: the kernel refused to say."""
    mode = "observe" if bottle.policy.observe else "enforce"
    return kernel.bpf.differing(kernel.compiled(bottle, mode).bpf)


def judged(policy: EffectivePolicy, providers: Mapping[str, Provider]) -> dict[str, list[str]]:
    """What of a policy is worth a person's look; pure."""
    direct = [r for r in policy.rules if r.depth is Depth.DIRECT and not r.deny]
    dns = [r.text for r in direct if any(low <= port <= high for low, high in r.ports for port in _DNS_PORTS)]
    wide = [r.text for r in direct if r.network is not None and r.network.num_addresses > _WIDE]
    rules = PolicySet(policy.rules)
    open_ = [
        a for a in _METADATA if any(rules.decide_address(ip_address(a), port, "tcp").allowed for port in (80, 443))
    ]
    return {"direct_dns": dns, "wide": wide, "metadata": open_, "own_keys": _own_keys(policy, rules, providers)}


def _own_keys(policy: EffectivePolicy, rules: PolicySet, providers: Mapping[str, Provider]) -> list[str]:
    """Metered hosts that the policy allows and no route of which puts a credential in."""
    found = []
    for provider in providers.values():
        for host in provider.hosts:
            name = host.removeprefix("*.")
            try:
                allowed = rules.decide_name(name, 443).allowed
            except RuleError:
                continue
            routed = any(r.auth_credential or r.auth_none for r in policy.routes if match.host_matches(r.host, name))
            if allowed and not routed:
                found.append(host)
    return found
