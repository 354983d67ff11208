"""What the probes found, as frozen values; times are nanoseconds or days as named, modes are permission bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias, TypeVar

from agentmon.posture.model import Unseen

T = TypeVar("T")
Seen: TypeAlias = T | Unseen
_NOT_LOOKED = Unseen("was not looked at")


@dataclass(frozen=True, slots=True)
class Feature:
    """Something the kernel takes or not, found by trying. `missing` is empty where it is there."""

    name: str
    needed: bool
    missing: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CgroupLayout:
    """`v2`: where cgroup v2 is mounted, "" nowhere; `controllers` that it has."""

    v2: str
    hybrid: bool
    controllers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conntrack:
    count: int
    limit: int


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain of a table that is not agentmon's."""

    table: str  # "inet filter"
    name: str
    kind: str  # filter | nat | route
    hook: str
    priority: int
    policy: str  # accept | drop


@dataclass(frozen=True, slots=True)
class Own:
    """A file or directory: who may write and read it. `problem`: what is wrong with what is in it."""

    path: str
    uid: int
    gid: int
    mode: int
    problem: str = ""
    wanted_uid: int | None = None  # besides root


@dataclass(frozen=True, slots=True)
class Authority:
    """The proxy's certificate authority."""

    key: Own
    days_left: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """`problems`: what `ledger check` found; `sqlite`: version of the library that writes it."""

    sqlite: tuple[int, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disk:
    path: str
    free_bytes: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class Service:
    """A process of agentmon's. `uid` and `capabilities` (hexadecimal, effective) are None where it does not live."""

    name: str
    pid: int
    up: bool
    uid: int | None = None
    capabilities: int | None = None
    core_bytes: int | None = None  # soft limit of core files; None: unlimited or unknown


@dataclass(frozen=True, slots=True)
class HostSocket:
    """A socket that gives the host away to whoever may write it. `jobs`: the jobs' own user may."""

    path: str
    mode: int
    jobs: bool


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    comm: str
    capabilities: int  # effective
    python: bool
    guarded: bool


@dataclass(frozen=True, slots=True)
class Bottle:
    """A bottle as the daemon answers for it, compared with the kernel at that moment.

    `rules`: differences of namespaces, tables, devices; `programs`: of BPF programs, maps, pins; `lacks`: what this
    kernel cannot hold of its policy; `policy`: the few keys that are judged."""

    name: str
    attached: bool
    rules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    lacks: str = ""
    observe: bool = False
    io_uring: bool = False
    home: str = "private"
    guard: str = "observe"
    unix: tuple[str, ...] = ()
    direct_dns: tuple[str, ...] = ()  # rules that open port 53 or 853 past the resolver
    wide: tuple[str, ...] = ()  # direct rules over more than 65,536 addresses
    own_keys: tuple[str, ...] = ()  # metered hosts where the bottle's own key passes
    metadata: tuple[str, ...] = ()  # metadata addresses that its policy would permit
    processes: tuple[Process, ...] = ()
    sockets: tuple[str, ...] = ()  # control sockets of the host that are mounted into it
    compared: bool = True  # False: more bottles than are compared at a time


@dataclass(frozen=True, slots=True)
class Daemon:
    """`pid` 0: none runs, and then nothing else is set."""

    pid: int
    host: tuple[str, ...] = ()  # differences of the host's table, routing rules, switches
    left_out: Mapping[str, str] | None = None  # optional groups of programs → why
    events_lost: int = 0
    services: tuple[Service, ...] = ()
    bottles: tuple[Bottle, ...] = ()


@dataclass(frozen=True, slots=True)
class Bypasses:
    """Connects of guarded processes that their guard had not seen, in the last day: library → how many."""

    libraries: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Facts:
    platform: Seen[str] = _NOT_LOOKED
    root: Seen[bool] = _NOT_LOOKED
    nft: Seen[tuple[Feature, ...]] = _NOT_LOOKED
    bpf: Seen[tuple[Feature, ...]] = _NOT_LOOKED
    cgroups: Seen[CgroupLayout] = _NOT_LOOKED
    lockdown: Seen[str] = _NOT_LOOKED
    unprivileged_bpf: Seen[int] = _NOT_LOOKED
    lsm: Seen[tuple[str, ...]] = _NOT_LOOKED
    bwrap: Seen[str] = _NOT_LOOKED
    switches: Seen[Mapping[str, str]] = _NOT_LOOKED  # sysctl below net, as "ipv4.conf.all.route_localnet"
    conntrack: Seen[Conntrack] = _NOT_LOOKED
    chains: Seen[tuple[Chain, ...]] = _NOT_LOOKED
    leftovers: Seen[tuple[str, ...]] = _NOT_LOOKED  # kernel objects of agentmon's without a daemon
    sockets: Seen[tuple[HostSocket, ...]] = _NOT_LOOKED
    settings: Seen[tuple[Own, ...]] = _NOT_LOOKED  # settings and manifests
    grants: Seen[tuple[str, ...]] = _NOT_LOOKED
    credentials: Seen[tuple[Own, ...]] = _NOT_LOOKED
    code: Seen[tuple[Own, ...]] = _NOT_LOOKED  # agentmon's own code and interpreter, up to /
    authority: Seen[Authority | None] = _NOT_LOOKED  # None: none was made yet
    run_files: Seen[tuple[Own, ...]] = _NOT_LOOKED  # sockets and state under /run/agentmon
    ledger_files: Seen[tuple[Own, ...]] = _NOT_LOOKED
    ledger: Seen[Ledger | None] = _NOT_LOOKED  # None: none was made yet
    disk: Seen[Disk] = _NOT_LOOKED
    clock: Seen[bool] = _NOT_LOOKED  # whether the kernel calls it synchronised
    daemon: Seen[Daemon] = _NOT_LOOKED
    bypasses: Seen[Bypasses] = _NOT_LOOKED


NAMES = tuple(f.name for f in fields(Facts))
