"""What a container engine sets up, in the lab's host: a bridge with containers on it, a namespace with a routed veth.
None of it is agentmon's."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

from netfilter.netns.sockets import Sockets
from netfilter.spec import BottleNet, Direct, Foreign, Holding
from tests.support.nf_lab import DNS, POOL4, POOL6, RUN, Lab, net, rules

BRIDGE4, BRIDGE6 = "10.88.0.1", "fd88::1"
BOX4, BOX6 = "10.88.0.10", "fd88::10"
NEIGHBOUR4, NEIGHBOUR6 = "10.88.0.11", "fd88::11"
ROUTED4 = "10.77.0.2"
RULES = """
table inet engine {
  chain post { type nat hook postrouting priority 100; ip saddr 10.88.0.0/16 oifname != "br0" masquerade
    ip6 saddr fd88::/64 oifname != "br0" masquerade
    ip saddr 10.77.0.0/24 oifname != "routed0" masquerade
  }
}
"""


class Engine:
    """Containers `box` and `neighbour` on a bridge, `routed` on a veth with an address."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.run(self._build)

    def _build(self) -> None:
        lab = self.lab
        lab.command("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        lab.ip("link add br0 type bridge", f"addr add {BRIDGE4}/16 dev br0", f"addr add {BRIDGE6}/64 dev br0 nodad")
        lab.ip("link set br0 up")
        for name, four, six in (("box", BOX4, BOX6), ("neighbour", NEIGHBOUR4, NEIGHBOUR6)):
            lab.ip(f"netns add {name}", f"link add v-{name} type veth peer name eth0 netns {name}")
            lab.ip(f"link set v-{name} master br0 up")
            lab.ip(
                "link set lo up", f"addr add {four}/16 dev eth0", f"addr add {six}/64 dev eth0 nodad",
                "link set eth0 up", f"route add default via {BRIDGE4}", f"-6 route add default via {BRIDGE6}",
                netns=name,
            )  # fmt: skip
        lab.ip("netns add routed", "link add routed0 type veth peer name eth0 netns routed")
        lab.ip("addr add 10.77.0.1/24 dev routed0", "link set routed0 up", "route add 10.78.0.0/24 via 10.77.0.2")
        lab.ip("addr add 10.77.0.2/24 dev eth0", "link set eth0 up", "route add default via 10.77.0.1", netns="routed")
        lab.command("nft", RULES)

    def net(self, slot: int = 16) -> BottleNet:
        return replace(net(slot), foreign=Foreign((POOL4[DNS], POOL6[DNS])))

    def attach(self, name: str, *allow: Direct, slot: int = 16, epoch: int = 0) -> Holding:
        """Hold namespace `name` with these rules."""
        path = RUN / name
        held = self.lab.run(lambda: self.lab.nf.attach_bottle(self.net(slot), str(path), path.stat().st_ino))
        self.lab.run(self.lab.nf.apply, rules(slot, epoch or slot, *allow))
        return held

    def detach(self, slot: int = 16) -> None:
        self.lab.run(self.lab.nf.delete_bottle, slot)

    def reaches(self, name: str, address: str, port: int = 443) -> bool:
        """Whether TCP from `name` gets there and is answered."""
        try:
            self.lab.connect(name, address, port, 1.0).close()
        except OSError:
            return False
        return True

    def quiet(self) -> None:
        """What was tried so far is over, and forgotten: connections that somebody has not finished closing, and what
        waits for a neighbour's address, would be seen later as if it had been sent then."""
        lab = self.lab
        for name in lab.run(os.listdir, RUN):
            lab.inside(name, lambda: Sockets().destroy(lambda *_: True))
            lab.shell("ip", "-n", name, "neigh", "flush", "all")
        lab.seen()
        self.lab.world.frames.clear()
        self.lab.world.sources.clear()
        self.lab.world.bytes.clear()

    def sends(self, name: str, address: str, port: int, *, source: str = "") -> None:
        """A datagram towards `address`, without waiting; what refuses it does not matter."""

        def work() -> None:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
                try:
                    if source:
                        sock.bind((source, 0))
                    sock.sendto(b"leak", (address, port))
                except OSError:
                    pass

        self.lab.inside(name, work)

    def in_there(self, name: str, *argv: str) -> None:
        """A command of the container's own root."""
        self.lab.shell("nsenter", f"--net={RUN / name}", *argv)


def asks(lab: Lab, name: str, server: str) -> bytes:
    """What a server on port 53 that echoes sends back to a question for `server`; empty: nothing comes."""

    def work() -> bytes:
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)
            try:
                sock.sendto(b"question", (server, 53))
                return sock.recv(100)
            except OSError:
                return b""

    return lab.inside(name, work)
