"""A bottle on a host of its own with every layer off but one, and receivers that count bytes where they could arrive.

    am-16 (attempts) ── veth ── host: raw sockets behind its input ── veth ── world: tap on its device
    am-17 (victim): raw sockets                                              every foreign address

No cgroup program, no seccomp, no proxy is here at all; of H and B what `only` names is left standing.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from enum import Enum

from tests.adversarial.bypass_bottle import ATTEMPTS, PYTHON
from tests.support.nf_lab import POOL4, POOL6, WEB4, WEB6, Lab, direct, net, until

ULA = "fd99::5"
GROUPS4, GROUPS6 = ("224.0.0.251", "224.0.0.252", "239.255.255.250"), ("ff02::fb", "ff02::1:3", "ff05::c")
GOOD_PORT = 5432
FENCE = "198.51.100.53"  # nothing else is counted there
SETTLE_S = 0.03  # where no answer can say that what was sent before has come through
OPEN_TO = [direct(f"{a}/{128 if ':' in a else 32}", "tcp", 443) for a in (WEB4, WEB6)]
OPEN_TO += [direct(f"{a}/{128 if ':' in a else 32}", "udp", GOOD_PORT) for a in (WEB4, WEB6, FENCE)]
CAPABILITIES = "+net_raw,+net_admin"


class Layer(Enum):
    """What stands between the bottle and the world. The values are those of results.json."""

    NONE = "none"
    HOST_NFT = "host-nft"
    ROUTING = "routing"
    BOTTLE_NFT = "bottle-nft"


class Placement(Enum):
    ROOT = "root in the bottle"
    CAPABLE = "user with leftover capabilities"


class Sink:
    """Bytes of IP packets by destination: `device`: a tap there, else raw sockets behind the namespace's input."""

    def __init__(self, device: str = "", groups_on: str = "") -> None:
        self.bytes: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._own, stop = socket.socketpair()
        self._selector.register(stop, selectors.EVENT_READ)
        if device:
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            tap.bind((device, 3))
            self._selector.register(tap, selectors.EVENT_READ)
        else:
            self._listen(groups_on)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _listen(self, groups_on: str) -> None:
        for proto in (1, 2, 4, 6, 17, 33, 41, 47, 50, 132, 136, 254):
            four = socket.socket(socket.AF_INET, socket.SOCK_RAW, proto)
            self._selector.register(four, selectors.EVENT_READ)
            six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58 if proto == 1 else proto)
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._selector.register(six, selectors.EVENT_READ)
        if groups_on:
            index = socket.if_nametoindex(groups_on)
            four, six = (socket.socket(f, socket.SOCK_DGRAM) for f in (socket.AF_INET, socket.AF_INET6))
            for group in GROUPS4:
                request = struct.pack("=4s4si", socket.inet_aton(group), bytes(4), index)
                four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
            for group in GROUPS6:
                request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=i", index)
                six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            self._members = (four, six)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock.family == socket.AF_UNIX:
                    return
                with contextlib.suppress(OSError):
                    self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        data, control, _, source = sock.recvmsg(1 << 16, 64)
        six = sock.family == socket.AF_INET6
        if sock.family == socket.AF_PACKET:
            _, ethertype, kind, *_ = source
            if kind == socket.PACKET_OUTGOING or ethertype not in {0x0800, 0x86DD}:
                return
            six = ethertype == 0x86DD
            to = data[24:40] if six else data[16:20]
        elif six:
            to = next(value[:16] for _, kind, value in control if kind == socket.IPV6_PKTINFO)
        else:
            to = data[16:20]
        self.bytes[socket.inet_ntop(socket.AF_INET6 if six else socket.AF_INET, to)] += len(data)

    def close(self) -> None:
        self._own.send(b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._own.close()
        for sock in getattr(self, "_members", ()):
            sock.close()


class Alone:
    """`only` stands alone between the bottle and all others."""

    def __init__(self, lab: Lab, only: Layer) -> None:
        self._lab = lab
        self.only = only
        self.sinks: list[Sink] = []
        self._inside: Sink | None = None
        self._attempts: dict[Placement, subprocess.Popen[str]] = {}

    def open(self) -> None:
        lab = self._lab
        lab.open()
        for slot in (16, 17):
            lab.bottle(slot, *OPEN_TO)
        lab.run(lab.ip, f"addr add {ULA}/128 dev lo nodad", netns="world")
        for address in ("10.213.0.0/16", "fd61:6d6f:6e::/64"):
            six = "-6 " if ":" in address else ""
            back = "2001:db8:1::1" if six else "203.0.113.1"
            lab.run(lab.ip, f"{six}route add {address} via {back}", netns="world")
        lab.shell("ip", "netns", "exec", "am-16", "sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
        self.sinks = [
            lab.inside("world", lambda: Sink("eth0")),
            lab.inside("", lambda: Sink(groups_on="am16")),
            lab.inside("am-17", Sink),
        ]
        self._inside = lab.inside("am-16", Sink)
        self._strip()
        until(lambda: self._answers(WEB6))  # addresses are no longer tentative, neighbours are known

    def _answers(self, address: str) -> bool:
        try:
            self._lab.udp("", address, GOOD_PORT, timeout=0.1)
        except OSError:
            return False
        return True

    def _strip(self) -> None:
        lab = self._lab
        inner = (17,) if self.only is Layer.BOTTLE_NFT else (16, 17)
        for slot in inner:
            lab.shell("ip", "netns", "exec", f"am-{slot}", "nft", "flush", "ruleset")
        if self.only is not Layer.HOST_NFT:
            lab.shell("nft", "delete", "table", "inet", "agentmon")
        if self.only is not Layer.ROUTING:
            for device in ("all", "am16", "am17", "up0"):
                lab.shell("sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=0")
            for family in ("-4", "-6"):
                for line in lab.shell("ip", family, "rule", "show").splitlines():
                    number, _, rule = line.partition(":")
                    if "from all" not in rule:
                        lab.shell("ip", family, "rule", "del", "pref", number, *rule.split())

    def tries(self, words: tuple[str, ...], placement: Placement = Placement.ROOT) -> str:
        """What bypass_attempts.py says when tried in the bottle; what it sent has arrived by then, or never will: a
        permitted datagram sent after it by the same process has been answered."""
        if self.only is Layer.ROUTING:
            return self.tries_unanswered(words, placement)
        said = self._asked(words, placement)
        until(lambda: self._asked(("udp", FENCE, str(GOOD_PORT)), placement) == "reached")
        return said

    def tries_unanswered(self, words: tuple[str, ...], placement: Placement = Placement.ROOT) -> str:
        """The same where not even what is permitted is answered: after a moment."""
        said = self._asked(words, placement)
        time.sleep(SETTLE_S)
        return said

    def _asked(self, words: tuple[str, ...], placement: Placement) -> str:
        if placement not in self._attempts:
            as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={CAPABILITIES}",
                       f"--ambient-caps={CAPABILITIES}", "--"]  # fmt: skip
            argv = ["ip", "netns", "exec", "am-16", *(as_user if placement is Placement.CAPABLE else [])]
            argv += [PYTHON, "-I", str(ATTEMPTS)]
            self._attempts[placement] = self._lab.run(
                lambda: subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                    env=os.environ | {"ATTEMPT_WAIT_S": "0.03"},
                )
            )  # fmt: skip
        process = self._attempts[placement]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(words) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline().strip()
        assert answer, words
        return answer

    def knocks(self, origin: str, to: str) -> None:
        """A datagram, a SYN and an echo request to the bottle from namespace `origin`; "" is the host."""

        def work() -> None:
            family = socket.AF_INET6 if ":" in to else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                sock.sendto(b"knock", (to, 443))
            with socket.socket(family, socket.SOCK_STREAM) as sock, contextlib.suppress(OSError):
                sock.settimeout(0.03)
                sock.connect((to, 443))
            echo = socket.IPPROTO_ICMPV6 if ":" in to else socket.IPPROTO_ICMP
            with socket.socket(family, socket.SOCK_RAW, echo) as sock, contextlib.suppress(OSError):
                sock.sendto(b"\x80\0\0\0\0\7\0\1" if ":" in to else b"\x08\0\xf7\xf7\0\7\0\1", (to, 0))

        self._lab.inside(origin, work)
        time.sleep(SETTLE_S)

    def shell(self, text: str) -> None:
        """As root with every capability in the bottle."""
        self._lab.shell("ip", "netns", "exec", "am-16", "sh", "-ec", text)

    def received(self, to: str) -> int:
        """Bytes that arrived outside the bottle for `to`, when what was sent before must have come through."""
        self._fence()
        return sum(sink.bytes[to] for sink in self.sinks)

    def entered(self, to: str) -> int:
        """Bytes that arrived in the bottle for `to`."""
        self._fence()
        assert self._inside is not None
        return self._inside.bytes[to]

    def _fence(self) -> None:
        for _ in range(2):
            self._lab.udp("", FENCE, GOOD_PORT)

    def close(self) -> None:
        for process in self._attempts.values():
            process.communicate()
        for sink in self.sinks:
            sink.close()
        if self._inside is not None:
            self._inside.close()


@contextlib.contextmanager
def alone(only: Layer) -> Iterator[Alone]:
    with Lab() as lab:
        made = Alone(lab, only)
        try:
            made.open()
            yield made
        finally:
            made.close()


MINE, HERS = net(16), net(17)
OWN4, OWN6 = str(MINE.addr4), str(MINE.addr6)
HERS4, HERS6 = str(HERS.addr4), str(HERS.addr6)
MACS = (MINE.mac_bottle, MINE.mac_host)
GATEWAY4, GATEWAY6 = str(POOL4[1]), str(POOL6[1])
