"""FakeNetfilter: the protocol of spec.py without a kernel. Same errors, same verdicts (verdict.py), flows that can be tried.

For tests of those who use the protocol; the contract tests hold it to what HostNetfilter does.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from netfilter.errors import KernelRefused
from netfilter.render_bottle import REASONS
from netfilter.spec import EPOCH_MASK, Address, BottleNet, BottleRules, HostSpec, Learned, Mode, Proto
from netfilter.verdict import PROTOCOLS, Judge, own_networks

_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
_NS = 1_000_000_000


@dataclass(slots=True, eq=False)
class FakeFlow:
    """A connection that was opened; it lives until a change of rules ends it."""

    destination: Address
    proto: Proto
    port: int
    alive: bool = True


@dataclass(slots=True)
class _Bottle:
    net: BottleNet
    rules: BottleRules
    learned: list[tuple[Learned, int]] = field(default_factory=list)  # and when it ends
    flows: list[FakeFlow] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))


@dataclass(slots=True)
class FakeKernel:
    """What outlives an instance: two FakeNetfilters with one kernel are a daemon before and after its restart."""

    host: HostSpec | None = None
    bottles: dict[int, _Bottle] = field(default_factory=dict)
    dialled: list[Learned] = field(default_factory=list)


class FakeNetfilter:
    """Keeps netfilter.spec.Netfilter in memory.

    :param now_ns: the clock that learned addresses run out by.
    """

    def __init__(self, kernel: FakeKernel | None = None, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.kernel = FakeKernel() if kernel is None else kernel
        self._now_ns = now_ns
        self._known: set[int] = set()

    # ── the protocol ──

    def open_host(self, host: HostSpec) -> None:
        self.kernel.host = host

    def close_host(self) -> None:
        for slot in sorted(self.slots()):
            self.delete_bottle(slot)
        self.kernel.host = None
        self.kernel.dialled.clear()

    def create_bottle(self, net: BottleNet) -> None:
        if self.kernel.host is None:
            raise KernelRefused(errno.ENOENT, f"close bottle {net.slot}", "there is no host table")
        if net.slot in self.kernel.bottles:
            raise KernelRefused(errno.EEXIST, f"create namespace {net.netns}", "the name is taken")
        self.kernel.bottles[net.slot] = _Bottle(net, BottleRules(net.slot, 1, Mode.CLOSED))
        self._known.add(net.slot)

    def adopt_bottle(self, net: BottleNet) -> None:
        if net.slot not in self.kernel.bottles:
            raise KernelRefused(errno.ENODEV, f"device {net.veth}", "there is no such device")
        self._known.add(net.slot)

    def delete_bottle(self, slot: int) -> None:
        bottle = self.kernel.bottles.pop(slot, None)
        self._known.discard(slot)
        if bottle is not None:
            _end(bottle, lambda _: True)

    def apply(self, rules: BottleRules) -> None:
        if not 1 <= rules.epoch <= EPOCH_MASK:
            raise ValueError(f"epoch {rules.epoch}: 1 to {EPOCH_MASK} exist")
        bottle = self._bottle(rules.slot)
        fresh = bottle.rules.epoch != rules.epoch
        bottle.rules = rules
        if fresh:
            bottle.learned.clear()
        self._note(bottle, rules.learned)
        if fresh or rules.mode in {Mode.CUT, Mode.CLOSED}:
            self.end_refused(rules.slot)

    def learn(self, slot: int, entries: Sequence[Learned]) -> None:
        self._note(self._bottle(slot), entries)

    def permit_service(self, entries: Sequence[Learned]) -> None:
        self.kernel.dialled += entries

    def cut(self, slot: int) -> None:
        bottle = self._bottle(slot)
        bottle.rules = replace(bottle.rules, mode=Mode.CUT)

    def end_refused(self, slot: int) -> int:
        bottle = self._bottle(slot)
        judge = self._judge(bottle)
        return _end(bottle, lambda f: not judge.verdict(f.destination, _NUMBERS[f.proto], f.port).passes)

    def destroy_flows(self, slot: int) -> int:
        bottle = self.kernel.bottles.get(slot)
        return 0 if bottle is None else _end(bottle, lambda _: True)

    def refusals(self, slot: int) -> dict[str, int]:
        if slot not in self.kernel.bottles:
            raise KernelRefused(errno.ENOENT, f"read counter c{slot}_spoof", "there is no such counter")
        return dict(self.kernel.bottles[slot].refused)

    def slots(self) -> frozenset[int]:
        return frozenset(self.kernel.bottles)

    # ── what a job and the world would do ──

    def connect(self, slot: int, proto: Proto, destination: Address, port: int) -> FakeFlow:
        """Open a flow from a bottle.

        :raises ConnectionRefusedError: its rules refuse.
        """
        bottle = self.kernel.bottles[slot]
        learned = [e for e, end in bottle.learned if end > self._now_ns()]
        verdict = self._judge(bottle).verdict(destination, _NUMBERS[proto], port, learned)
        if not verdict.passes:
            bottle.refused[verdict.value] += 1
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{verdict.value}: {destination}")
        flow = FakeFlow(destination, proto, port)
        bottle.flows.append(flow)
        return flow

    def forge(self, slot: int) -> None:
        """Send a frame with somebody else's address from a bottle."""
        self.kernel.bottles[slot].refused["spoof"] += 1

    # ── inside ──

    def _bottle(self, slot: int) -> _Bottle:
        if slot not in self._known:
            raise KernelRefused(errno.ENOENT, f"bottle {slot}", "it was neither created nor adopted")
        return self.kernel.bottles[slot]

    def _judge(self, bottle: _Bottle) -> Judge:
        assert self.kernel.host is not None
        return Judge(bottle.rules, own_networks(self.kernel.host))

    def _note(self, bottle: _Bottle, entries: Sequence[Learned]) -> None:
        now = self._now_ns()
        bottle.learned = [(e, end) for e, end in bottle.learned if end > now]
        bottle.learned += [(e, now + e.timeout_s * _NS) for e in entries if e.timeout_s > 0]


def _end(bottle: _Bottle, which: Callable[[FakeFlow], bool]) -> int:
    ending = [flow for flow in bottle.flows if which(flow)]
    for flow in ending:
        flow.alive = False
    bottle.flows = [flow for flow in bottle.flows if flow.alive]
    return len(ending)
