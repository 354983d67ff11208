"""Real libraries connect, and each call is traced to the module that made it: unmodified wheels, C, a static program.

The calls are looked at under ptrace, with what the kernel's programs would record; root reads the mapped files
through map_files, as the daemon does. Destinations are closed ports of the loopback device: every client says so.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import traced
from tests.support.bypass_clients import build, client

pytestmark = pytest.mark.root
CLIENT = str(Path(client.__file__))
X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 instructions")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> build.Built:
    if build.compiler() is None:
        pytest.skip("needs a C compiler: apt-get install gcc libc6-dev linux-libc-dev")
    return build.build(tmp_path_factory.mktemp("native"))


@pytest.fixture
def closed(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """An address and a port that is bound, so that nobody else takes it, and not listening."""
    host = getattr(request, "param", "127.0.0.1")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.bind((host, 0))
        yield host, s.getsockname()[1]


def run(native: build.Built, argv: list[str], to: tuple[str, int]) -> tuple[int, list[dict[str, object]]]:
    env = {**os.environ, "BYPASS_NATIVE": str(native.library.parent), "LC_ALL": "C"}
    status, calls = traced.trace([*argv, to[0], str(to[1])], env)
    wanted = (list(to), [f"::ffff:{to[0]}", to[1]])
    return status, [c for c in calls if c["to"] in wanted or (c["to"] is None and c["syscall"] == "io_uring")]


@pytest.mark.parametrize(
    ("method", "file", "syscall", "evidence"),
    [
        ("socket", "_socket.", "connect", "stack"),
        ("ctypes", "libffi", "connect", "stack"),
        ("syscall", "libffi", "connect", "stack"),
        ("library:connect", "libbypass.so", "connect", "stack"),
        ("library:syscall", "libbypass.so", "connect", "stack"),
        ("library:uring", "libbypass.so", "io_uring", "stack"),
        ("library:uring-worker", "libbypass.so", "io_uring", "stack"),
        pytest.param("library:instruction", "libbypass.so", "connect", "ip", marks=X86),
        pytest.param("library:int80", "libbypass.so", "i386:socketcall", "ip", marks=X86),
        ("deleted:connect", "/libgone.so (deleted)", "connect", "stack"),
        ("memfd:connect", "memfd:bypass", "connect", "stack"),
        pytest.param("jit", "anonymous", "connect", "ip", marks=X86),
        ("extension:connect", "bypass_extension.", "connect", "stack"),
        ("uvloop", "uvloop/loop.", "connect", "stack"),
        ("pycurl", "pycurl.libs/libcurl-", "connect", "stack"),
        ("grpc", "grpc/_cython/cygrpc.", "connect", "stack"),
        ("psycopg2", "psycopg2_binary.libs/libpq-", "connect", "stack"),
    ],
)
def test_bpf_clients_are_named(
    native: build.Built, closed: tuple[str, int], method: str, file: str, syscall: str, evidence: str
) -> None:
    if method.startswith("extension") and native.extension is None:
        pytest.skip("needs Python.h: apt-get install python3-dev")
    if not builtin_is_a_file(method):
        file = ""  # built into the interpreter, which is never named
    status, calls = run(native, [sys.executable, CLIENT, method], closed)
    assert status == errno.ECONNREFUSED
    found = [c for c in calls if c["syscall"] == syscall]
    assert found, calls
    for call in found[:1]:
        assert file in str(call["library"]), call
        assert call["evidence"] == (evidence if file else "none"), call
        assert not call["sorting"]


def builtin_is_a_file(method: str) -> bool:
    name = {"socket": "_socket", "ctypes": "_ctypes", "syscall": "_ctypes"}.get(method)
    return name is None or bool(getattr(__import__(name), "__file__", None))


@pytest.mark.parametrize("closed", ["127.0.0.1", "::1"], indirect=True)
@pytest.mark.parametrize(
    ("method", "syscall"),
    [
        ("connect", "connect"),
        ("syscall", "connect"),
        ("uring", "io_uring"),
        pytest.param("instruction", "connect", marks=X86),
        pytest.param("int80", "i386:socketcall", marks=X86),
    ],
)
def test_bpf_clients_static_program_names_itself(
    native: build.Built, closed: tuple[str, int], method: str, syscall: str
) -> None:
    status, calls = run(native, [str(native.program), method], closed)
    assert status == errno.ECONNREFUSED
    assert [(c["syscall"], c["library"], c["evidence"]) for c in calls] == [(syscall, str(native.program), "ip")]


def test_bpf_clients_of_another_mount_namespace_are_named_as_there(
    native: build.Built, closed: tuple[str, int], tmp_path: Path
) -> None:
    """The path means nothing outside; the code in front of the return address is read all the same."""
    steps = (
        f"mount -t tmpfs none {tmp_path} && cp {native.library} {tmp_path}/ && cd / && BYPASS_NATIVE={tmp_path}"
        f' exec {sys.executable} {CLIENT} library:connect "$@"'
    )
    status, calls = run(native, ["unshare", "--mount", "sh", "-c", steps, "sh"], closed)
    assert status == errno.ECONNREFUSED
    assert not list(tmp_path.iterdir())
    assert [(c["library"], c["evidence"]) for c in calls] == [(f"{tmp_path}/libbypass.so", "stack")]


@pytest.mark.parametrize("method", ["uring", "uring-worker", "uring-sqpoll"])
def test_bpf_clients_io_uring_says_what_came_of_it(native: build.Built, closed: tuple[str, int], method: str) -> None:
    """Who makes the connection of the last two is no thread of the program; the kernel's own tests are elsewhere."""
    status, _ = run(native, [str(native.program), method], closed)
    assert status == errno.ECONNREFUSED


@pytest.mark.parametrize(
    "method",
    sorted(
        set(client.METHODS)
        - {"library", "deleted", "memfd", "extension", "getaddrinfo", "psycopg2", "thread", "sendto"}
    ),
)
def test_bpf_clients_connected_is_zero(native: build.Built, method: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        pid = os.posix_spawn(
            sys.executable, [sys.executable, CLIENT, method, "127.0.0.1", str(server.getsockname()[1])], os.environ
        )
        server.accept()[0].close()
        server.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_bpf_clients_psycopg_connected_is_zero() -> None:
    """A server that hangs up is one that was reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        port = str(server.getsockname()[1])
        pid = os.posix_spawn(sys.executable, [sys.executable, CLIENT, "psycopg2", "127.0.0.1", port], os.environ)
        taken, _ = server.accept()
        taken.recv(64)
        taken.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
