"""The sizes that answers of each model have had so far: what admission takes as likely, and the file keeps.

The file has one histogram for each model, by what requests call it. Pure; changed ones are taken with each batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_MODELS = 256  # kept; a job may name any number of them
_ENOUGH = 50  # answers, before their sizes say something
_FADE = 1000  # answers, after which the older half counts half
_STEPS = 4  # sizes a doubling: a bound is at most a quarter too large

Key = tuple[str, str]  # provider, model
Steps = Mapping[int, int]  # step of sizes to how many answers had one of it; _step()


@dataclass(slots=True)
class _Sizes:
    """A histogram: how many answers had a size of each step."""

    steps: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, tokens: int) -> None:
        step = _step(tokens)
        self.steps[step] = self.steps.get(step, 0) + 1
        self.count += 1
        if self.count >= _FADE:
            self.steps = {at: n // 2 for at, n in self.steps.items() if n > 1}
            self.count = sum(self.steps.values())

    def bound(self) -> int | None:
        if self.count < _ENOUGH:
            return None
        above = self.count // 100
        for step in sorted(self.steps, reverse=True):
            above -= self.steps[step]
            if above < 0:
                return _top(step)
        return None


class Learned:
    """Sizes of output by (provider, model).

    :param known: what an earlier process learned, the one that was not seen for longest first.
    """

    def __init__(self, known: Iterable[tuple[Key, Steps]] = ()) -> None:
        self._models: dict[Key, _Sizes] = {}
        self._changed: dict[Key, None] = {}
        for key, steps in known:
            self._models[key] = _Sizes(dict(steps), sum(steps.values()))

    def add(self, provider: str, model: str, output: int) -> None:
        """An answer of `output` tokens that the provider told completely."""
        key = provider, model
        sizes = self._models.pop(key, None) or _Sizes()
        self._models[key] = sizes  # the one that was not seen for longest goes first
        self._changed.pop(key, None)
        self._changed[key] = None
        if len(self._models) > _MODELS:
            gone = next(iter(self._models))
            del self._models[gone]
            self._changed[gone] = None
        sizes.add(output)

    def take(self) -> dict[Key, Steps | None]:
        """What has changed since it was last asked, in the order of use; None: forgotten."""
        changed, self._changed = self._changed, {}
        return {key: dict(self._models[key].steps) if key in self._models else None for key in changed}

    def likely(self, provider: str, model: str, output: int) -> int:
        """Tokens that an answer will hardly exceed; at most `output`, which is the request's own bound."""
        sizes = self._models.get((provider, model))
        bound = sizes.bound() if sizes is not None else None
        return output if bound is None else min(bound, output)


def _step(tokens: int) -> int:
    """The number of the step that `tokens` lies in: _STEPS to each doubling."""
    doubling = max(tokens, _STEPS).bit_length() - _STEPS.bit_length()
    return doubling * _STEPS + (max(tokens, 0) >> doubling)


def _top(step: int) -> int:
    """The largest number of tokens in a step."""
    if step < _STEPS:
        return step
    doubling, part = divmod(step, _STEPS)
    return ((part + _STEPS + 1) << (doubling - 1)) - 1
