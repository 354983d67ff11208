"""A parent cgroup, a throwaway network namespace with local receivers, and processes of bottles that try things.

The namespace has no way out: every address of the tests, metadata's included, lives on its loopback device.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from ebpf import cgroup, child
from ebpf.programs import CgroupPrograms
from ebpf.sources import Sizes
from ebpf.spec import BottlePolicy, Endpoint, Entry, Event, Mode

ADDRESSES = (
    "198.51.100.7", "198.51.100.8", "203.0.113.5", "203.0.113.77", "169.254.169.254",
    "2001:db8::7", "2001:db8::8", "2001:db8:1::9", "fd00:ec2::254",
)  # fmt: skip
PORTS = (53, 80, 443, 5432, 8050)
SIZES = Sizes(
    bottles=64, exact=2048, host=256, prefix=256, seen=1024, listen=64, unix=64, guarded=256, ring_bytes=1 << 16
)
SO_NETNS_COOKIE = 71
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()
child.TIMEOUT_S = 240  # an emulated processor (tests/kernel) compiles for a minute and more

CLIENT = r"""
import ctypes, errno, ipaddress, json, os, socket, struct, subprocess, sys, threading
procs, netns = sys.argv[1:]
fd = os.open(netns, os.O_RDONLY)
assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
# Made outside the bottle's cgroup: cgroup hooks are not asked about these.
kept = {"early": socket.socket(), "early-6": socket.socket(socket.AF_INET6)}
kept["early-udp"] = socket.socket(type=socket.SOCK_DGRAM)
with open(procs, "w") as f: f.write(str(os.getpid()))
AM_SOL, REGISTER, UNREGISTER, VOUCH = 24941, 1, 2, 3
def token(option, value):
    with socket.socket() as s: s.setsockopt(AM_SOL, option, struct.pack("=Q", value))
def vouch(s, to):
    a = ipaddress.ip_address(to[0])
    a = a.packed if a.version == 6 else bytes(10) + b"\xff\xff" + a.packed
    s.setsockopt(AM_SOL, VOUCH, struct.pack("=16sHBxI", a, to[1], 6 if s.type == socket.SOCK_STREAM else 17, 0))
def unix(op, sort, path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if sort == "stream" else socket.SOCK_DGRAM)
    s.settimeout(2)
    with s:
        if op == "unix-connect": s.connect(path)
        else: s.sendto(b"leak", path)
def in_child(request):
    pid = os.fork()
    if pid == 0: os._exit(attempt(request))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def in_thread(request):
    out = []
    thread = threading.Thread(target=lambda: out.append(attempt(request)))
    thread.start(); thread.join()
    return out[0]
CONNECT = ("import socket,sys\ntry: socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)\n"
           "except OSError as e: sys.exit(e.errno)")
def in_program(request):
    return subprocess.run([sys.executable, "-c", CONNECT, request["to"][0], str(request["to"][1])]).returncode
def attempt(request):
    try:
        for _ in range(request.pop("times", 1)): act(**request)
    except TimeoutError: return errno.ETIMEDOUT
    except OSError as e: return e.errno
    return 0
FAMILY = {"4": socket.AF_INET, "6": socket.AF_INET6}
def act(op, version="4", to=None, sort="stream", proto=0, keep=None, use=None, vouched=None, value=0, **more):
    if op in ("register", "unregister"): return token(REGISTER if op == "register" else UNREGISTER, value)
    if op == "socket" and more:
        socket.socket(more["family"], more["type"], proto).close()
        return
    if op.startswith("unix-"): return unix(op, sort, bytes.fromhex(more["path"]))
    family = FAMILY[version]
    kind = {"stream": socket.SOCK_STREAM, "dgram": socket.SOCK_DGRAM, "raw": socket.SOCK_RAW}[sort]
    s = kept[use] if use else socket.socket(family, kind, proto)
    if keep: kept[keep] = s
    s.settimeout(2)
    to = tuple(to) if to else None
    if vouched: vouch(s, vouched)
    if op == "connect": s.connect(to)
    elif op == "connect_ex":
        r = s.connect_ex(to)
        if r: raise OSError(r, "connect_ex")
    elif op == "bind": s.bind(to)
    elif op == "listen": s.listen()
    elif op == "option": s.setsockopt(*more["option"][:2], bytes.fromhex(more["option"][2]))
    elif op == "sendto": s.sendto(b"leak", to)
    elif op == "sendmsg": s.sendmsg([b"leak"], [], 0, to)
    elif op == "send": s.send(b"leak")
    elif op == "fastopen": s.sendto(b"leak", 0x20000000, to)
    elif op == "disconnect":
        r = ctypes.CDLL(None, use_errno=True).connect(s.fileno(), struct.pack("=H14x", 0), 16)
        if r: raise OSError(ctypes.get_errno(), "disconnect")
    elif op == "unspec-send":
        a = struct.pack("=HH4s8x", 0, socket.htons(to[1]), socket.inet_aton(to[0]))
        r = ctypes.CDLL(None, use_errno=True).sendto(s.fileno(), b"leak", 4, 0, a, 16)
        if r < 0: raise OSError(ctypes.get_errno(), "sendto")
    if not keep and not use: s.close()
print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "look-up":
        print(len(socket.getaddrinfo(request["name"], request["port"], type=socket.SOCK_STREAM)), flush=True)
        continue
    where = {"child": in_child, "thread": in_thread, "program": in_program}.get(request.pop("by", ""), attempt)
    print(where(request), flush=True)
"""


def until(what: Callable[[], Any], seconds: float = 5.0) -> Any:
    """Poll `what` until it is true; fails with what it last gave."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"nothing came of it in {seconds} s: {value!r}"
        select.select([], [], [], 0.02)
    return value


def entry(network: str, *ports: int | tuple[int, int], proto: str = "tcp", rule: int = 0, timeout_s: int = 0) -> Entry:
    ranges = tuple(p if isinstance(p, tuple) else (p, p) for p in ports)
    return Entry(ip_network(network), proto, ranges, rule, timeout_s)


def endpoint(address: str, port: int, proto: str = "tcp", survives_cut: bool = True) -> Endpoint:
    return Endpoint(ip_address(address), proto, port, survives_cut)


class Process:
    """A process in a bottle's cgroup (and the lab's namespace) that does what it is told and answers with an errno."""

    def __init__(self, cgroup_dir: Path, netns: str, hosts: Path | None) -> None:
        argv = [sys.executable, "-c", CLIENT, str(cgroup_dir / "cgroup.procs"), netns]
        if hosts is not None:
            argv = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts), *argv]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line().startswith("ready")
        self.pid = self._process.pid

    def do(self, op: str, **request: Any) -> int:
        """The errno of one system call in the bottle, 0 for success."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def connect(self, to: str, port: int, **more: Any) -> int:
        return self.do("connect", version="6" if ":" in to else "4", to=[to, port], **more)

    def sendto(self, to: str, port: int, **more: Any) -> int:
        return self.do("sendto", version="6" if ":" in to else "4", to=[to, port], sort="dgram", **more)

    def unix(self, path: str | bytes, op: str = "unix-connect", **more: Any) -> int:
        return self.do(op, path=os.fsencode(path).hex(), **more)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class Bottle:
    """A slot with its cgroup below the lab's parent, and the policy last applied."""

    def __init__(self, lab: Lab, slot: int) -> None:
        self.lab = lab
        self.slot = slot
        self.directory = lab.parent / f"b{slot}"
        self.directory.mkdir()
        self.id = cgroup.cgroup_id(self.directory)

    def apply(self, **fields: Any) -> BottlePolicy:
        defaults = {"epoch": 1, "mode": Mode.ENFORCE, "netns_cookie": self.lab.cookie, "policy_id": next(self.lab.ids)}
        policy = BottlePolicy(slot=self.slot, cgroup_id=self.id, **{**defaults, **fields})
        self.lab.programs.apply(policy)
        return policy

    def process(self, below: str = "") -> Process:
        directory = self.directory / below
        directory.mkdir(exist_ok=True)
        return self.lab.process(directory)


class Lab:
    """Everything of one test module. Use as a context manager; leaves nothing."""

    def __init__(self, programs: CgroupPrograms | None = None) -> None:
        name = f"agentmon-test-{os.getpid()}-{next(_serial)}"
        self.pin_dir = Path("/sys/fs/bpf") / name
        self.parent = cgroup.find_v2() / name
        self.programs = programs or self.new_programs()
        self.ids = itertools.count(1)
        self._slots = itertools.count(16)
        self._processes: list[Process] = []
        self._sockets: list[socket.socket] = []
        self._holders: list[subprocess.Popen[bytes]] = []
        self.tcp: dict[tuple[str, int], socket.socket] = {}
        self.udp: dict[tuple[str, int], socket.socket] = {}

    def new_programs(self, **more: Any) -> CgroupPrograms:
        return CgroupPrograms(self.pin_dir, more.pop("sizes", SIZES), **more)

    def __enter__(self) -> Lab:
        self.parent.mkdir()
        try:
            self.netns, self.cookie = self.namespace()
            run_in(self.netns, self._listen)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end_processes()
        self.programs.close()
        for holder in self._holders:
            holder.kill()
            holder.wait()
        for s in (*self._sockets, *self.tcp.values(), *self.udp.values()):
            s.close()
        for directory in sorted(self.parent.glob("**/"), reverse=True):
            until(lambda d=directory: _rmdir(d))

    def namespace(self) -> tuple[str, int]:
        """A new network namespace with the lab's addresses: its path and cookie."""
        # The shell says when it is inside, and stays there.
        holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo in; exec sleep 600"], stdout=subprocess.PIPE)
        self._holders.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == b"in\n"
        holder.stdout.close()
        path = f"/proc/{holder.pid}/ns/net"
        lines = ["link set lo up"]
        lines += [f"addr add {a}/128 dev lo nodad" if ":" in a else f"addr add {a}/32 dev lo" for a in ADDRESSES]
        batch = "\n".join(lines)
        subprocess.run(["nsenter", f"--net={path}", "ip", "-batch", "-"], input=batch, text=True, check=True)
        return path, run_in(path, _cookie)

    def _listen(self) -> None:
        for address in ("127.0.0.1", "::1", *ADDRESSES):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for port in PORTS:
                listener = socket.socket(family, socket.SOCK_STREAM)
                listener.bind((address, port))
                listener.listen(1024)
                listener.setblocking(False)
                self.tcp[(address, port)] = listener
                receiver = socket.socket(family, socket.SOCK_DGRAM)
                receiver.bind((address, port))
                receiver.setblocking(False)
                self.udp[(address, port)] = receiver

    def bottle(self) -> Bottle:
        return Bottle(self, next(self._slots))

    def process(self, directory: Path, netns: str | None = None, hosts: Path | None = None) -> Process:
        """`hosts` stands in for /etc/hosts, for this process alone."""
        process = Process(directory, netns or self.netns, hosts)
        self._processes.append(process)
        return process

    def end_processes(self) -> None:
        for process in self._processes:
            process.end()
        self._processes.clear()

    def remove_bottles(self) -> None:
        """Their (empty) cgroups; the processes have ended."""
        for directory in sorted(self.parent.glob("b*/**/"), reverse=True):
            until(lambda d=directory: _rmdir(d))

    def received(self) -> list[str]:
        """Every connection and datagram that reached a receiver since the last call."""
        found = []
        for (address, port), listener in self.tcp.items():
            while _ready(listener):
                listener.accept()[0].close()
                found.append(f"tcp {address} {port}")
        for (address, port), receiver in self.udp.items():
            while _ready(receiver):
                receiver.recv(2048)
                found.append(f"udp {address} {port}")
        return found

    def events(self, process: Process) -> list[Event]:
        """Events of one process that are waiting now; those of others are dropped."""
        return [e for e in self.programs.read() if e.tgid == process.pid]


def run_in(netns: str, what: Callable[[], Any]) -> Any:
    """Call `what` in a thread that is inside the namespace; sockets it makes stay there."""
    result: list[Any] = []

    def inside() -> None:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, 0x4000_0000):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)
        result.append(what())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert result, "the thread in the namespace failed"
    return result[0]


def _cookie() -> int:
    with socket.socket() as s:
        return int(struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


def _ready(s: socket.socket) -> bool:
    return bool(select.select([s], [], [], 0)[0])


def _rmdir(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
