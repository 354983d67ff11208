"""What the ledger keeps in memory, and the changes of one batch on their way to the disk. Values only, no decisions.

The memory is a copy of what the file says (plus the progress of streams in flight); the only writer may keep it because
it is the only writer. A batch that fails is forgotten together with the memory, which is then read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentmon import wire
from agentmon.ledger.budget import Weights, room
from agentmon.ledger.sizes import Key, Steps

TotalKey = tuple[str, str, str, str, str]  # scope, name, provider or "*", per, window
PoolKey = tuple[str, str, str, str]  # scope, name, provider or "*", run or ""
Place = tuple[str, str, str]  # scope, name, run ("" for scopes that all runs share)


@dataclass(frozen=True, slots=True)
class Now:
    wall_ns: int  # CLOCK_REALTIME: when a row happened, which window it counts in
    boot_ns: int  # CLOCK_BOOTTIME: expiry, which steps of the clock must not touch


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that holds: pid and start time (clock ticks, proc(5) stat field 22) are unique within one boot."""

    boot: str
    pid: int
    start: int


@dataclass(slots=True)
class Total:
    key: TotalKey
    used: int


@dataclass(slots=True)
class Pool:
    """What is in flight for one scope and provider; `held` counts the larger of each hold's size and progress,
    `exposed` what is not held of the sizes that the requests named."""

    held: int = 0
    progress: int = 0
    exposed: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    id: int
    run: str
    slot: int
    bottle: str
    agent: str
    scopes: tuple[tuple[str, str], ...]
    weights: Weights
    providers: set[str] = field(default_factory=set, compare=False)  # those with usage or holds in this run


@dataclass(slots=True)
class Hold:
    id: int
    key: str
    run: Run
    provider: str
    model: str
    input: int
    output: int
    tokens: int
    owner: Owner
    expires_ns: int
    usage: wire.Usage | None = None  # last Progress
    progress: int = 0  # its weighted tokens
    full: int = 0  # weighted tokens by the request's own bound; 0 where that is not known any more

    @property
    def held(self) -> int:
        return max(self.tokens, self.progress)

    @property
    def exposed(self) -> int:
        return max(0, self.full - self.held)


@dataclass(frozen=True, slots=True)
class Defined:
    """The budgets of one provider at one place. `declared` is the policy's own text of them; see schema.sql."""

    budgets: tuple[wire.BudgetDef, ...]
    origin: str
    declared: str


@dataclass(frozen=True, slots=True)
class Gauge:
    """One budget with the numbers it is compared with."""

    scope: str
    name: str
    run: str
    budget: wire.BudgetDef
    total: Total
    pool: Pool

    @property
    def level(self) -> int:
        return self.total.used + self.pool.progress

    @property
    def spent(self) -> bool:
        return self.level >= self.budget.tokens

    @property
    def room(self) -> int:
        """Weighted tokens that may still be held."""
        return room(self.budget.tokens, self.total.used, self.pool.held)

    @property
    def worst(self) -> int:
        """Weighted tokens that are used if all in flight need what their own bounds allow."""
        return self.total.used + self.pool.held + self.pool.exposed


@dataclass(frozen=True, slots=True)
class Account:
    """All that one row of (run, provider) moves in the current windows."""

    totals: tuple[Total, ...]
    pools: tuple[Pool, ...]
    gauges: tuple[Gauge, ...]  # every budget the row may cross
    governing: tuple[Gauge, ...]  # those that admit or deny


@dataclass(frozen=True, slots=True)
class Row:
    """A settled row, as far as a second settlement needs it."""

    run_id: int
    request_id: str
    hold: int
    usage: wire.Usage


@dataclass(slots=True)
class Changes:
    """What a batch writes, in the order the store writes it."""

    statements: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)  # name of a statement, its values
    usage: list[tuple[Any, ...]] = field(default_factory=list)
    new_holds: dict[int, Hold] = field(default_factory=dict)
    gone_holds: list[int] = field(default_factory=list)
    accounts: dict[int, Account] = field(default_factory=dict)  # by id(); their totals are written
    next_hold: int = 0  # 0: unchanged
    sizes: dict[Key, Steps | None] = field(default_factory=dict)  # histograms; None: forgotten

    def totals(self) -> Iterable[Total]:
        return {id(t): t for account in self.accounts.values() for t in account.totals}.values()

    def empty(self) -> bool:
        held = self.new_holds or self.gone_holds or self.next_hold
        return not (self.statements or self.usage or self.accounts or held or self.sizes)


class Lookup(Protocol):
    """What the file knows and the memory does not keep. Every answer costs one index access."""

    def total(self, key: TotalKey) -> int: ...
    def by_hold(self, hold: int) -> Row | None: ...
    def by_request(self, provider: str, request_id: str) -> Row | None: ...
    def run(self, run_id: int) -> Run: ...
    def run_named(self, run: str) -> Run | None: ...
    def last_approval(self) -> int: ...
    def approval_state(self, number: int) -> str | None: ...  # waiting, or how it ended; None: no such proposal
    def undecided(self, run: str) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a Book starts from."""

    runs: tuple[Run, ...]  # open ones
    budgets: dict[Place, dict[str, Defined]]
    holds: tuple[Hold, ...]
    next_run: int
    next_hold: int
    sizes: tuple[tuple[Key, Steps], ...] = ()  # of answers; see sizes.Learned
