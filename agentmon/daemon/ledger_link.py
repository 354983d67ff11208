"""The daemon's side of the ledger: opens and closes runs, sets budgets, records enforcements, reads totals."""

from __future__ import annotations

from typing import Any

from agentmon import wire
from agentmon.control.state import Bottle
from agentmon.daemon.services import Service
from agentmon.errors import BadInput, Refused

OWN_SCOPES = frozenset({"agent", "bottle"})  # their budgets belong to one run: nobody else is charged there


class LedgerLink:
    """:raises AgentmonError: from every call, when the ledger is away or refuses."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _call(self, message: Any) -> Any:
        answer = await self._service.call(message)
        return getattr(answer, "value", None)

    async def open(self, bottle: Bottle) -> None:
        """Idempotent by run id."""
        policy = bottle.policy
        await self._call(
            wire.OpenRun(
                self._service.next_id(),
                bottle.slot,
                bottle.name,
                bottle.run,
                policy.agent,
                policy.scopes,
                policy.weights,
            )
        )

    async def close(self, bottle: Bottle) -> None:
        await self._call(wire.CloseRun(self._service.next_id(), bottle.slot, bottle.run))

    async def totals(self, slot: int) -> list[dict[str, Any]]:
        return list(await self._call(wire.Totals(self._service.next_id(), slot)) or [])

    async def spent(self, slot: int) -> list[dict[str, Any]]:
        """The lines of totals() that decide for the bottle and are spent now."""
        lines = await self.totals(slot)
        return [line for line in lines if line["governs"] and line["used"] >= line["tokens"]]

    async def set_budget(self, bottle: Bottle, provider: str, tokens: int, uid: int) -> None:
        """Set the budget that was spent; else the bottle's own, or its agent's where that is what governs.

        :raises Refused: others are charged there too, and `uid` is not root's.
        """
        provider = provider or bottle.policy.provider
        spent = bottle.spent or await self._own(bottle.slot, provider)
        scope, name = str(spent.get("scope", "bottle")), str(spent.get("name", bottle.name))
        if uid != 0 and scope not in OWN_SCOPES:
            what = f"{scope} {name} spent its {spent['provider']} budget, {spent['used']} of {spent['tokens']} tokens"
            hint = f"sudo agentmon resume {bottle.name} --budget {spent['provider']}={tokens}"
            raise Refused(f"{what}: others are charged to it as well, and only root raises it", hint)
        if not provider:
            providers = sorted({b.provider for s in bottle.policy.scopes for b in s.budgets})
            if len(providers) != 1:
                raise BadInput(
                    f"which provider's budget is meant? {bottle.name} has {', '.join(providers) or 'none'}",
                    f"agentmon resume {bottle.name} --budget PROVIDER={tokens}",
                )
            provider = providers[0]
        run = bottle.run if scope in OWN_SCOPES else ""
        budget = wire.BudgetDef(provider, tokens, str(spent.get("per", "run")))
        await self._call(wire.SetBudget(self._service.next_id(), scope, name, run, budget, uid))

    async def _own(self, slot: int, provider: str) -> dict[str, Any]:
        """The nearest of the budgets that are the bottle's alone and govern it; {} where there is none."""
        for line in await self.totals(slot):
            if line["scope"] in OWN_SCOPES and line["governs"] and line["provider"] == provider:
                return line
        return {}

    async def set_budget_at(self, scope: str, name: str, budget: wire.BudgetDef, uid: int) -> None:
        """Set the budget of one scope, whoever is charged to it. :raises AgentmonError: nobody is; not a scope."""
        await self._call(wire.SetBudget(self._service.next_id(), scope, name, "", budget, uid))

    async def enforced(self, bottle: Bottle, policy: str, trigger: str, by: str, latency_ns: int, result: str) -> None:
        await self._call(
            wire.Enforced(
                self._service.next_id(), bottle.slot, bottle.name, bottle.run, policy, trigger, by, latency_ns, result
            )
        )

    async def proposed(self, bottle: Bottle, asked: wire.Propose) -> int:
        """Record a proposal; its number."""
        m, id = asked, self._service.next_id()
        texts = (m.host, m.method, m.path, m.detector, m.where, m.context)
        return int(await self._call(wire.Proposed(id, bottle.name, bottle.run, "secret", *texts)))

    async def decide(self, number: int, state: str, uid: int | None, reason: str) -> None:
        await self._call(wire.Decide(self._service.next_id(), number, state, uid, reason))

    async def undecided(self, run: str, reason: str) -> None:
        """What an earlier daemon had asked of this run is withdrawn."""
        await self._call(wire.Undecided(self._service.next_id(), run, reason))

    async def audit(self, uid: int, action: str, target: str, detail: dict[str, Any]) -> None:
        await self._call(wire.Audit(self._service.next_id(), uid, action, target, detail))
