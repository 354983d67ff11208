"""The launcher's pure parts: environment, /etc, filter, probe's verdicts and packets."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from agentmon.launch import messages
from agentmon.launch.environment import job_environment
from agentmon.launch.etc import etc_files
from agentmon.launch.probe import first_address, judge, syn_frame
from agentmon.launch.seccomp import filter_bytes
from agentmon.launch.spec import Exited, Job, ProbeResult, ProbeSpec


def test_environment_loses_the_hosts_sockets_sessions_and_proxies() -> None:
    caller = {
        "PATH": "/bin",
        "TERM": "xterm",
        "SSH_AUTH_SOCK": "/x",
        "DBUS_SESSION_BUS_ADDRESS": "x",
        "XDG_RUNTIME_DIR": "/run/user/1",
        "HTTPS_PROXY": "http://p",
        "no_proxy": "*",
        "SUDO_USER": "u",
        "AGENTMON_ROOT": "/x",
        "DOCKER_HOST": "x",
        "HOME": "/root",
    }
    env = job_environment(caller, bottle="b", user="u", home="/home/u")
    assert env == {
        "PATH": "/bin",
        "TERM": "xterm",
        "HOME": "/home/u",
        "USER": "u",
        "LOGNAME": "u",
        "AGENTMON_BOTTLE": "b",
    }


def test_environment_trusts_the_bundle_and_the_options_win() -> None:
    env = job_environment(
        {}, bottle="b", user="u", home="/h", bundle="/ca.pem", extra={"SSL_CERT_FILE": "/own", "K": "V"}
    )
    assert (env["SSL_CERT_FILE"], env["NODE_EXTRA_CA_CERTS"], env["K"]) == ("/own", "/ca.pem", "V")
    assert env["PATH"].endswith("/bin")


def test_etc_knows_the_user_the_resolver_and_nobody_else() -> None:
    files = etc_files(
        bottle="b",
        user="u",
        uid=1000,
        gid=100,
        home="/home/u",
        nameservers=["10.213.0.2", "fd61::2"],
        groups=[("dev", 7)],
    )
    assert files["/etc/resolv.conf"].startswith("nameserver 10.213.0.2\nnameserver fd61::2\n")
    assert [line.split(":")[0] for line in files["/etc/passwd"].splitlines()] == ["root", "u", "nobody"]
    assert files["/etc/group"] == "root:x:0:\ndev:x:7:\nu:x:100:\nnogroup:x:65534:\n"
    assert "hosts: files dns\n" in files["/etc/nsswitch.conf"]


def test_filter_is_whole_instructions_and_io_uring_makes_it_shorter() -> None:
    closed, opened = filter_bytes(False), filter_bytes(True)
    assert len(closed) % 8 == len(opened) % 8 == 0
    assert 0 < len(closed) <= 4096 * 8  # BPF_MAXINSNS
    assert len(opened) < len(closed)
    code, _jt, _jf, offset = struct.unpack_from("=HBBI", closed)
    assert (code, offset) == (0x20, 4)  # first of all: the architecture


PROBE = ProbeSpec(slot=16, netns="n", cgroup="/c", resolver="10.213.0.2", proxy="10.213.0.4")
GOOD: dict[str, Any] = {
    "dns": "10.213.0.4",
    "http": "200",
    "bpf4": "EPERM",
    "bpf6": "EPERM",
    "nft4": "EHOSTUNREACH",
    "nft6": "EACCES",
}


def test_probe_passes_when_all_is_as_it_should_be() -> None:
    assert judge(PROBE, ProbeResult(16, **GOOD)) == ()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dns", "timeout", "resolver at 10.213.0.2 did not answer"),
        ("dns", "10.213.0.5", "resolver"),
        ("http", "503", "proxy at 10.213.0.4 did not answer"),
        ("bpf4", "open", "bpf did not refuse a connection to 198.18.0.1: open"),
        ("bpf4", "EHOSTUNREACH", "bpf did not refuse"),
        ("bpf6", "timeout", "bpf did not refuse a connection to 2001:2::1"),
        ("nft4", "timeout", "bottle-nft did not refuse a connection to 198.18.0.1: timeout"),
        ("nft6", "open", "bottle-nft"),
    ],
)
def test_probe_names_the_layer_that_fails(field: str, value: str, words: str) -> None:
    (problem,) = judge(PROBE, ProbeResult(16, **GOOD | {field: value}))
    assert words in problem


def test_probe_without_ipv6_asks_nothing_of_it() -> None:
    spec = msgspec.structs.replace(PROBE, forbidden6="")
    assert judge(spec, ProbeResult(16, **GOOD | {"bpf6": "", "nft6": ""})) == ()


def _answer(*records: bytes, rcode: int = 0) -> bytes:
    return struct.pack("!HHHHHH", 1, 0x8180 | rcode, 1, len(records), 0, 0) + b"Q" * 10 + b"".join(records)


A_RECORD = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes([10, 0, 0, 9])
CNAME = b"\x03www\x00" + struct.pack("!HHIH", 5, 1, 60, 2) + b"\xc0\x0c"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (_answer(A_RECORD), "10.0.0.9"),
        (_answer(CNAME, A_RECORD), "10.0.0.9"),
        (_answer(), "no address"),
        (_answer(rcode=3), "rcode 3"),
        (b"short", "malformed"),
        (_answer(A_RECORD)[:-6], "malformed"),
        (_answer(b"\x3f"), "malformed"),
        (_answer(CNAME), "no address"),
    ],
)
def test_first_address_of_a_dns_answer(answer: bytes, expected: str) -> None:
    assert first_address(answer, 22) == expected


def test_syn_frame_is_well_formed() -> None:
    frame = syn_frame("02:00:00:00:00:01", "02:00:00:00:00:02", "198.51.100.1", "198.18.0.1")
    assert frame[:14].hex() == "0200000000010200000000020800" and len(frame) == 14 + 20 + 20
    words = struct.unpack("!10H", frame[14:34])
    total = sum(words)
    assert ((total & 0xFFFF) + (total >> 16)) & 0xFFFF == 0xFFFF  # RFC 1071: a right header sums to all ones
    assert frame[47] == 0x02 and struct.unpack_from("!H", frame, 36) == (443,)


@pytest.mark.parametrize(
    "packet",
    [
        messages.Spawn(id=1),
        messages.Probe(id=2, spec=PROBE),
        messages.Signal(id=3, slot=16, signum=15),
        messages.Ok(id=4),
        messages.Hello(version=1, pid=9, jobs=(Job(16, "r", 5),), ended=(Exited(17, "s", 0, 0),)),
        messages.Launched(id=5, pid=6),
        messages.Probed(id=6, result=ProbeResult(16)),
        messages.Error(id=7, kind="BadInput", message="m"),
        messages.Ended(exited=Exited(16, "r", 137, 9)),
    ],
)
def test_packets_survive_the_wire(packet: messages.Packet) -> None:
    assert messages.decode(messages.encode(packet)) == packet
