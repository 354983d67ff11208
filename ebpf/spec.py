"""What the programs are told: frozen values, and the protocol that the kernel edge and the fake both keep.

Addresses are ipaddress objects, ports inclusive (lo, hi) pairs in host order; encode.py turns them into the
byte order that bpf/am_abi.h declares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, Protocol

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Proto = Literal["tcp", "udp"]


class Mode(IntEnum):
    CLOSED = 0
    ENFORCE = 1
    OBSERVE = 2  # protected destinations stay refused
    CUT = 3  # only endpoints that survive a cut


class Guard(IntEnum):
    """What becomes of an operation by a guarded process that its guard did not vouch for."""

    OFF = 0  # processes cannot register
    OBSERVE = 1  # reported as a bypass
    STRICT = 2  # refused too


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service of agentmon's. `unvouched`: libc reaches it by itself, no guard vouches for that (the resolver)."""

    address: Address
    proto: Proto
    port: int
    survives_cut: bool
    unvouched: bool = False


@dataclass(frozen=True, slots=True)
class Listen:
    """A port that a bottle may listen on where its policy limits listening: lo…hi, both included."""

    proto: Proto
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Entry:
    """To `network` on `ports` of `proto`. `rule` indexes the policy's rules for events; `timeout_s` 0: no end."""

    network: Network
    proto: Proto
    ports: tuple[tuple[int, int], ...]
    rule: int = 0
    timeout_s: int = 0


@dataclass(frozen=True, slots=True)
class BottlePolicy:
    """All that the programs know of a bottle. `policy_id` is never reused; switching it is one map element."""

    slot: int
    cgroup_id: int  # inode of the bottle's cgroup directory
    policy_id: int
    epoch: int
    mode: Mode
    services: tuple[Endpoint, ...] = ()
    allow: tuple[Entry, ...] = ()
    deny: tuple[Entry, ...] = ()
    netns_cookie: int = 0  # 0: not checked
    guard: Guard = Guard.OFF
    listen: tuple[Listen, ...] | None = None  # None: not limited
    unix: tuple[str, ...] | None = None  # absolute paths, a directory ends in "/"; None: not limited
    unix_given: tuple[str, ...] = ()  # of `unix`, the host's: closed by a cut
    unix_closed: tuple[str, ...] = ()  # directories in those of `unix` that are closed, but for what `unix` has in them


@dataclass(frozen=True, slots=True)
class Event:
    """One decoded ring record: an operation and its verdict. `ts_ns` is CLOCK_BOOTTIME.

    From `exe` on, what /proc and the attribution know: "" or 0 where the process had gone or nothing attributes.
    `library` is the file of the first native module on the stack that is neither libc, the loader nor the interpreter,
    `offset` the place in that file, `evidence` what it rests on."""

    ts_ns: int
    slot: int
    epoch: int
    kind: Literal["connect", "send", "socket", "escape", "bypass"]
    verdict: Literal["allowed", "refused", "observed"]
    reason: str  # ebpf.abi.REASONS: default, deny, cut, closed, protected, family, expired, netns, unvouched, …
    pid: int
    tgid: int
    ppid: int
    uid: int
    comm: str
    proto: str
    dst: Address | None
    port: int
    rule: int
    count: int
    guarded: bool = False  # the process had registered, and did not vouch for this
    exe: str = ""
    cmdline: str = ""
    syscall: str = ""
    library: str = ""
    offset: int = 0
    evidence: str = ""
    path: str = ""  # of a unix socket


class Bpf(Protocol):
    """What the daemon uses. Deciding maps are not LRU: a full map raises, and refuses in the kernel.

    Errors: :class:`ebpf.errors.VerifierRefused` (whole log kept), :class:`ebpf.errors.MapFull`,
    :class:`ebpf.errors.Missing` (bcc, bpffs, cgroup v2, a kernel feature), all with what to do.
    """

    def open(self, cgroup: str) -> None:
        """Load, attach to `cgroup` (the parent of all bottles' cgroups) and pin; adopts pins of the same layout, and
        replaces others without a gap."""

    def close(self) -> None:
        """Detach and remove every pin; idempotent."""

    def apply(self, policy: BottlePolicy) -> None:
        """Write the new entries, switch the bottle to them in one element, then remove the old ones."""

    def learn(self, slot: int, entries: Sequence[Entry]) -> None: ...

    def set_mode(self, slot: int, mode: Mode) -> None:
        """One element; what `cut` and `resume` use."""

    def delete_bottle(self, slot: int) -> None: ...

    def fileno(self) -> int:
        """Readable when events wait."""

    def read(self) -> list[Event]:
        """All waiting events, without blocking; at most a few thousand a call."""

    def lost(self) -> int:
        """Events the ring could not take since open, counted in the kernel."""

    def lost_origins(self) -> int:
        """Events that nothing attributes because their origin found no room, counted in the kernel."""

    def slots(self) -> frozenset[int]: ...

    def attach(self, slot: int, cgroup_path: str) -> None:
        """Put the programs on a cgroup that others made, a container's or a CI runner's; its policy was applied before,
        so that nothing in it is refused as unknown. Idempotent; open() of a later start keeps it and calling this
        again completes it. Sockets that are older keep their connections: see ebpf.sockets."""

    def detach(self, slot: int) -> None:
        """Take the programs off it; idempotent. delete_bottle() does it too."""

    def attached(self) -> frozenset[int]:
        """Slots whose cgroup others made."""

    def features(self) -> frozenset[str]:
        """Optional groups of programs in force: "vouch", "origin", "unix"."""

    def missing(self) -> list[str]:
        """Functions of programs that are to be in force on the parent cgroup and are not, looked up now."""

    def differing(self, policy: BottlePolicy) -> list[str]:
        """What the maps hold beside `policy`, which was applied; in words, at most a few. Learned entries, and what
        others with CAP_BPF added, are not compared."""

    def lost_guarded(self) -> int:
        """Forked children of guarded processes that the table had no room for: the policy alone holds them."""

    def guarded(self) -> dict[int, int]:
        """Processes that registered as guarded → the slot of the bottle they registered in."""
