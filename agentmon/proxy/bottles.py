"""What a worker knows of each bottle: its view and rules (agentmon.views), and what was spent when it was cut."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from agentmon import wire
from agentmon.addresses import Pool
from agentmon.policy.rules import PolicySet
from agentmon.views import Views


@dataclass(frozen=True, slots=True)
class Bottle:
    """One bottle at one moment. `spent` fills the 403 body of a cut one; it is empty after an operator's cut."""

    view: wire.BottleView
    policy: PolicySet
    spent: dict[str, Any]

    @property
    def cut(self) -> bool:
        return self.view.mode == "cut"


class Bottles:
    """Slot → bottle. A slot that is not here is a stranger, whatever its address."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._views = Views()
        self._spent: dict[int, dict[str, Any]] = {}

    def set(self, view: wire.BottleView) -> None:
        """A new bottle, or a new view of one; a view that is no longer `cut` ends the cut.

        :raises RuleError: a rule does not parse; the view in force stays.
        """
        old = self._views.get(view.slot)
        self._views.set(view)
        if view.mode != "cut" or old is None or old.wire.run != view.run:
            self._spent.pop(view.slot, None)

    def drop(self, slot: int) -> None:
        self._views.drop(slot)
        self._spent.pop(slot, None)

    def cut(self, slot: int, spent: dict[str, Any]) -> None:
        if self._views.get(slot) is not None:
            self._views.cut(slot, spent)
            self._spent[slot] = spent

    def at(self, slot: int) -> Bottle | None:
        view = self._views.get(slot)
        return None if view is None else Bottle(view.wire, view.policy, self._spent.get(slot, {}))

    def slot_of(self, address: str) -> int | None:
        """The slot a source address belongs to; None for what is no bottle's."""
        try:
            return self._pool.slot_of(ip_address(address.partition("%")[0].removeprefix("::ffff:")))
        except ValueError:
            return None
