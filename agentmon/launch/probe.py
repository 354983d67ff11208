"""The probe: from inside a bottle, what must work works, and what must not is refused by each layer alone.

One process walks through three positions:

    in the netns, not in the bottle's cgroup   send, connect → refused by the bottle's nft only
                                               a frame straight on eth0 → passes no hook of ours but the host's
    in the netns and in the probe cgroup       connect → refused by BPF (EPERM) before a packet exists
                                               resolver and proxy answer

The host's layer is judged by the daemon: its refusals for the slot must have grown if the frame was sent. Times out
rather than hangs; a refusal that takes until the time-out is a drop, which is a fault: refusals are immediate.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from ipaddress import IPv4Address
from pathlib import Path

from agentmon.launch.spec import ProbeResult, ProbeSpec
from agentmon.launch.syscalls import enter_netns

NAME = "agentmon.internal"
_FORBIDDEN_PORT = 443
_BY_BPF = ("EPERM",)
# What a local sender sees of nft's reject and drop verdicts, whichever reject type the rules use; ip(7), tcp(7).
_BY_NFT = ("EHOSTUNREACH", "EACCES", "ECONNREFUSED", "EPERM")


def run_probe(spec: ProbeSpec) -> ProbeResult:
    """Everything above, in this process, which moves for good: call it in a fork. Needs root."""
    started = time.monotonic_ns()
    try:
        seen = _walk(spec)
    except OSError as e:
        seen = ProbeResult(spec.slot, problems=(f"the probe could not run: {e}",))
    elapsed_us = (time.monotonic_ns() - started) // 1000
    return ProbeResult(
        spec.slot, seen.dns, seen.http, seen.bpf4, seen.bpf6, seen.nft4, seen.nft6, seen.frame,
        seen.problems or judge(spec, seen), elapsed_us,
    )  # fmt: skip


def judge(spec: ProbeSpec, seen: ProbeResult) -> tuple[str, ...]:
    """What is wrong with `seen`, for people. Pure."""
    problems = []
    if seen.dns != spec.proxy:
        problems.append(f"the resolver at {spec.resolver} did not answer {NAME} with {spec.proxy}: {seen.dns}")
    if seen.http != "200":
        problems.append(f"the proxy at {spec.proxy} did not answer http://{NAME}/healthz: {seen.http}")
    refusals = [("bpf", seen.bpf4, spec.forbidden4, _BY_BPF), ("bottle-nft", seen.nft4, spec.forbidden4, _BY_NFT)]
    if spec.forbidden6:
        refusals += [("bpf", seen.bpf6, spec.forbidden6, _BY_BPF), ("bottle-nft", seen.nft6, spec.forbidden6, _BY_NFT)]
    for layer, outcome, address, accepted in refusals:
        if outcome not in accepted:
            problems.append(f"{layer} did not refuse a connection to {address}: {outcome}")
    return tuple(problems)


def _walk(spec: ProbeSpec) -> ProbeResult:
    enter_netns(spec.netns)
    timeout_s = spec.timeout_ms / 1000
    nft4 = _refused_by_nft(socket.AF_INET, spec.forbidden4, timeout_s)
    nft6 = _refused_by_nft(socket.AF_INET6, spec.forbidden6, timeout_s) if spec.forbidden6 else ""
    frame = _send_frame(spec) if spec.mac_host else ""
    Path(spec.cgroup, "cgroup.procs").write_text(str(os.getpid()))
    bpf4 = _connect(socket.AF_INET, spec.forbidden4, timeout_s)
    bpf6 = _connect(socket.AF_INET6, spec.forbidden6, timeout_s) if spec.forbidden6 else ""
    dns = _ask(spec.resolver, timeout_s)
    http = _get(spec.proxy, timeout_s)
    return ProbeResult(spec.slot, dns, http, bpf4, bpf6, nft4, nft6, frame)


def _refused_by_nft(family: int, address: str, timeout_s: float) -> str:
    """How a connect ends, if a datagram does not even leave: only a verdict of the namespace's own output hook makes
    send(2) fail with EPERM, while the host's reject would look the same to a connect. "open" if it leaves."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"", (address, _FORBIDDEN_PORT))
        except PermissionError:
            return _connect(family, address, timeout_s)
        except OSError as e:
            return _name(e)
    return "open"


def _connect(family: int, address: str, timeout_s: float) -> str:
    """The errno's name with which a TCP connect is refused, "open", or "timeout"."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect((address, _FORBIDDEN_PORT))
        except TimeoutError:
            return "timeout"
        except OSError as e:
            return _name(e)
    return "open"


def _send_frame(spec: ProbeSpec) -> str:
    """One SYN to `forbidden4` by AF_PACKET: "sent", or the errno's name. packet(7)."""
    frame = syn_frame(spec.mac_host, spec.mac_bottle, spec.addr4, spec.forbidden4)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        try:
            sock.bind((spec.device, 0))
            sock.send(frame)
        except OSError as e:
            return _name(e)
    return "sent"


def syn_frame(mac_to: str, mac_from: str, source: str, destination: str) -> bytes:
    """An Ethernet frame with a TCP SYN to port 443; RFC 894, 791, 9293."""
    source4, destination4 = IPv4Address(source).packed, IPv4Address(destination).packed
    tcp = struct.pack("!HHIIBBHHH", 40000, _FORBIDDEN_PORT, 1, 0, 5 << 4, 0x02, 64240, 0, 0)
    pseudo = source4 + destination4 + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", _checksum(pseudo + tcp)) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, socket.IPPROTO_TCP, 0) + source4 + destination4
    ip = ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:]
    macs = bytes.fromhex(mac_to.replace(":", "")) + bytes.fromhex(mac_from.replace(":", ""))
    return macs + struct.pack("!H", 0x0800) + ip + tcp


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _ask(resolver: str, timeout_s: float) -> str:
    """The first A record of agentmon.internal from `resolver`, or what went wrong; RFC 1035 section 4."""
    family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
    question = (
        b"".join(bytes([len(label)]) + label.encode() for label in NAME.split(".")) + b"\0" + struct.pack("!HH", 1, 1)
    )
    query = struct.pack("!HHHHHH", os.getpid() & 0xFFFF, 0x0100, 1, 0, 0, 0) + question
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect((resolver, 53))
            sock.send(query)
            answer = sock.recv(1500)
        except TimeoutError:
            return "timeout"
        except OSError as e:
            return _name(e)
    return first_address(answer, 12 + len(question))


def first_address(answer: bytes, at: int) -> str:
    """The first A record of a DNS answer whose answer section starts at `at`, or the reason why there is none."""
    if len(answer) < 12:
        return "malformed"
    rcode, count = answer[3] & 15, struct.unpack_from("!H", answer, 6)[0]
    if rcode:
        return f"rcode {rcode}"
    for _ in range(count):
        while at < len(answer) and answer[at] not in range(0xC0, 0x100):  # skip labels up to a pointer or the root
            if answer[at] == 0:
                break
            at += 1 + answer[at]
        if at >= len(answer):
            return "malformed"
        at += 1 if answer[at] == 0 else 2
        if at + 10 > len(answer):
            return "malformed"
        kind, _class, _ttl, length = struct.unpack_from("!HHIH", answer, at)
        at += 10
        if kind == 1 and length == 4 and at + 4 <= len(answer):
            return str(IPv4Address(answer[at : at + 4]))
        at += length
    return "no address"


def _get(proxy: str, timeout_s: float) -> str:
    """The status code of GET http://agentmon.internal/healthz, or what went wrong; RFC 9112."""
    request = f"GET /healthz HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()
    head = b""
    try:
        with contextlib.closing(socket.create_connection((proxy, 80), timeout_s)) as sock:
            sock.sendall(request)
            while b"\r\n" not in head and (data := sock.recv(4096)):
                head += data
    except TimeoutError:
        return "timeout"
    except OSError as e:
        return _name(e)
    words = head.split(b"\r\n", 1)[0].split()
    return words[1].decode("ascii", "replace") if len(words) > 1 else "closed without an answer"


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
