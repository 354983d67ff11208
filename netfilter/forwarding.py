"""Switches of the host's own devices: forwarding per device for IPv4, host-wide for IPv6; remembered and undone.

Where a device checks the reverse path (rp_filter), it must do so with the packet's mark (src_valid_mark), else the
routing backstop makes every answer look like one from nowhere.

Where we are the ones who switched it on, the forward chain drops what is not to or from a bottle, so that
the host does not become a router. Needs CAP_NET_ADMIN; the calling thread is in the host's namespace.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from pathlib import Path

from netfilter.errors import KernelRefused
from netfilter.language import FAMILY, TABLE, Part, device, elements, flush_set
from netfilter.netns import sysctl
from netfilter.nft import Nft
from netfilter.render import MARKED4, ROUTER, SWITCHED4, SWITCHED6, router6

_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_CHECKING = {"1", "2"}  # rp_filter: strict, loose


class Forwarding:
    """:param ours: pattern of our devices' names."""

    def __init__(self, nft: Nft, ours: str) -> None:
        self._nft = nft
        self._ours = re.compile(ours)
        self._seen: set[tuple[int, str]] = set()
        self._marked: set[tuple[int, str]] = set()
        self._routing6 = False
        self._noted: dict[str, set[str]] = {SWITCHED4: set(), MARKED4: set(), SWITCHED6: set(), ROUTER: set()}

    def recall(self) -> None:
        """Know what the table says, also what an earlier process noted."""
        for name in (SWITCHED4, MARKED4, SWITCHED6):
            self._noted[name] |= set(self._elements(name))
        self._noted[ROUTER] |= set(self._elements(ROUTER, "map"))

    def notes(self) -> list[Part]:
        """What stands in the table's sets, for a table made anew."""
        commands = router6("add") if self._noted[ROUTER] else []
        for name in (SWITCHED4, MARKED4, SWITCHED6):
            commands += elements("add", name, map(device, sorted(self._noted[name])))
        return commands

    def switched_off(self) -> list[str]:
        """Switches that somebody turned off since; `ensure4` and `ensure6` turn them on again."""
        now = {(n, name) for n, name in socket.if_nameindex()}
        off = {p for p in self._seen & now if sysctl.read(f"ipv4/conf/{p[1]}/forwarding") == "0"}
        unmarked = {p for p in self._marked & now if sysctl.read(f"ipv4/conf/{p[1]}/src_valid_mark") == "0"}
        unmarked &= {p for p in unmarked if p[1] in self._noted[MARKED4]}
        self._seen -= off
        self._marked -= unmarked
        paths = [f"ipv4/conf/{name}/forwarding" for _, name in sorted(off)]
        paths += [f"ipv4/conf/{name}/src_valid_mark" for _, name in sorted(unmarked)]
        if self._routing6 and sysctl.read("ipv6/conf/all/forwarding") == "0":
            paths.append("ipv6/conf/all/forwarding")
        return paths

    def ensure4(self) -> None:
        """Let answers come in by every device that is up; cheap when no device has come since."""
        router = sysctl.read("ipv4/conf/all/forwarding") == "1"
        if router and self._noted[SWITCHED4]:  # somebody made the host a router since: theirs to hold closed now
            self._nft.run([flush_set(SWITCHED4)], "leave forwarding to the host")
            self._noted[SWITCHED4].clear()
        devices = self._up()
        for number, name in devices - self._seen:
            if sysctl.read(f"ipv4/conf/{name}/forwarding") == "0":
                self._switch(SWITCHED4, name, f"ipv4/conf/{name}/forwarding", "1")
            self._seen.add((number, name))
        everywhere = sysctl.read("ipv4/conf/all/rp_filter") in _CHECKING
        for number, name in devices - self._marked:
            if everywhere or sysctl.read(f"ipv4/conf/{name}/rp_filter") in _CHECKING:
                self._mark_checks(name)
                self._marked.add((number, name))

    def _mark_checks(self, name: str) -> None:
        path = f"ipv4/conf/{name}/src_valid_mark"
        if sysctl.read(path) == "0":
            self._switch(MARKED4, name, path, "1")

    def _switch(self, noted_in: str, device_name: str, path: str, value: str) -> None:
        """Note first: what is noted and was not switched is harmless."""
        self._nft.run(elements("add", noted_in, [device(device_name)]), f"note {path}")
        self._noted[noted_in].add(device_name)
        sysctl.write(path, value)

    def ensure6(self) -> None:
        """The same for IPv6, where forwarding also stops the host from listening to routers unless accept_ra is 2."""
        self._routing6 = True
        if sysctl.read("ipv6/conf/all/forwarding") == "0":
            self._nft.run(router6("add"), "hold IPv6 forwarding closed")
            self._noted[ROUTER].add("ipv6")
        elif not self._noted[ROUTER]:
            return
        for name in self._foreign():
            if sysctl.read(f"ipv6/conf/{name}/accept_ra") == "1":
                self._switch(SWITCHED6, name, f"ipv6/conf/{name}/accept_ra", "2")
        sysctl.write("ipv6/conf/all/forwarding", "1")

    def restore(self) -> None:
        """Undo what the table says we did."""
        for name in self._elements(SWITCHED4):
            sysctl.write(f"ipv4/conf/{name}/forwarding", "0")
        for name in self._elements(MARKED4):
            sysctl.write(f"ipv4/conf/{name}/src_valid_mark", "0")
        if self._elements(ROUTER, "map"):
            sysctl.write("ipv6/conf/all/forwarding", "0")
        for name in self._elements(SWITCHED6):
            sysctl.write(f"ipv6/conf/{name}/accept_ra", "1")
        self._seen.clear()
        self._marked.clear()
        for noted in self._noted.values():
            noted.clear()

    def _up(self) -> set[tuple[int, str]]:
        """Foreign devices that are up."""
        now = {(n, name) for name in self._foreign() if (n := _number(name))}
        self._seen &= now
        self._marked &= now
        return {pair for pair in now if pair in self._seen or _is_up(pair[1])}

    def _foreign(self) -> list[str]:
        """Names of devices that are not ours. From a file: if_nameindex(3) takes 10 ms beside 1,000 bottles."""
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        names = (line.partition(":")[0].strip() for line in lines)
        return [name for name in names if name != "lo" and not self._ours.fullmatch(name)]

    def _elements(self, name: str, kind: str = "set") -> list[str]:
        try:
            listed = self._nft.listing(f"list {kind} {FAMILY} {TABLE} {name}")
        except KernelRefused:
            return []  # no table, nothing switched
        members = [e for o in listed for e in o.get(kind, {}).get("elem", [])]
        return [str(e[0]) if isinstance(e, list) else str(e) for e in members]


def _number(name: str) -> int:
    """0: it has gone meanwhile."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _is_up(name: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sH14x", name.encode(), 0)
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        except OSError:
            return False  # gone meanwhile
    return bool(struct.unpack_from("=H", answer, 16)[0] & _IFF_UP)
