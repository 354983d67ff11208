"""The spawner on the real kernel: gate, exit statuses, signals, terminals, adoption, what the job can see and do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.errors import AgentmonError, BadInput, HostLacks
from agentmon.launch.client import Spawner
from agentmon.launch.etc import etc_files
from agentmon.launch.spec import Exited, LaunchSpec, Spawned

pytestmark = pytest.mark.root
UID = 61234
_SERIAL = itertools.count()


def _cgroup2() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if tail.split()[0] == "cgroup2":
            return Path(head.split()[4])
    pytest.fail("cgroup v2 is not mounted")


def _until(what: Callable[[], Any], seconds: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        select.select([], [], [], 0.005)
    pytest.fail("nothing came of it in time")


class Place:
    """A leaf cgroup, a network namespace, a home, and a spawner of the test's own."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.name = f"agentmon-test-{os.getpid()}-{next(_SERIAL)}"
        self.parent = _cgroup2() / self.name
        self.leaf = self.parent / "leaf"
        self.home = tmp / "home"
        self.socket = tmp / "spawner.sock"

    def make(self) -> None:
        self.leaf.mkdir(parents=True)
        self.home.mkdir()
        os.chown(self.home, UID, UID)
        self.tmp.chmod(0o755)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True)

    def unmake(self) -> None:
        for leaf in self.parent.iterdir() if self.parent.exists() else ():
            if leaf.is_dir():
                (leaf / "cgroup.kill").write_text("1")
                _until(lambda leaf=leaf: not (leaf / "cgroup.procs").read_text())
                leaf.rmdir()
        self.parent.rmdir()
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def spec(self, *argv: str, **changes: Any) -> LaunchSpec:
        values: dict[str, Any] = {
            "slot": 99, "bottle": "test", "run": "r1", "argv": argv,
            "env": {"PATH": "/usr/bin:/bin", "HOME": "/home/job"},
            "cwd": "/", "uid": UID, "gid": UID, "home": "/home/job", "home_source": str(self.home), "netns": self.name,
            "cgroup": str(self.leaf),
            "files": etc_files(
                bottle="test", user="job", uid=UID, gid=UID, home="/home/job", nameservers=["198.51.100.53"]
            ),
        }  # fmt: skip
        return LaunchSpec(**values | changes)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.make()
    try:
        yield place
    finally:
        place.unmake()


def drive(place: Place, body: Callable[[Spawner], Awaitable[Any]]) -> Any:
    """Run `body` with a started spawner; the process must have ended afterwards."""

    async def main() -> Any:
        spawner = Spawner(place.socket)
        await spawner.start()
        try:
            return await asyncio.wait_for(body(spawner), 20)
        finally:
            await spawner.close()

    return asyncio.run(main())


async def read_all(fd: int) -> bytes:
    def read() -> bytes:
        out = b""
        with contextlib.suppress(OSError):  # EIO: the other side of a pty has closed
            while data := os.read(fd, 65536):
                out += data
        return out

    return await asyncio.to_thread(read)


async def run(spawner: Spawner, spec: LaunchSpec, stdin: bytes = b"") -> tuple[bytes, bytes, dict[str, int], Exited]:
    spawned = await spawner.spawn(spec)
    if spec.tty:
        master, status = spawned.fds
        out, err = await read_all(master), b""
        os.close(master)
    else:
        stdin_w, stdout_r, stderr_r, status = spawned.fds
        os.write(stdin_w, stdin)
        os.close(stdin_w)
        out, err = await read_all(stdout_r), await read_all(stderr_r)
        os.close(stdout_r)
        os.close(stderr_r)
    line = json.loads(await read_all(status))
    os.close(status)
    return out, err, line, await spawner.exits.get()


def once(place: Place, spec: LaunchSpec, stdin: bytes = b"") -> tuple[bytes, bytes, dict[str, int], Exited]:
    return drive(place, lambda spawner: run(spawner, spec, stdin))


@pytest.mark.parametrize(
    ("argv", "code", "signum"),
    [
        (("true",), 0, 0),
        (("sh", "-c", "exit 7"), 7, 0),
        (("sh", "-c", "kill -TERM $$"), 143, 15),
        (("nosuchcommand",), 127, 0),
        (("/etc/hostname",), 126, 0),
    ],
)
def test_exit_status_is_the_commands_own(place: Place, argv: tuple[str, ...], code: int, signum: int) -> None:
    _out, err, line, exited = once(place, place.spec(*argv))
    assert (line["exit"], line["signal"]) == (code, signum), err
    assert exited == Exited(99, "r1", code, signum)


def test_streams_pass_through_and_the_user_may_open_them_anew(place: Place) -> None:
    out, err, line, _ = once(place, place.spec("sh", "-c", "cat >/dev/stdout; echo oops >/dev/stderr"), b"hello")
    assert (out, err, line["exit"]) == (b"hello", b"oops\n", 0)


def test_nothing_of_the_command_runs_before_the_thaw(place: Place) -> None:
    (place.leaf / "cgroup.freeze").write_text("1")

    async def body(spawner: Spawner) -> None:
        spawned = await spawner.spawn(place.spec("sh", "-c", "echo ran"))
        assert (place.leaf / "cgroup.procs").read_text().split() == [str(spawned.pid)]
        assert select.select([spawned.fds[1]], [], [], 0.1) == ([], [], [])
        (place.leaf / "cgroup.freeze").write_text("0")
        assert await read_all(spawned.fds[1]) == b"ran\n"
        await spawner.exits.get()
        for fd in spawned.fds:
            os.close(fd)

    drive(place, body)


INSIDE = r"""
import ctypes, errno, json, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def sock(*a):
    try: socket.socket(*a).close()
    except OSError as e: return errno.errorcode[e.errno]
    return "ok"
def call(*a):
    ctypes.set_errno(0)
    r = libc.syscall(*a)
    return "ok" if r >= 0 else errno.errorcode[ctypes.get_errno()]
def opens(path, mode):
    try: open(path, mode).close()
    except OSError as e: return errno.errorcode[e.errno]
    return "ok"
status = dict(l.split(":\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\t" in l)
print(json.dumps({
  "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
  "caps": [status[k] for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")], "nnp": status["NoNewPrivs"],
  "fds": sorted(int(f) for f in os.listdir("/proc/self/fd"))[:-1],
  "pids": len([p for p in os.listdir("/proc") if p.isdigit()]),
  "env": dict(os.environ), "cwd": os.getcwd(), "host": os.uname().nodename,
  "vsock": sock(40, 1), "packet": sock(17, 3), "alg": sock(38, 5), "xdp": sock(44, 3),
  "wrapped": call(41, 0x100000028, 1, 0),
  "unix": sock(1, 1), "inet": sock(2, 1), "inet6": sock(10, 2), "route": sock(16, 3, 0),
  "audit": sock(16, 3, 9), "raw": sock(2, 3, 1),
  "io_uring": call(425, 8, 0), "clone3": call(435, 0, 0), "keyctl": call(250, 0, -3, 0), "bpf": call(321, 0, 0, 0),
  "newuser": call(272, 0x10000000), "newnet": call(272, 0x40000000), "cloneuser": call(56, 0x10000000 | 17, 0, 0, 0, 0),
  "setns": call(308, 0, 0), "mount": call(165, 0, 0, 0, 0, 0),
  "core_pattern": opens("/proc/sys/kernel/core_pattern", "w"), "hostname": opens("/proc/sys/kernel/hostname", "w"),
  "usr": opens("/usr/x", "w"), "root": opens("/x", "w"), "etc": opens("/etc/resolv.conf", "a"),
  "shadow": opens("/etc/shadow", "r"),
  "tmp": opens("/tmp/x", "w"), "shm": opens("/dev/shm/x", "w"), "home": opens("/home/job/x", "w"),
  "run": os.listdir("/run"),
  "cgroupfs": os.path.exists("/sys/fs/cgroup"), "netdevs": os.path.exists("/sys/class/net"),
  "oldtmp": os.listdir("/tmp"),
  "resolv": open("/etc/resolv.conf").read(), "pid1": open("/proc/1/cmdline").read(),
}))
"""


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    place = Place(tmp_path_factory.mktemp("inside"))
    place.make()
    try:
        env = {"PATH": "/usr/bin:/bin", "HOME": "/home/job", "SECRET": "s3cr3t", "LANG": "C.UTF-8", "EMPTY": ""}
        out, err, line, _ = once(place, place.spec("/usr/bin/python3", "-c", INSIDE, env=env))
        assert line["exit"] == 0, err.decode()
        yield json.loads(out)
    finally:
        place.unmake()


def test_identity_and_privileges(inside: dict[str, Any]) -> None:
    assert inside["uid"] == [UID] * 3 and inside["gid"] == [UID] * 3 and inside["groups"] == []
    assert inside["caps"] == ["0" * 16] * 5 and inside["nnp"] == "1"
    assert inside["fds"] == [0, 1, 2]
    assert inside["pids"] == 2  # bwrap's reaper and the command
    assert inside["host"] == "test"


def test_environment_is_complete_and_not_in_anyones_command_line(inside: dict[str, Any]) -> None:
    env = inside["env"]
    env.pop("LC_CTYPE", None)  # Python's own
    assert env == {
        "PATH": "/usr/bin:/bin",
        "HOME": "/home/job",
        "SECRET": "s3cr3t",
        "LANG": "C.UTF-8",
        "EMPTY": "",
        "PWD": "/",
    }
    assert "s3cr3t" not in inside["pid1"]


@pytest.mark.parametrize("family", ["vsock", "packet", "alg", "xdp", "wrapped"])
def test_other_socket_families_are_refused(inside: dict[str, Any], family: str) -> None:
    assert inside[family] == "EAFNOSUPPORT"


def test_ordinary_sockets_work_and_raw_ones_do_not(inside: dict[str, Any]) -> None:
    assert [inside[f] for f in ("unix", "inet", "inet6", "route")] == ["ok"] * 4
    assert inside["audit"] == "EPROTONOSUPPORT" and inside["raw"] == "EPERM"


@pytest.mark.parametrize(
    ("call", "name"),
    [("io_uring", "ENOSYS"), ("clone3", "ENOSYS")]
    + [(c, "EPERM") for c in ("keyctl", "bpf", "newuser", "newnet", "cloneuser", "setns", "mount")],
)
def test_system_calls_are_refused(inside: dict[str, Any], call: str, name: str) -> None:
    assert inside[call] == name


def test_file_system_is_an_allow_list(inside: dict[str, Any]) -> None:
    assert [inside[p] for p in ("tmp", "shm", "home")] == ["ok"] * 3
    assert [inside[p] for p in ("usr", "root", "core_pattern", "hostname")] == ["EROFS"] * 4
    assert inside["etc"] in {"EROFS", "EACCES"} and inside["shadow"] == "ENOENT"
    assert inside["run"] == [] and inside["oldtmp"] == ["x"]
    assert not inside["cgroupfs"] and not inside["netdevs"]
    assert inside["resolv"].startswith("nameserver 198.51.100.53\n")


def test_io_uring_is_there_when_the_manifest_asks(place: Place) -> None:
    code = "import ctypes; l = ctypes.CDLL(None, use_errno=True); l.syscall(425, 8, 0); print(ctypes.get_errno())"
    out, err, _, _ = once(place, place.spec("/usr/bin/python3", "-c", code, io_uring=True))
    assert out == b"14\n", err  # EFAULT: the kernel looked at the argument


def test_32_bit_calls_end_the_process(place: Place) -> None:
    code = (
        "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3');"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    )
    _, _, line, _ = once(place, place.spec("/usr/bin/python3", "-c", code))
    assert line == {"exit": 128 + signal.SIGSYS, "signal": signal.SIGSYS}


def test_loader_variables_reach_the_command_only_after_the_drop(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "evil.c"
    library = tmp_path / "evil.so"
    source.write_text(
        "#include <unistd.h>\n#include <stdio.h>\n__attribute__((constructor)) static void f(void)"
        '{char b[32];int n=snprintf(b,32,"uid %d\\n",geteuid());write(1,b,n);}\n'
    )
    built = subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=False)
    if built.returncode != 0:
        pytest.skip("no C compiler: apt-get install gcc")
    env = {"PATH": "/usr/bin:/bin", "HOME": "/home/job", "LD_PRELOAD": str(library)}
    out, err, _, _ = once(place, place.spec("true", env=env, ro=(str(tmp_path),)))
    assert out and set(out.split(b"\n")) == {f"uid {UID}".encode(), b""}, err


def test_a_host_unix_socket_is_not_there(place: Place, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as host:
        path = f"/run/agentmon-test-{os.getpid()}.sock"
        host.bind(path)
        try:
            host.listen()
            code = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"
            _, err, line, _ = once(place, place.spec("/usr/bin/python3", "-c", code))
        finally:
            os.unlink(path)
    assert line["exit"] == 1 and b"FileNotFoundError" in err


def test_paths_are_shown_read_only_or_writable_also_below_a_closed_directory(place: Place, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    for name in ("ro", "rw", "work"):
        (closed / name).mkdir(parents=True)
        os.chown(closed / name, UID, UID)
    closed.chmod(0o700)
    (closed / "ro/file").write_text("shown")
    script = f"cat {closed}/ro/file; touch {closed}/ro/x 2>&1; touch {closed}/rw/x here; pwd; ls {closed}"
    spec = place.spec("sh", "-c", script, ro=(f"{closed}/ro",), rw=(f"{closed}/rw",), cwd=f"{closed}/work")
    out, err, line, _ = once(place, spec)
    assert line["exit"] == 0, err
    assert b"shown" in out and b"Read-only file system" in out and f"{closed}/work\nro\nrw\nwork\n".encode() in out
    assert (closed / "rw/x").exists() and (closed / "work/here").exists()


def test_trust_bundle_replaces_the_systems(place: Place, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("our own\n")
    out, _, _, _ = once(place, place.spec("cat", "/etc/ssl/certs/ca-certificates.crt", trust=str(bundle)))
    assert out == b"our own\n"


def test_terminal_is_the_commands_own(place: Place) -> None:
    script = "tty >/dev/null && stty size && stty -echo && echo $(ps -o tty= -p $$) && exec 3<>/dev/tty && echo ctty"
    out, _, line, _ = once(place, place.spec("sh", "-c", script, tty=True, rows=33, cols=101))
    assert line["exit"] == 0, out
    assert b"33 101\r\n" in out and out.endswith(b"ctty\r\n")


def test_control_c_on_the_terminal_interrupts_the_command_not_the_bottle(place: Place) -> None:
    async def body(spawner: Spawner) -> None:
        code = (
            "import os, signal, sys, time\nsignal.signal(2, lambda *a: (os.write(1, b'caught'), sys.exit(5)))\n"
            "print('up', flush=True)\nwhile True: time.sleep(0.05)"
        )
        spawned = await spawner.spawn(place.spec("/usr/bin/python3", "-c", code, tty=True))
        master, status = spawned.fds
        seen = b""
        while b"up" not in seen:
            seen += await asyncio.to_thread(os.read, master, 100)
        os.write(master, b"\x03")
        assert b"caught" in await read_all(master)
        assert json.loads(await read_all(status))["exit"] == 5
        await spawner.exits.get()
        os.close(master)
        os.close(status)

    drive(place, body)


async def _started(spawner: Spawner, spec: LaunchSpec, word: bytes) -> Spawned:
    spawned = await spawner.spawn(spec)
    assert await asyncio.to_thread(os.read, spawned.fds[1], 100) == word
    return spawned


TRAPS = {
    signal.SIGTERM: ("TERM", 40), signal.SIGINT: ("INT", 41), signal.SIGHUP: ("HUP", 42), signal.SIGQUIT: ("QUIT", 43),
    signal.SIGUSR1: ("USR1", 44),
}  # fmt: skip


@pytest.mark.parametrize("signum", TRAPS)
def test_signals_reach_the_command(place: Place, signum: int) -> None:
    async def body(spawner: Spawner) -> Exited:
        script = "".join(f"trap 'exit {code}' {name};" for name, code in TRAPS.values())
        script += "echo up; while :; do sleep 0.05; done"
        spawned = await _started(spawner, place.spec("sh", "-c", script), b"up\n")
        await spawner.signal(99, signum)
        exited = await spawner.exits.get()
        for fd in spawned.fds:
            os.close(fd)
        return exited

    assert drive(place, body).exit == TRAPS[signum][1]


def test_stop_and_continue(place: Place) -> None:
    async def body(spawner: Spawner) -> None:
        spawned = await _started(spawner, place.spec("sh", "-c", "echo up; read x; exit 3"), b"up\n")
        command = next(int(p) for p in (place.leaf / "cgroup.procs").read_text().split() if _comm(int(p)) == "sh")
        await spawner.signal(99, signal.SIGTSTP)
        _until(lambda: _state(command) == "T")
        await spawner.signal(99, signal.SIGCONT)
        os.write(spawned.fds[0], b"\n")
        assert (await spawner.exits.get()).exit == 3
        for fd in spawned.fds:
            os.close(fd)

    drive(place, body)


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]


def test_cgroup_kill_is_reported_as_a_kill(place: Place) -> None:
    async def body(spawner: Spawner) -> Exited:
        spawned = await _started(spawner, place.spec("sh", "-c", "echo up; sleep 60"), b"up\n")
        (place.leaf / "cgroup.kill").write_text("1")
        exited = await spawner.exits.get()
        for fd in spawned.fds:
            os.close(fd)
        return exited

    assert drive(place, body) == Exited(99, "r1", 137, 9)


def test_a_process_that_outlives_the_command_dies_with_it(place: Place) -> None:
    once(place, place.spec("sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & exit 0"))
    _until(lambda: not (place.leaf / "cgroup.procs").read_text())


def test_a_daemon_that_dies_leaves_job_and_status_and_the_next_adopts(place: Place) -> None:
    async def first() -> Spawned:
        spawner = Spawner(place.socket)
        assert await spawner.start() == []
        spawned = await spawner.spawn(place.spec("sh", "-c", "read x; exit 9"))
        spawner._disconnect()  # as if killed: nothing is said
        return spawned

    async def second() -> Exited:
        spawner = Spawner(place.socket)
        jobs = await spawner.start()
        assert [(j.slot, j.run, j.pid) for j in jobs] == [(99, "r1", spawned.pid)]
        os.write(spawned.fds[0], b"\n")
        exited = await spawner.exits.get()
        await spawner.close()
        return exited

    spawned = asyncio.run(first())
    assert asyncio.run(second()) == Exited(99, "r1", 9, 0)
    assert json.loads(os.read(spawned.fds[3], 1000)) == {"exit": 9, "signal": 0}
    for fd in spawned.fds:
        os.close(fd)


def test_without_daemon_and_jobs_the_spawner_ends(place: Place) -> None:
    async def body() -> int:
        spawner = Spawner(place.socket)
        await spawner.start()
        await spawner.close()
        return spawner.pid

    pid = asyncio.run(body())
    _until(lambda: not Path(f"/proc/{pid}").exists() or _state(pid) == "Z")
    assert not place.socket.exists()


def test_a_killed_spawner_is_noticed(place: Place) -> None:
    async def body() -> None:
        spawner = Spawner(place.socket)
        await spawner.start()
        os.kill(spawner.pid, signal.SIGKILL)
        await asyncio.wait_for(spawner.lost.wait(), 5)
        with pytest.raises(AgentmonError, match="has gone"):
            await spawner.signal(1, 15)
        assert await spawner.start() == []  # a new one over the stale socket
        await spawner.close()

    asyncio.run(body())


def test_what_cannot_be_launched_is_said_and_leaves_nothing(place: Place) -> None:
    async def body(spawner: Spawner) -> None:
        with pytest.raises(HostLacks, match="No such file"):
            await spawner.spawn(place.spec("true", netns="agentmon-no-such"))
        with pytest.raises(HostLacks, match="does not take the job"):
            await spawner.spawn(place.spec("true", cgroup="/sys/nowhere"))
        with pytest.raises(BadInput, match="private inside"):
            await spawner.spawn(place.spec("true", ro=("/run",)))
        with pytest.raises(BadInput, match="no resource limit"):
            await spawner.spawn(place.spec("true", rlimits={"nosuch": 1}))
        with pytest.raises(BadInput, match="no running command"):
            await spawner.signal(99, 15)
        assert (place.leaf / "cgroup.procs").read_text() == ""

    drive(place, body)


def test_a_file_system_that_cannot_be_set_up_is_the_launchers_failure(place: Place) -> None:
    _, err, line, exited = once(place, place.spec("true", trust="/nosuch/bundle.pem"))
    assert line["exit"] == exited.exit == 125 and "error" in line
    assert b"/nosuch/bundle.pem" in err


def test_who_asked_must_reach_what_is_shown(place: Place, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "secret").mkdir(parents=True)
    (closed / "secret/file").write_text("x")
    closed.chmod(0o700)
    for directory in (tmp_path, *tmp_path.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)

    async def body(spawner: Spawner) -> None:
        for changes in ({"ro": (f"{closed}/secret",)}, {"rw": (f"{closed}/secret",)}, {"cwd": f"{closed}/secret"}):
            with pytest.raises(BadInput, match="Permission denied"):
                await spawner.spawn(place.spec("true", owner=UID, **changes))
        with pytest.raises(BadInput, match="No such file"):
            await spawner.spawn(place.spec("true", ro=("/nosuch/path",)))
        out, _, line, _ = await run(spawner, place.spec("cat", f"{closed}/secret/file", ro=(f"{closed}/secret",)))
        assert (out, line["exit"]) == (b"x", 0)  # root may show it
        out, _, line, _ = await run(spawner, place.spec("id", "-u", owner=UID, cwd=str(place.home)))
        assert (out, line["exit"]) == (f"{UID}\n".encode(), 0)

    drive(place, body)


def test_only_root_may_speak_to_it(place: Place) -> None:
    async def body(spawner: Spawner) -> None:
        assert place.socket.stat().st_mode & 0o777 == 0o600
        place.socket.chmod(0o666)
        code = (
            "import socket,sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
            "s.connect(sys.argv[1]); print(s.recv(10))"
        )
        user = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
        out = await asyncio.to_thread(
            subprocess.run, [*user, "/usr/bin/python3", "-c", code, str(place.socket)],
            capture_output=True, check=False,
        )  # fmt: skip
        assert out.stdout == b"b''\n", out.stderr

    for directory in (place.tmp, *place.tmp.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    drive(place, body)


def test_started_by_hand_it_says_who_starts_it() -> None:
    out = subprocess.run([sys.executable, "-m", "agentmon.launch.spawner"], capture_output=True, text=True, check=False)
    assert out.returncode == 2 and "hint: agentmon daemon" in out.stderr


def test_no_descriptor_of_a_shown_path_is_left_open(place: Place, tmp_path: Path) -> None:
    spec = place.spec("ls", "/proc/self/fd", ro=(str(tmp_path),), cwd=str(place.home))
    out, _, _, _ = once(place, spec)
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory that ls reads
