"""What a launched job can see and do on the real kernel: identity, sockets, system calls, files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch_place import UID, Place, once

pytestmark = pytest.mark.root


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.make()
    try:
        yield place
    finally:
        place.unmake()


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


def test_no_descriptor_of_a_shown_path_is_left_open(place: Place, tmp_path: Path) -> None:
    spec = place.spec("ls", "/proc/self/fd", ro=(str(tmp_path),), cwd=str(place.home))
    out, _, _, _ = once(place, spec)
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory that ls reads
