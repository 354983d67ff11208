"""FakeNetfilter: the protocol of spec.py without a kernel: same errors, same verdicts, flows that can be tried.

Judges with the same pure code as the host (verdict.py); the contract tests hold both to the same cases.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from netfilter.errors import KernelRefused
from netfilter.render_bottle import REASONS
from netfilter.spec import EPOCH_MASK, Address, BottleNet, BottleRules, Holding, HostSpec, Learned, Mode, Proto
from netfilter.verdict import Judge, Verdict, own_networks

_NS = 1_000_000_000
_NUMBERS = {"tcp": 6, "udp": 17}


@dataclass(slots=True)
class FakeFlow:
    """A connection that was let through. `alive` turns false when a change ends it."""

    destination: Address
    proto: Proto
    port: int
    alive: bool = True


@dataclass(slots=True)
class _Bottle:
    net: BottleNet
    rules: BottleRules
    learned: dict[Learned, int] = field(default_factory=dict)  # timeout_s 0 → end
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    flows: list[FakeFlow] = field(default_factory=list)


class FakeNetfilter:
    """Keeps netfilter.spec.Netfilter.

    :param now_ns: a clock that tests can move.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self.host: HostSpec | None = None
        self.bottles: dict[int, _Bottle] = {}
        self.dialled: dict[Learned, int] = {}

    def open_host(self, host: HostSpec) -> None:
        self.host = host

    def close_host(self) -> None:
        self.bottles.clear()
        self.dialled.clear()
        self.host = None

    def create_bottle(self, net: BottleNet) -> None:
        if net.slot in self.bottles:
            raise KernelRefused(errno.EEXIST, f"create namespace {net.netns}", "the name is taken")
        self.bottles[net.slot] = _Bottle(net, BottleRules(net.slot, EPOCH_MASK, Mode.CLOSED))

    def attach_bottle(self, net: BottleNet, namespace: str, inode: int) -> Holding:
        self.create_bottle(net)
        return Holding()

    def hold_again(self, slot: int) -> tuple[str, ...]:
        self._bottle(slot)
        return ()

    def adopt_bottle(self, net: BottleNet) -> None:
        self._bottle(net.slot)

    def delete_bottle(self, slot: int) -> None:
        bottle = self.bottles.pop(slot, None)
        for flow in bottle.flows if bottle is not None else ():
            flow.alive = False

    def apply(self, rules: BottleRules) -> None:
        if self.put(rules):
            self.end_refused(rules.slot)

    def put(self, rules: BottleRules) -> bool:
        if not 1 <= rules.epoch <= EPOCH_MASK:
            raise ValueError(f"epoch {rules.epoch}: 1 to {EPOCH_MASK} exist")
        bottle = self._bottle(rules.slot)
        fresh = bottle.rules.epoch != rules.epoch
        bottle.rules = rules
        if fresh:
            bottle.learned.clear()
        _note(bottle.learned, rules.learned, self._now_ns())
        return fresh or rules.mode in {Mode.CUT, Mode.CLOSED}

    def plan(self, rules: BottleRules) -> list[str]:
        return [f"rules of bottle {self._bottle(rules.slot).net.slot}: {rules.mode.value}, epoch {rules.epoch}"]

    def learn(self, slot: int, entries: Sequence[Learned]) -> None:
        _note(self._bottle(slot).learned, entries, self._now_ns())

    def permit_service(self, entries: Sequence[Learned]) -> None:
        _note(self.dialled, entries, self._now_ns())

    def cut(self, slot: int) -> None:
        bottle = self._bottle(slot)
        bottle.rules = replace(bottle.rules, mode=Mode.CUT)

    def walk(self, slot: int) -> Callable[[], Sequence[FakeFlow]]:
        flows = tuple(self._bottle(slot).flows)
        return lambda: flows

    def end_refused(self, slot: int, walked: Sequence[FakeFlow] | None = None) -> int:
        bottle, judge = self._bottle(slot), self._judge(slot)
        learned = (*bottle.rules.learned, *bottle.learned)  # a live flow outlasts its address
        return self._end(slot, lambda f: not judge.verdict(f.destination, _NUMBERS[f.proto], f.port, learned).passes)

    def destroy_flows(self, slot: int) -> int:
        return self._end(slot, lambda _: True) if slot in self.bottles else 0

    def refusals(self, slot: int) -> dict[str, int]:
        return dict(self._bottle(slot).counters)

    def slots(self) -> frozenset[int]:
        return frozenset(self.bottles)

    # ── what a test does with it ──

    def packet(self, slot: int, destination: Address, proto: Proto, port: int) -> Verdict:
        """The verdict on a new flow, counted if it is a refusal."""
        bottle, now = self._bottle(slot), self._now_ns()
        learned = [key for key, end in bottle.learned.items() if end > now]
        verdict = self._judge(slot).verdict(destination, _NUMBERS[proto], port, learned)
        if not verdict.passes:
            bottle.counters[verdict.value] += 1
        return verdict

    def connect(self, slot: int, destination: Address, port: int, proto: Proto = "tcp") -> FakeFlow:
        """:raises ConnectionRefusedError: the rules do not let it through."""
        verdict = self.packet(slot, destination, proto, port)
        if not verdict.passes:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{destination} port {port}: {verdict.value}")
        flow = FakeFlow(destination, proto, port)
        self._bottle(slot).flows.append(flow)
        return flow

    def _bottle(self, slot: int) -> _Bottle:
        try:
            return self.bottles[slot]
        except KeyError:
            raise KernelRefused(errno.ENOENT, f"bottle {slot}", "it was neither created nor adopted") from None

    def _judge(self, slot: int) -> Judge:
        own = () if self.host is None else own_networks(self.host)
        return Judge(self._bottle(slot).rules, own)

    def _end(self, slot: int, ends: Callable[[FakeFlow], bool]) -> int:
        bottle = self._bottle(slot)
        ending = [flow for flow in bottle.flows if ends(flow)]
        for flow in ending:
            flow.alive = False
        bottle.flows = [flow for flow in bottle.flows if flow.alive]
        return len(ending)


def _note(into: dict[Learned, int], entries: Iterable[Learned], now_ns: int) -> None:
    for e in entries:
        if e.timeout_s > 0:
            key = Learned(e.address, e.proto, e.ports, 0)
            into[key] = max(now_ns + e.timeout_s * _NS, into.get(key, 0))
