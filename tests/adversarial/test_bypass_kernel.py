"""Ways out of a bottle past the kernel's layers, tried from inside as the default job user: one row each.

A row passes when the attempt is refused, no byte reached a forbidden host of the stand-in internet, and nobody
called at the host's own listeners.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversarial.bypass_bottle import ATTEMPTS, PYTHON, Inside
from tests.support.live import World, until

pytestmark = pytest.mark.adversarial
GOOD4, GOOD6 = "198.51.100.11", "2001:db8:1::11"
BAD4, BAD6 = "203.0.113.10", "2001:db8:2::10"
ECHO, BAD_PORT, HOST_PORT, VICTIM_PORT = "9000", "443", 17777, "17778"
ABSTRACT = "agentmon-bypass"
RULES = (f"tcp://direct.allowed.example:{ECHO}", f"udp://direct.allowed.example:{ECHO}", "*.wild.example:443")


class Callers:
    """Listeners of the host: TCP, UDP, Unix. `seen`: who called where."""

    def __init__(self, paths: list[str]) -> None:
        self.seen: list[str] = []
        self._stack = contextlib.ExitStack()
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            self._serve(socket.AF_INET6, kind, ("::", HOST_PORT))
        for path in paths:
            self._serve(socket.AF_UNIX, socket.SOCK_STREAM, path)

    def _serve(self, family: int, kind: int, address: tuple[str, int] | str) -> None:
        sock = self._stack.enter_context(socket.socket(family, kind))
        sock.bind(address)
        self._stack.callback(sock.shutdown if kind == socket.SOCK_STREAM else lambda _: None, socket.SHUT_RDWR)
        if kind == socket.SOCK_STREAM:
            sock.listen(16)
        if isinstance(address, str) and not address.startswith("\0"):
            Path(address).chmod(0o777)
            self._stack.callback(Path(address).unlink)
        threading.Thread(target=self._wait, args=(sock, kind, str(address)), daemon=True).start()

    def _wait(self, sock: socket.socket, kind: int, address: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                if kind == socket.SOCK_DGRAM:
                    _, peer = sock.recvfrom(100)
                    sock.sendto(b"hello", peer)
                else:
                    client, peer = sock.accept()
                    with client, contextlib.suppress(OSError):
                        client.sendall(b"hello")
                self.seen.append(f"{address} from {peer}")

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("bypass")) as made:
        made.start_daemon()
        yield made


@pytest.fixture(scope="module")
def callers(world: World) -> Iterator[Callers]:
    made = Callers([f"/tmp/{ABSTRACT}.sock", f"/run/{ABSTRACT}.sock", f"\0{ABSTRACT}"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def victim(world: World) -> Inside:
    """Another bottle, with a listener that the tests know to answer at home."""
    shell = Inside(world, "bypass-victim")
    shell(f"{PYTHON} -I {ATTEMPTS} serves {VICTIM_PORT} >/dev/null 2>&1 &")
    until(lambda: shell.tries("tcp", "127.0.0.1", VICTIM_PORT) == "reached")
    return shell


@pytest.fixture(scope="module")
def bottle(world: World, callers: Callers, victim: Inside) -> Iterator[Inside]:
    shell = Inside(world, "bypass", *(word for rule in RULES for word in ("--allow", rule)))
    shell("getent ahostsv4 direct.allowed.example; getent ahostsv6 direct.allowed.example")
    for address in (GOOD4, GOOD6):  # the doors beside which the attempts knock are open, and the attempts work
        for way in WAYS:
            assert shell.tries(way, address, ECHO) == "reached", (way, address)
    yield shell
    shell.job.say("exit 0")
    shell.job.end()


TCP = ("tcp", "tcp_ctypes", "tcp_syscall", "tcp_fast_open", "tcp_multipath", "tcp_from_orphan")
UDP = ("udp", "udp_connected", "udp_sendmsg", "udp_sendmmsg")
WAYS = (*TCP, *UDP)

NUMERIC = [
    *((way, address, BAD_PORT) for way in WAYS for address in (BAD4, BAD6)),
    ("tcp_mapped", BAD4, BAD_PORT),
    ("tcp_after_disconnect", GOOD4, ECHO, BAD4, BAD_PORT),
    ("tcp_after_disconnect", GOOD6, ECHO, BAD6, BAD_PORT),
    ("udp_elsewhere", GOOD4, ECHO, BAD4, BAD_PORT),
    ("udp_elsewhere", GOOD6, ECHO, BAD6, BAD_PORT),
    ("udp_source_routed", GOOD4, ECHO, BAD4),
    ("tcp_source_routed", GOOD4, ECHO, BAD4),
    ("udp6_segment_routed", GOOD6, ECHO, BAD6),
    ("udp", GOOD4, "443"),  # QUIC where only another port is allowed
    ("udp", GOOD6, "443"),
    ("tcp", GOOD4, "443"),
]
LOCAL = [
    (way, address, port)
    for address in (
        "169.254.169.254", "168.63.129.16", "0.0.0.0", "255.255.255.255", "224.0.0.251", "239.255.255.250",
        "fd00:ec2::254", "::", "ff02::fb%eth0", "fe80::1%eth0", "64:ff9b::a9fe:a9fe", "::7f00:1",
        "::ffff:169.254.169.254",
    )
    for way, port in (("tcp", "80"), ("udp", "5353"))
]  # fmt: skip
SERVERS = [
    (way, server, "www.wild.example", "1")
    for server in ("198.51.100.53", "2001:db8:1::53", "203.0.113.53", "2001:db8:2::53")
    for way in ("dns", "dns_tcp")
]


def name(row: tuple[str, ...]) -> str:
    return " ".join(row)


@pytest.fixture
def nothing_leaks(world: World, callers: Callers) -> Iterator[None]:
    before, called = world.counters(), list(callers.seen)
    yield
    assert world.counters()["forbidden"] == before["forbidden"]
    assert callers.seen == called


@pytest.mark.parametrize("row", [*NUMERIC, *LOCAL, *SERVERS], ids=name)
def test_a_destination_outside_the_policy(bottle: Inside, nothing_leaks: None, row: tuple[str, ...]) -> None:
    assert bottle.tries(*row).startswith("refused")


def test_what_was_refused_is_told_with_its_process(world: World, bottle: Inside) -> None:
    for way, port in (("tcp_syscall", "81"), ("udp_sendmmsg", "82"), ("tcp_fast_open", "83")):
        for address in (BAD4, BAD6):
            bottle.tries(way, address, port)
            (event,) = until(lambda: world.events("bypass", dst=address, port=int(port)))  # noqa: B023
            assert (event["layer"], event["verdict"], event["comm"]) == ("bpf", "refused", "python3")
            assert event["pid"] > 0 and event["hint"].startswith("agentmon allow bypass ")


@pytest.mark.parametrize("way", ["tcp", "udp"])
@pytest.mark.parametrize("where", ["gateway", "uplink", "world", "resolver", "relay", "proxy"])
def test_the_hosts_and_the_services_other_ports(
    world: World, bottle: Inside, nothing_leaks: None, way: str, where: str
) -> None:
    settings = {"gateway": ("10.213.0.1", "fd61:6d6f:6e::1"), "world": ("198.51.100.1", "2001:db8:1::1")}
    settings |= {s: (f"10.213.0.{n}", f"fd61:6d6f:6e::{n}") for n, s in ((2, "resolver"), (3, "relay"), (4, "proxy"))}
    for address in settings.get(where) or _uplinks():
        assert bottle.tries(way, address, str(HOST_PORT)).startswith("refused"), address


def _uplinks() -> tuple[str, ...]:
    """The address from which this host reaches others; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("198.51.100.53", 53))
        return (sock.getsockname()[0],)


def test_another_bottle_and_from_the_host_into_one(world: World, bottle: Inside, victim: Inside) -> None:
    for address in victim.addresses:
        assert bottle.tries("tcp", address, VICTIM_PORT).startswith("refused")
        with pytest.raises(OSError):
            socket.create_connection((address, int(VICTIM_PORT)), 0.4)


@pytest.mark.parametrize("target", [(GOOD6, ECHO), ("fd61:6d6f:6e::2", "53")], ids=["internet", "resolver"])
def test_a_borrowed_source_address(
    world: World, bottle: Inside, victim: Inside, nothing_leaks: None, target: tuple[str, str]
) -> None:
    """IPv6 lets anybody bind an address that is not there; the host side knows whose packets these are."""
    for source in (victim.addresses[1], "fd61:6d6f:6e::1", "2001:db8:1::10"):
        assert bottle.tries("udp6_spoofed", source, *target).startswith("refused")
    assert bottle.tries("udp4_spoofed", victim.addresses[0], GOOD4, ECHO).startswith("refused")


# family, type, protocol: only socket() is tried, nothing is sent or connected
SOCKETS = {
    "raw icmp": (2, 3, 1), "raw ip": (2, 3, 255), "raw icmpv6": (10, 3, 58), "ping": (2, 2, 1), "ping6": (10, 2, 58),
    "udplite": (2, 2, 136), "udplite6": (10, 2, 136), "sctp": (2, 1, 132), "sctp seq": (2, 5, 132), "dccp": (2, 6, 33),
    "smc": (2, 1, 256), "packet": (17, 3, 768), "packet dgram": (17, 2, 768), "vsock": (40, 1, 0), "alg": (38, 5, 0),
    "netfilter": (16, 3, 12), "sock_diag": (16, 3, 4), "audit": (16, 3, 9), "generic": (16, 3, 16), "xfrm": (16, 3, 6),
    "uevent": (16, 3, 15), "xdp": (44, 3, 0), "bluetooth": (31, 3, 0), "tipc": (30, 1, 0), "can": (29, 3, 1),
    "key": (15, 3, 2), "ax25": (3, 2, 0), "pppox": (24, 1, 0), "smc family": (43, 1, 0), "rds": (21, 5, 0),
    "nfc": (39, 1, 0), "mctp": (45, 1, 0), "qipcrtr": (42, 2, 0), "x25": (9, 5, 0), "kcm": (41, 5, 0),
}  # fmt: skip


@pytest.mark.parametrize("row", SOCKETS.values(), ids=list(SOCKETS))
def test_a_socket_of_another_kind(bottle: Inside, row: tuple[int, int, int]) -> None:
    assert bottle.tries("opens", *map(str, row)).startswith("refused")
    assert bottle.tries("opens_by_syscall", *map(str, row)).startswith("refused")


CALLS = {
    "io_uring_setup": (425, 8, 0), "unshare user": (272, 0x1000_0000), "unshare net": (272, 0x4000_0000),
    "unshare user+net": (272, 0x5000_0000), "unshare mount": (272, 0x2_0000), "clone3": (435, 0, 88),
    "clone user": (56, 0x1000_0011, 0, 0, 0, 0), "clone net": (56, 0x4000_0011, 0, 0, 0, 0),
    "setns": (308, 0, 0x4000_0000),
    "mount": (165, 0, 0, 0, 0, 0), "umount2": (166, 0, 0), "pivot_root": (155, 0, 0), "open_tree": (428, -100, 0, 0),
    "fsopen": (430, 0, 0), "move_mount": (429, -1, 0, -1, 0, 0), "mount_setattr": (442, -1, 0, 0, 0, 0),
    "chroot": (161, 0), "keyctl": (250, 0, -3, 1), "add_key": (248, 0, 0, 0, 0, -3), "request_key": (249, 0, 0, 0, 0),
    "bpf": (321, 5, 0, 0), "perf_event_open": (298, 0, 0, -1, -1, 0), "userfaultfd": (323, 0),
    "open_by_handle_at": (304, 0, 0, 0), "ptrace init": (101, 16, 1, 0, 0),
    "kcmp init": (312, 1, 1, 0, 0, 0), "init_module": (175, 0, 0, 0), "kexec_load": (246, 0, 0, 0, 0),
    "reboot": (169, 0, 0, 0, 0), "swapon": (167, 0, 0), "iopl": (172, 3), "syslog": (103, 3, 0, 0), "acct": (163, 0),
    "quotactl": (179, 0, 0, 0, 0), "fanotify admin": (300, 0, 0), "mknod device": (133, 0, 0o60644, 0),
    "x32 socket": (0x4000_0029, 2, 1, 0), "x32 connect": (0x4000_002A, 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("row", CALLS.values(), ids=list(CALLS))
def test_a_system_call_that_leads_out(bottle: Inside, row: tuple[int, ...]) -> None:
    assert bottle.tries("system_call", *map(str, row)).startswith("refused")


def test_the_32_bit_entry(bottle: Inside) -> None:
    assert bottle.tries("int80_socket").startswith("refused")


def test_init_and_the_terminal(bottle: Inside) -> None:
    for words in (("traces", "1"), ("signals", "1"), ("push_into_terminal",)):
        assert bottle.tries(*words).startswith("refused"), words


READS = (
    "/proc/1/root", "/proc/1/cwd", "/proc/1/fd", "/proc/1/environ", "/proc/1/mem", "/proc/1/maps",
    "/proc/kcore", "/proc/kmsg",
    "/proc/timer_list", "/dev/mem", "/dev/kmsg", "/dev/net/tun", "/dev/kvm", "/dev/vhost-vsock", "/etc/shadow", "/root",
    "/run/agentmon", "/run/netns", "/etc/agentmon", "/var/lib/agentmon", "/var/log", "/boot", "/sys/fs", "/sys/kernel",
    "/sys/class/net", "/var/run/docker.sock", "/run/dbus", "/run/systemd", "/run/user",
)  # fmt: skip
WRITES = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv6/conf/all/accept_ra", "/proc/sys/net/ipv4/ping_group_range", "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity", "/proc/1/oom_score_adj", "/sys/devices/system/cpu/cpu1/online",
    "/etc/resolv.conf",
    "/etc/passwd", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt", "/usr/bin/env",
)  # fmt: skip


@pytest.mark.parametrize("path", READS)
def test_a_file_of_the_host(bottle: Inside, path: str) -> None:
    assert bottle.tries("reads", path) in {"refused ENOENT", "refused EACCES", "refused EPERM"}
    assert bottle.tries("lists", path).startswith("refused")


@pytest.mark.parametrize("path", WRITES)
def test_a_file_that_steers_the_host(bottle: Inside, path: str) -> None:
    assert bottle.tries("writes", path).startswith("refused")


@pytest.mark.parametrize("directory", ["/", "/etc", "/run", "/usr", "/usr/local/bin", "/opt", "/dev", "/var", "/sys"])
def test_a_place_that_is_not_the_jobs(bottle: Inside, directory: str) -> None:
    assert bottle.tries("creates", f"{directory}/planted").startswith("refused")


@pytest.mark.parametrize("words", ["sudo -n id -u", 'su -c "id -u"', "pkexec id -u", "mount", "newgrp root"])
def test_a_set_uid_program(bottle: Inside, words: str) -> None:
    assert bottle.tries("escalates", *words.split()).startswith("refused")


@pytest.mark.parametrize("path", [f"/tmp/{ABSTRACT}.sock", f"/run/{ABSTRACT}.sock", f"@{ABSTRACT}"])
def test_a_unix_socket_of_the_host(bottle: Inside, nothing_leaks: None, path: str) -> None:
    assert bottle.tries("unix_stream", path).startswith("refused")


def test_the_control_socket_and_the_services_are_not_there(world: World, bottle: Inside) -> None:
    for path in (world.run_dir, world.run_dir / "control.sock", *(world.run_dir / "svc").iterdir()):
        assert bottle.tries("reads", str(path)) == "refused ENOENT", path


def test_nothing_is_inherited(bottle: Inside) -> None:
    descriptors = bottle("ls -l /proc/self/fd | grep -o '[0-9]* -> .*'").splitlines()
    assert len(descriptors) == 4 and sum("pipe:" in line for line in descriptors) == 3, descriptors
    status = bottle("grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status").splitlines()
    assert [line.split()[1:] for line in status if line.startswith("Cap")] == [["0" * 16]] * 5
    assert {"NoNewPrivs:\t1", "Seccomp:\t2"} <= set(status)


def test_another_bottles_processes_and_home_are_not_there(bottle: Inside, victim: Inside) -> None:
    victim("touch $HOME/mine /tmp/mine /var/tmp/mine /dev/shm/mine")
    assert bottle("ls $HOME /tmp /var/tmp /dev/shm | grep -c mine") == "0"
    assert "serves" in victim("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; echo")
    assert "serves" not in bottle("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; echo")
