"""Who changes what behind our back: nftables and rtnetlink events of the host's namespace and of each bottle's.

    nf_tables group ── a filter in the kernel drops what we did ──┐
    links, addresses, routes, neighbours, rules, forwarding ──────┴─▶ Watch ─▶ Watcher (one epoll) ─▶ Change values

Only what touches our table, or differs from what our devices are to be, becomes a Change. A socket that overran
(ENOBUFS) becomes one of kind UNKNOWN. Formats: linux/netfilter/nf_tables.h, rtnetlink(7). Needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from netfilter import facts
from netfilter.changes import Change, Kind, Place, told
from netfilter.language import TABLE
from netfilter.netns import foreign_links, namespaces
from netfilter.netns.wire import HEADER, NETFILTER, REQUEST, ROUTE, attributes, netlink_socket

_SOL_NETLINK, _ADD_MEMBERSHIP, _ATTACH_FILTER, _RCVBUFFORCE = 270, 1, 26, 33
_NFT_GROUP = 7  # NFNLGRP_NFTABLES
_LINKS, _NEIGHBOURS, _ADDRESSES, _ROUTES, _RULES, _NETCONF = (1,), (3,), (5, 9), (7, 11), (8, 19), (24, 25)
_RECEIVE_BYTES = 1 << 20  # taken only as far as it is filled
_HOST_TIMES = 32  # a table of many bottles that is deleted is told in many words
_SUBSYSTEM, _FAMILIES = 10, {1, 5}  # NFPROTO_INET, NFPROTO_NETDEV
_NEWGEN, _GETGEN = _SUBSYSTEM << 8 | 15, _SUBSYSTEM << 8 | 16
_TURNS = {_NEWGEN, _SUBSYSTEM << 8, _SUBSYSTEM << 8 | 2}  # the end of a transaction; a table made, deleted
_GEN_PID, _GEN_COMM = 2, 3
# message → (what was done, the attribute that names the object, what it is)
_DONE = {
    0: ("changed", 0, "table"), 2: ("deleted", 0, "table"), 3: ("added", 3, "chain"), 5: ("deleted", 3, "chain"),
    6: ("added to", 2, "rule"), 8: ("removed from", 2, "rule"), 9: ("added", 2, "set"), 11: ("deleted", 2, "set"),
    12: ("added to", 2, "element"), 14: ("removed from", 2, "element"), 18: ("added", 2, "object"),
    20: ("deleted", 2, "object"),
}  # fmt: skip
_NETCONF_INDEX, _NETCONF_FORWARDING = 1, 2
_INOTIFY = struct.Struct("=iIII")
_IN_DELETED, _IN_FLAGS = 0x240, 0o2004000  # IN_DELETE | IN_MOVED_FROM; IN_NONBLOCK | IN_CLOEXEC
_AT_ONCE, _DRAINED = 512, 1 << 14  # datagrams of one look; the rest is there at the next one
_HOST_AT_ONCE = 1 << 13  # a table of 1,000 bottles that is deleted
_NAMED = 64  # parts of a transaction whose names are read


_LIBC = ctypes.CDLL(None, use_errno=True)


class Wanted(NamedTuple):
    """What a device of ours is to be, and whose it is."""

    slot: int | None
    facts: frozenset[facts.Fact]


class _Told:
    """One foreign transaction, as far as it touched our table."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.table_gone = False

    def add(self, number: int, found: Mapping[int, bytes]) -> None:
        verb, attribute, noun = _DONE.get(number, ("changed", 0, "table"))
        self.table_gone = (noun == "table" and verb == "deleted") or (self.table_gone and noun != "table")
        name = found.get(attribute, b"").rstrip(b"\0").decode(errors="replace")
        words = {"rule": f"rule {verb} chain {name}", "element": f"element {verb} set {name}"}
        if not name.startswith("__") and len(self.done) < _NAMED:  # not a rule's anonymous sets
            self.done.append(words.get(noun, f"{noun} {name or TABLE} {verb}"))

    def much(self) -> bool:
        """Whether one part more changes nothing of what is said."""
        return len(self.done) >= _NAMED and not self.table_gone

    def describe(self) -> str:
        return f"table {TABLE} deleted" if self.table_gone else told(self.done)


class Watch:
    """The events of the namespace of the thread that makes it.

    :param own_pid: of the thread that makes our own changes (`own_pid`).
    """

    def __init__(self, place: Place, own_pid: int) -> None:
        self._place = place
        self._own_pid = own_pid
        self._own_ports: tuple[int, ...] = ()
        self._beside: frozenset[foreign_links.Led] = frozenset()
        self._open: dict[int, _Told] = {}  # by the port of who is at it
        self._behind: set[socket.socket] = set()  # overran, and could not be read empty at once
        self.names = _inotify() if place is Place.HOST else -1
        times = _HOST_TIMES if place is Place.HOST else 1
        self.nft = _listener(NETFILTER, (_NFT_GROUP,), _RECEIVE_BYTES * times)
        groups = (*_LINKS, *_NEIGHBOURS, *_ADDRESSES, *_ROUTES)
        self.route = _listener(ROUTE, (*groups, *_RULES, *_NETCONF) if place is Place.HOST else groups, _RECEIVE_BYTES)

    def beside_others(self, wanted: frozenset[foreign_links.Led]) -> None:
        """In a namespace that others made, tell of our rules and of these routes, too."""
        self._beside = wanted
        _join(self.route, _RULES)

    def close(self) -> None:
        self.nft.close()
        self.route.close()
        if self.names >= 0:
            os.close(self.names)
            self.names = -1

    def descriptors(self) -> list[int]:
        return [fd for fd in (self.nft.fileno(), self.route.fileno(), self.names) if fd >= 0]

    def names_gone(self) -> set[str]:
        """Namespaces whose names were deleted, or may have been, since the last call."""
        gone = set()
        with contextlib.suppress(BlockingIOError):
            data, at = os.read(self.names, 1 << 16), 0
            while at < len(data):
                _, _, _, length = _INOTIFY.unpack_from(data, at)
                gone.add(data[at + _INOTIFY.size : at + _INOTIFY.size + length].rstrip(b"\0").decode())
                at += _INOTIFY.size + length
        return gone

    def rules_changed(self, slot: int | None) -> list[Change]:
        """Foreign transactions since the last call that touched our table."""
        changes = []
        try:
            for kind, port, body in self._read(self.nft, _AT_ONCE if self._place is Place.BOTTLE else _HOST_AT_ONCE):
                changes += self._transaction(slot, kind, port, body)
        except OSError as e:
            changes += self._overrun(self.nft, slot, e)
        return changes

    def _read(self, sock: socket.socket, at_most: int = _AT_ONCE) -> Iterator[tuple[int, int, bytes]]:
        if sock in self._behind:
            raise OSError(errno.ENOBUFS, "what came since the socket overran is not whole")
        return _messages(sock, at_most)

    def _transaction(self, slot: int | None, kind: int, port: int, body: bytes) -> list[Change]:
        if kind not in _TURNS and (told_so_far := self._open.get(port)) is not None and told_so_far.much():
            return []
        found = attributes(body, 4)
        if kind != _NEWGEN:
            if body[0] in _FAMILIES and found.get(1, b"").rstrip(b"\0") == TABLE.encode():
                self._open.setdefault(port, _Told()).add(kind & 0xFF, found)
            return []
        done, pid = self._open.pop(port, None), int.from_bytes(found.get(_GEN_PID, b""), "big")
        if pid == self._own_pid:
            if self._place is Place.HOST:  # inside, a port of ours that has closed could be taken by its root
                self.know(port)
            return []
        if done is None:
            return []
        comm = found.get(_GEN_COMM, b"").rstrip(b"\0").decode(errors="replace")
        return [Change(slot, self._place, Kind.RULES, done.describe(), pid=pid, comm=comm)]

    def know(self, port: int) -> None:
        """A socket of ours, which stays open as long as this: what it does is dropped in the kernel from now on."""
        if port not in self._own_ports and len(self._own_ports) < 8:
            self._own_ports = (*self._own_ports, port)
            _drop(self.nft, self._own_ports)

    def links_changed(
        self, slot: int | None, ours: Mapping[int, Wanted | None], at_most: int = _AT_ONCE
    ) -> list[Change]:
        """What was done to devices of ours (by index: whose, and what is wanted there), to rules and to forwarding."""
        changes = []
        try:
            for kind, _, body in self._read(self.route, at_most):
                change = self._route(ours, kind, body)
                if change is not None:
                    changes.append(change)
        except OSError as e:
            changes += self._overrun(self.route, slot, e)
        return changes

    def _route(self, ours: Mapping[int, Wanted | None], kind: int, body: bytes) -> Change | None:
        if kind == facts.NEWNETCONF:
            found = attributes(body, 4)
            known = ours.get(int.from_bytes(found.get(_NETCONF_INDEX, b""), "little"), self) is not None
            off = known and found.get(_NETCONF_FORWARDING) == bytes(4)
            return Change(None, self._place, Kind.FORWARDING, "forwarding switched off") if off else None
        if self._beside and kind in facts.LEADING and facts.led_elsewhere(kind, body, self._beside):
            what = "routing rule deleted" if kind == facts.DELRULE else "route of our table changed"
            return Change(self._slot(ours), self._place, Kind.DEVICE, what)
        if kind in {facts.NEWRULE, facts.DELRULE}:
            rule = facts.rule(body)
            ours_gone = self._place is Place.HOST and kind == facts.DELRULE and rule.priority in facts.PRIORITIES
            what = f"routing rule {rule.priority} deleted"
            return Change(None, self._place, Kind.ROUTING, what) if ours_gone else None
        fact = facts.read(kind, body)
        return None if fact is None else self._device(ours, kind, fact)

    def _device(self, ours: Mapping[int, Wanted | None], kind: int, fact: facts.Fact) -> Change | None:
        if fact.device not in ours:
            at_home = self._place is Place.HOST  # an uplink perhaps; inside, another way out
            if not (kind == facts.NEWLINK and "up" in fact.what) and not (at_home and facts.leads_out(kind, fact)):
                return None
            return Change(self._slot(ours), self._place, Kind.FORWARDING if at_home else Kind.DEVICE, fact.describe())
        known = ours[fact.device]
        what = "" if known is None else facts.breaks(kind, fact, known.facts)
        if known is None or not what:
            return None
        return Change(known.slot, self._place, Kind.DEVICE, what, lost=kind == facts.DELLINK)

    def _slot(self, ours: Mapping[int, Wanted | None]) -> int | None:
        """Whose namespace this is."""
        known = next(iter(ours.values()), None) if self._place is Place.BOTTLE else None
        return None if known is None else known.slot

    def _overrun(self, sock: socket.socket, slot: int | None, error: OSError) -> list[Change]:
        """Until the socket has been read empty, the kernel drops what comes and says nothing more."""
        if error.errno != errno.ENOBUFS:
            raise error
        self._open.clear()
        (self._behind.discard if _emptied(sock) else self._behind.add)(sock)
        return [Change(slot, self._place, Kind.UNKNOWN, "more changes than could be told")]


class Watcher:
    """Every watch behind one descriptor. `changes` may be called from another thread than the rest."""

    def __init__(self, host: Watch) -> None:
        self._lock = threading.Lock()
        self._poll = select.epoll()
        self._by_fd: dict[int, tuple[int | None, Watch]] = {}
        self._host = host
        self._ours: dict[int, Wanted | None] = {}
        self._inner: dict[int | None, tuple[Watch, Mapping[int, Wanted | None]]] = {}
        self._names: dict[int | None, str] = {}
        self._pending: list[Change] = []
        self._register(None, host)

    def fileno(self) -> int:
        return self._poll.fileno()

    def expect(self, slot: int | None, wanted: frozenset[facts.Fact]) -> None:
        """Watch a device of the host. What happened to it until now was our own doing."""
        with self._lock:
            made = _by_index(slot, wanted)
            self._pending += self._host.links_changed(None, self._ours | dict.fromkeys(made), _DRAINED)
            self._ours |= made

    def expect_inside(self, slot: int | None, name: str, watch: Watch, wanted: frozenset[facts.Fact]) -> None:
        with self._lock:
            self._names[slot] = name
            self._inner[slot] = (watch, _by_index(slot, wanted))
            self._register(slot, watch)

    def forget(self, slot: int | None) -> None:
        """Before a bottle is deleted; fine if it is not watched. What happened to its device until now was its own."""
        with self._lock:
            self._pending += [c for c in self._host.links_changed(None, self._ours) if c.slot != slot]
            self._ours = {
                index: wanted for index, wanted in self._ours.items() if wanted is None or wanted.slot != slot
            }
            self._names.pop(slot, None)
            watch, _ = self._inner.pop(slot, (None, {}))
            if watch is not None:
                for fd in watch.descriptors():
                    self._poll.unregister(fd)
                    del self._by_fd[fd]
                watch.close()

    def changes(self) -> list[Change]:
        """Everything since the last call; does not wait."""
        with self._lock:
            found, self._pending = self._pending, []
            for fd, _ in self._poll.poll(0):
                slot, watch = self._by_fd[fd]
                if fd == watch.names:
                    found += self._unnamed(watch.names_gone())
                elif fd == watch.nft.fileno():
                    found += watch.rules_changed(slot)
                else:
                    found += watch.links_changed(slot, self._ours if watch is self._host else self._inner[slot][1])
            return found

    def _unnamed(self, gone: set[str]) -> list[Change]:
        named = [(slot, name) for slot, name in self._names.items() if name in gone and not namespaces.exists(name)]
        return [Change(s, Place.HOST, Kind.NAMESPACE, f"name {name} deleted", lost=True) for s, name in named]

    def close(self) -> None:
        for slot in tuple(self._inner):
            self.forget(slot)
        with self._lock:
            self._poll.close()
            self._host.close()

    def _register(self, slot: int | None, watch: Watch) -> None:
        for fd in watch.descriptors():
            self._by_fd[fd] = (slot, watch)
            self._poll.register(fd, select.EPOLLIN)


def _by_index(slot: int | None, wanted: frozenset[facts.Fact]) -> dict[int, Wanted]:
    return {fact.device: Wanted(slot, wanted) for fact in wanted}


def own_pid() -> int:
    """The number by which the kernel names the calling thread in NFTA_GEN_PROC_PID, whatever its PID namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as sock:
        sock.settimeout(10)
        sock.send(HEADER.pack(HEADER.size + 4, _GETGEN, REQUEST, 1, 0) + bytes(4))
        found = attributes(sock.recv(1 << 16), HEADER.size + 4)
        return int.from_bytes(found.get(_GEN_PID, b""), "big")


def _inotify() -> int:
    """Deletions of names of namespaces. -1 where there is no inotify or no /run/netns yet."""
    fd = _LIBC.inotify_init1(_IN_FLAGS)
    if fd >= 0 and _LIBC.inotify_add_watch(fd, str(namespaces.RUN).encode(), _IN_DELETED) < 0:
        os.close(fd)
        return -1
    return int(fd)


def _listener(protocol: int, groups: tuple[int, ...], receive_bytes: int) -> socket.socket:
    sock = netlink_socket(protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, receive_bytes)
    _join(sock, groups)
    return sock


def _join(sock: socket.socket, groups: tuple[int, ...]) -> None:
    for group in groups:
        sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)


def _messages(sock: socket.socket, at_most: int) -> Iterator[tuple[int, int, bytes]]:
    """(type, port of who did it, body) of what has come, in so many datagrams. :raises OSError: ENOBUFS."""
    for _ in range(at_most):
        try:
            data = sock.recv(1 << 17)
        except BlockingIOError:
            return
        at = 0
        while at + HEADER.size <= len(data):
            length, kind, _, _, port = HEADER.unpack_from(data, at)
            yield kind, port, data[at + HEADER.size : at + length]
            at += (length + 3) & ~3


def _emptied(sock: socket.socket) -> bool:
    """Read what there is, unseen; whether that was all."""
    for _ in range(_DRAINED):
        try:
            sock.recv(1)
        except BlockingIOError:
            return True
        except OSError as e:
            if e.errno != errno.ENOBUFS:
                raise
    return False


def _drop(sock: socket.socket, ports: tuple[int, ...]) -> None:
    """Attach a classic BPF filter: messages whose nlmsg_pid is one of `ports` never come to this socket."""
    code = [(0x20, 0, 0, 12)]  # A = nlmsg_pid, read in network order
    for i, port in enumerate(ports):
        swapped = int.from_bytes(struct.pack("=I", port), "big")
        code.append((0x15, len(ports) - i, 0, swapped))
    code += [(0x06, 0, 0, 0xFFFF_FFFF), (0x06, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program)))
