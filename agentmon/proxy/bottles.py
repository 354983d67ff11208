"""What a worker knows of each bottle: its view and rules (agentmon.views), its routes' credentials, what was spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from agentmon import wire
from agentmon.addresses import Pool
from agentmon.credentials.secret import Secret
from agentmon.policy.rules import PolicySet
from agentmon.views import Views


@dataclass(frozen=True, slots=True)
class Bottle:
    """One bottle at one moment. `spent` fills the 403 body of a cut one; it is empty after an operator's cut."""

    view: wire.BottleView
    policy: PolicySet
    spent: dict[str, Any]
    credentials: Mapping[str, Secret] = field(default_factory=dict)

    @property
    def cut(self) -> bool:
        return self.view.mode == "cut"


class Bottles:
    """Slot → bottle. A slot that is not here is a stranger, whatever its address."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._views = Views()
        self._spent: dict[int, dict[str, Any]] = {}
        self._credentials: dict[int, tuple[str, dict[str, Secret]]] = {}  # of one run

    def set(self, view: wire.BottleView) -> None:
        """A new bottle, or a new view of one; a view that is no longer `cut` ends the cut.

        :raises RuleError: a rule does not parse; the view in force stays.
        """
        old = self._views.get(view.slot)
        self._views.set(view)
        if view.mode != "cut" or old is None or old.wire.run != view.run:
            self._spent.pop(view.slot, None)

    def give(self, slot: int, run: str, values: Mapping[str, str]) -> None:
        """All credentials of one run; those of an earlier time are gone.

        :raises BadInput: one could not be a header's value; then this run has none.
        """
        self._credentials.pop(slot, None)
        self._credentials[slot] = run, {name: Secret(value) for name, value in values.items()}

    def drop(self, slot: int) -> None:
        self._views.drop(slot)
        self._credentials.pop(slot, None)
        self._spent.pop(slot, None)

    def cut(self, slot: int, spent: dict[str, Any]) -> None:
        if self._views.get(slot) is not None:
            self._views.cut(slot, spent)
            self._spent[slot] = spent

    def at(self, slot: int) -> Bottle | None:
        view = self._views.get(slot)
        if view is None:
            return None
        run, credentials = self._credentials.get(slot, ("", {}))
        given = credentials if run == view.wire.run else {}
        return Bottle(view.wire, view.policy, self._spent.get(slot, {}), given)

    def slot_of(self, address: str) -> int | None:
        """The slot a source address belongs to; None for what is no bottle's."""
        try:
            return self._pool.slot_of(ip_address(address.partition("%")[0].removeprefix("::ffff:")))
        except ValueError:
            return None
