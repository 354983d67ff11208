"""Rows of the bypass catalogue that packets decide: what is tried, where it would arrive, who must stop it alone."""

from __future__ import annotations

from dataclasses import dataclass

from tests.adversarial.layers import (
    GATEWAY4,
    GATEWAY6,
    HERS,
    HERS4,
    HERS6,
    MACS,
    MINE,
    OWN4,
    OWN6,
    ULA,
    Layer,
)
from tests.support.nf_lab import HOST_OWN, METADATA, OTHER4, OTHER6, WEB4, WEB6

NFT, ROUTING, BOTTLE = Layer.HOST_NFT, Layer.ROUTING, Layer.BOTTLE_NFT
ALL, HOST = (NFT, ROUTING, BOTTLE), (NFT, ROUTING)


@dataclass(frozen=True)
class Row:
    """`words`: of bypass_attempts.py. `to`: where bytes are counted. `held_by`: layers that let none of them arrive."""

    technique: str
    words: tuple[str, ...]
    to: str
    held_by: tuple[Layer, ...] = ALL

    def __str__(self) -> str:
        return self.technique


def both(
    technique: str, four: tuple[str, ...], six: tuple[str, ...], *held: Layer, to: tuple[str, str] = ("", "")
) -> list[Row]:
    """The same in both families; counted at `to`, else at the address in the words."""
    where = [given or next(w for w in words if w in TARGETS) for given, words in zip(to, (four, six), strict=True)]
    return [
        Row(f"{technique} {kind}", words, at, held or ALL)
        for kind, words, at in zip(("v4", "v6"), (four, six), where, strict=True)
    ]


HOST4, HOST6 = HOST_OWN[2], HOST_OWN[3]
TARGETS = {WEB4, WEB6, OTHER4, OTHER6, HERS4, HERS6, GATEWAY4, GATEWAY6, HOST4, HOST6, ULA, *METADATA}
TRANSPORTS = {"udp-lite": "136", "dccp": "33", "sctp": "132", "gre": "47", "esp": "50", "unassigned": "254"}

ROWS = [
    *both("tcp to another address", ("tcp", OTHER4, "443"), ("tcp", OTHER6, "443")),
    *both("tcp to another port", ("tcp", WEB4, "5432"), ("tcp", WEB6, "5432")),
    *both("tcp fast open", ("tcp_fast_open", OTHER4, "443"), ("tcp_fast_open", OTHER6, "443")),
    *both("multipath tcp", ("tcp_multipath", OTHER4, "443"), ("tcp_multipath", OTHER6, "443")),
    *both("udp", ("udp", OTHER4, "443"), ("udp", OTHER6, "443")),
    *both("udp by sendmmsg", ("udp_sendmmsg", OTHER4, "443"), ("udp_sendmmsg", OTHER6, "443")),
    *both("udp connected and sent elsewhere", ("udp_elsewhere", WEB4, "5432", OTHER4, "443"),
          ("udp_elsewhere", WEB6, "5432", OTHER6, "443"), to=(OTHER4, OTHER6)),
    *both("quic where tcp is allowed", ("udp", WEB4, "443"), ("udp", WEB6, "443")),
    *(row for name, number in TRANSPORTS.items()
      for row in both(f"protocol {name}", ("protocol", WEB4, number), ("protocol", WEB6, number))),
    *both("ip in ip", ("inside_ip", OWN4, WEB4, OTHER4), ("inside_ip", OWN6, WEB6, OTHER6), to=(WEB4, WEB6)),
    *both("ip of the other family in ip", ("inside_ip", OWN6, WEB4, OTHER6), ("inside_ip", OWN4, WEB6, OTHER4),
          to=(WEB4, WEB6)),
    *both("icmp payload", ("echo_request", WEB4), ("echo_request", WEB6)),
    *both("ping socket", ("ping_socket", WEB4), ("ping_socket", WEB6)),
    *both("own header", ("own_header", "udp", OWN4, OTHER4, "443"), ("own_header", "udp", OWN6, OTHER6, "443")),
    *both("crafted syn", ("own_header", "syn", OWN4, OTHER4, "443"), ("own_header", "syn", OWN6, OTHER6, "443")),
    *both("own header, another bottle's source", ("own_header", "udp", HERS4, WEB4, "5432"),
          ("own_header", "udp", HERS6, WEB6, "5432"), *HOST, to=(WEB4, WEB6)),
    *both("frame", ("frame", "udp", OWN4, OTHER4, "443", *MACS), ("frame", "udp", OWN6, OTHER6, "443", *MACS), *HOST),
    *both("frame with a crafted syn", ("frame", "syn", OWN4, OTHER4, "443", *MACS),
          ("frame", "syn", OWN6, OTHER6, "443", *MACS), *HOST),
    *both("frame, another bottle's source", ("frame", "udp", HERS4, WEB4, "5432", *MACS),
          ("frame", "udp", HERS6, WEB6, "5432", *MACS), *HOST, to=(WEB4, WEB6)),
    *both("frame, another bottle's mac", ("frame", "udp", OWN4, WEB4, "5432", HERS.mac_bottle, MINE.mac_host),
          ("frame", "udp", OWN6, WEB6, "5432", HERS.mac_bottle, MINE.mac_host), *HOST),
    Row("frame, a stranger's source v4", ("frame", "udp", "192.0.2.9", WEB4, "5432", *MACS), WEB4, HOST),
    Row("frame, a stranger's source v6", ("frame", "udp", "2001:db8:9::9", WEB6, "5432", *MACS), WEB6, (NFT,)),
    Row("borrowed source address v6", ("udp6_spoofed", HERS6, WEB6, "5432"), WEB6, HOST),  # IPv4 has no route for it
    Row("unique local address v6", ("udp", ULA, "443"), ULA),
    *(Row(f"metadata {a} by {way}", (way, a, "443"), a) for a in METADATA for way in ("tcp", "udp")),
    Row("metadata as one number", ("udp", "2852039166", "443"), METADATA[0]),
    Row("metadata in hexadecimal", ("udp", "0xa9fea9fe", "443"), METADATA[0]),
    Row("metadata in octal", ("udp", "0251.0376.0251.0376", "443"), METADATA[0]),
    Row("metadata mapped into v6", ("tcp_mapped", METADATA[0], "443"), METADATA[0]),
    Row("metadata by nat64", ("udp", "64:ff9b::a9fe:a9fe", "443"), "64:ff9b::a9fe:a9fe"),
    *both("the host's address", ("udp", HOST4, "443"), ("udp", HOST6, "443")),
    *both("the host's address by icmp", ("echo_request", HOST4), ("echo_request", HOST6)),
    *both("the gateway", ("udp", GATEWAY4, "443"), ("udp", GATEWAY6, "443")),
    *both("the gateway by tcp", ("tcp", GATEWAY4, "22"), ("tcp", GATEWAY6, "22")),
    *both("another bottle by udp", ("udp", HERS4, "443"), ("udp", HERS6, "443")),
    *both("another bottle by tcp", ("tcp", HERS4, "443"), ("tcp", HERS6, "443")),
    *both("another bottle by icmp", ("echo_request", HERS4), ("echo_request", HERS6)),
    *(Row(f"{name} by frame", ("frame", "udp", OWN6 if ":" in to else OWN4, to, port, MACS[0], mac), to,
          HOST if ":" in to else (NFT,))
      for name, to, port, mac in (
          ("mdns v4", "224.0.0.251", "5353", "01:00:5e:00:00:fb"), ("mdns v6", "ff02::fb", "5353", "33:33:00:00:00:fb"),
          ("llmnr v4", "224.0.0.252", "5355", "01:00:5e:00:00:fc"),
          ("llmnr v6", "ff02::1:3", "5355", "33:33:00:01:00:03"),
          ("ssdp v4", "239.255.255.250", "1900", "01:00:5e:7f:ff:fa"),
          ("ssdp v6", "ff05::c", "1900", "33:33:00:00:00:0c"),
          ("broadcast", "255.255.255.255", "67", "ff:ff:ff:ff:ff:ff"),
      )),
    *(Row(f"{name} by socket", ("udp", to, port), to, (NFT, BOTTLE)) for name, to, port in (
        ("mdns v4", "224.0.0.251", "5353"), ("ssdp v4", "239.255.255.250", "1900"),
        ("broadcast", "255.255.255.255", "67"),
    )),
    Row("router advertisement", ("router_advertisement", "fe80::16", *MACS), "ff02::1", (NFT,)),
    *(Row(f"dns to outside, {way} {port} v{6 if ':' in address else 4}", (way, address, port), address)
      for address in (OTHER4, OTHER6) for way, port in (("udp", "53"), ("tcp", "53"), ("tcp", "853"))),
]  # fmt: skip


@dataclass(frozen=True)
class Admin:
    """What root in the bottle does to its own namespace first, the attempt after it, and how it is undone."""

    technique: str
    first: str
    words: tuple[str, ...]
    to: str
    undo: str

    def __str__(self) -> str:
        return self.technique


_DEFAULT = f"default via {GATEWAY4} onlink src {OWN4}"
_TUNNEL = f"vxlan id 1 local {OWN4} remote {OTHER4} dstport 443 dev eth0"
_NEIGHBOURS = "".join(f"\nip neigh replace {a} lladdr {MINE.mac_host} dev eth0" for a in (GATEWAY4, GATEWAY6))
ADMIN = [
    Admin("flushed rules", "nft flush ruleset", ("udp", OTHER4, "443"), OTHER4, ":"),
    Admin("another bottle's address v4", f"ip addr add {HERS4}/32 dev eth0",
          ("udp4_spoofed", HERS4, WEB4, "5432"), WEB4,
          f"ip addr del {HERS4}/32 dev eth0"),
    Admin("another bottle's address v6", f"ip addr add {HERS6}/128 dev eth0 nodad",
          ("udp6_spoofed", HERS6, WEB6, "5432"), WEB6, f"ip addr del {HERS6}/128 dev eth0"),
    Admin("source translation",
          f"nft 'table ip leak {{ chain out {{ type nat hook postrouting priority 100; snat to {HERS4}; }}; }}'",
          ("udp", WEB4, "5432"), WEB4, "nft delete table ip leak"),
    Admin("another bottle's mac", f"ip link set eth0 address {HERS.mac_bottle}{_NEIGHBOURS}",
          ("udp", WEB6, "5432"), WEB6, f"ip link set eth0 address {MINE.mac_bottle}{_NEIGHBOURS}"),
    Admin("a route of its own", f"ip neigh add {HERS4} lladdr {MINE.mac_host} dev eth0\n"
          f"ip route add {OTHER4} via {HERS4} dev eth0 onlink", ("udp", OTHER4, "443"), OTHER4,
          f"ip route del {OTHER4}; ip neigh del {HERS4} dev eth0"),
    Admin("a tunnel", f"ip link add t0 type {_TUNNEL}\nip addr add 10.77.0.1/24 dev t0\nip link set t0 up\n"
          "ip neigh add 10.77.0.2 lladdr 02:00:00:00:00:07 dev t0",
          ("udp", "10.77.0.2", "443"), OTHER4, "ip link del t0"),
    Admin("a device of its own", "ip link add v0 link eth0 type macvlan mode bridge\nip link set v0 up\n"
          f"ip neigh add {GATEWAY4} lladdr {MINE.mac_host} dev v0\nip route replace {_DEFAULT} dev v0",
          ("udp", WEB4, "5432"), WEB4, f"ip route replace {_DEFAULT} dev eth0; ip link del v0"),
]  # fmt: skip
