"""One bottle's whole policy after settings, manifest chain and options are merged: the compiler's input."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentmon import wire
from agentmon.policy.origin import Origin
from agentmon.policy.rules import Rule

WEIGHTS = {"input": 1000, "cache_write": 1000, "cache_read": 100, "output": 1000}  # per mille
LIMITS = {"pids": 512, "connections": 1000, "queries_per_s": 100, "name_bytes_per_min": 4096, "addresses": 4096}


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """Frozen, validated, deterministic. Budgets are weighted tokens; scopes (wire.ScopeDef) most specific first."""

    bottle: str
    rules: tuple[Rule, ...]  # allow and deny, manifests' and settings' deny included
    inspected: tuple[str, ...] = ()  # host patterns decrypted by the proxy: provider hosts, hosts of routes
    routes: tuple[wire.Route, ...] = ()
    scopes: tuple[wire.ScopeDef, ...] = ()
    weights: dict[str, int] = field(default_factory=lambda: dict(WEIGHTS))
    agent: str = ""
    provider: str = ""  # default for `--budget N`
    shutdown: str = "cutoff"  # cutoff | freeze | kill
    guard: str = "observe"  # off | observe | strict
    observe: bool = False
    home: str = "private"  # private | host
    ro: tuple[str, ...] = ()
    rw: tuple[str, ...] = ()
    unix: tuple[str, ...] = ()  # the host's sockets, and directories of them, which end in "/"
    listen: tuple[str, ...] | None = None  # "tcp:8000-8100" …; None: not limited
    io_uring: bool = False
    limits: dict[str, int] = field(default_factory=lambda: dict(LIMITS))
    log: str = "blocks"
    unreadable: str = "settle"  # settle | cut: answers whose usage cannot be read
    sources: tuple[str, ...] = ()  # files it was made of, for `policy explain` and events
    origin: Origin | None = None  # of a running bottle: what it was made of
    origins: tuple[str, ...] = ()  # one per rule: "FILE:LINE", "--allow", "provider claude", "settings FILE:LINE" …
