"""What a service knows of the bottles: the daemon's views with their rules parsed, by slot."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agentmon import wire
from agentmon.policy.rules import PolicySet, parse_rule

_generations = itertools.count(1)


@dataclass(frozen=True, slots=True)
class View:
    """One bottle at one time; replaced as a whole. `generation` is different for every View of this process."""

    wire: wire.BottleView
    policy: PolicySet
    generation: int
    spent: bool = False  # in mode cut: a budget is the cause; else an operator, or nobody said

    @property
    def cut_reason(self) -> str:
        """What a refusal in mode cut is reported as."""
        return "budget" if self.spent else "cut"

    @property
    def slot(self) -> int:
        return self.wire.slot

    @property
    def tenant(self) -> tuple[int, str]:
        """Who is charged for what is under way: the next bottle of the slot is another one."""
        return self.wire.slot, self.wire.run

    @property
    def mode(self) -> str:
        return self.wire.mode


class Views:
    """Bottles by slot. A view that cannot be read changes nothing: the one before stays in force."""

    def __init__(self) -> None:
        self._views: dict[int, View] = {}

    def set(self, message: wire.BottleView) -> View:
        """:raises agentmon.policy.rules.RuleError: a rule does not parse."""
        policy = PolicySet([parse_rule(text) for text in message.rules], message.inspected)
        old = self._views.get(message.slot)
        same_cut = old is not None and old.wire.run == message.run and old.mode == message.mode == "cut"
        view = View(message, policy, next(_generations), spent=same_cut and old is not None and old.spent)
        self._views[message.slot] = view
        return view

    def cut(self, slot: int, spent: Mapping[str, Any]) -> None:
        """The same view in mode cut; a set() of another mode ends it. :param spent: CutBottle.spent."""
        view = self._views.get(slot)
        if view is not None:
            changed = msgspec.structs.replace(view.wire, mode="cut")
            self._views[slot] = View(changed, view.policy, next(_generations), spent=bool(spent))

    def drop(self, slot: int) -> None:
        self._views.pop(slot, None)

    def get(self, slot: int) -> View | None:
        return self._views.get(slot)
