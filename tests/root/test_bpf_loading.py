"""Loading the programs: what the kernel, the loader, bcc and the host may refuse, and what is said then."""

from __future__ import annotations

import errno
import json
import resource
import struct
import subprocess
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ebpf import abi, cgroup, child, links, loader, probe, syscall
from ebpf.errors import BpfError, Missing, VerifierRefused
from ebpf.programs import SOURCE, CgroupPrograms
from ebpf.sources import program_text
from tests.support.bpf_lab import SIZES, Lab

pytestmark = pytest.mark.root
GO = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)


@pytest.fixture
def lab(own_bpf_lab: Lab) -> Lab:
    return own_bpf_lab


def prog_ids(lab: Lab) -> list[int]:
    found = [links.pinned(str(lab.pin_dir / "links" / h.function)) for h in links.HOOKS]
    return [link.prog_id for link in found if link is not None]


def layouts(lab: Lab) -> list[str]:
    return sorted(p.name for p in lab.pin_dir.glob("layout-*"))


def request(lab: Lab, **fields: object) -> loader.Request:
    (layout,) = layouts(lab)
    whole = loader.Request(
        SOURCE,
        str(lab.pin_dir / layout),
        str(lab.pin_dir / "links"),
        str(lab.parent),
        cgroup.cgroup_id(lab.parent),
        cgroup.level(lab.parent) + 1,
        0,
        SIZES,
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


def as_command(lab: Lab, tmp_path: Path, wanted: loader.Request) -> tuple[int, dict[str, object]]:
    """The loader as the child runs it, but with this environment: its exit status and answer."""
    answer = tmp_path / "answer"
    argv = ["sh", "-c", 'exec "$0" -W ignore -m ebpf.loader "$1" 3>"$2"', sys.executable, wanted.to_json(), str(answer)]
    code = subprocess.run(argv, cwd=Path(abi.__file__).parents[1], stderr=subprocess.DEVNULL, check=False).returncode
    found: dict[str, object] = json.loads(answer.read_text())
    return code, found


def test_bpf_a_program_that_the_verifier_refuses(lab: Lab, tmp_path: Path) -> None:
    text = program_text(abi.SOURCES, SOURCE)
    bad = tmp_path / "bad.c"
    wrong = "am_address6(ctx, AM_KIND_CONNECT) + *(volatile int *)(long)ctx->user_port"
    bad.write_text(text.replace("am_address6(ctx, AM_KIND_CONNECT)", wrong))
    before = prog_ids(lab)
    with pytest.raises(VerifierRefused) as error:
        child.run(request(lab, source=str(bad)))
    assert error.value.program == "am_connect6"
    assert "invalid mem access" in str(error.value)
    assert len(error.value.log.splitlines()) > 5
    assert error.value.hint
    assert prog_ids(lab) == before  # nothing was replaced


def test_bpf_a_program_that_does_not_compile(lab: Lab, tmp_path: Path) -> None:
    bad = tmp_path / "bad.c"
    bad.write_text("int am_connect4(struct bpf_sock_addr *ctx) { return nonsense; }\n")
    with pytest.raises(VerifierRefused, match=r"bad\.c") as error:
        child.run(request(lab, source=str(bad)))
    assert "undeclared identifier 'nonsense'" in error.value.log


def test_bpf_the_loader_answers_as_a_command(lab: Lab, tmp_path: Path) -> None:
    before = prog_ids(lab)
    assert as_command(lab, tmp_path, request(lab)) == (0, {"ok": True, "left_out": lab.programs.left_out})
    assert not set(before) & set(prog_ids(lab))
    code, found = as_command(lab, tmp_path, request(lab, cgroup="/nowhere", cgroup_id=1))
    assert (code, found["error"], found["errno"]) == (1, "kernel", errno.ENOENT)
    assert lab.process(lab.parent).connect("198.51.100.7", 443) == errno.EPERM
    other = lab.parent / "moved"
    other.mkdir()
    moved = request(lab, cgroup=str(other), cgroup_id=cgroup.cgroup_id(other))
    assert as_command(lab, tmp_path, moved) == (0, {"ok": True, "left_out": lab.programs.left_out})
    assert lab.process(lab.parent).connect("198.51.100.7", 443) == 0  # the old place is let go
    assert lab.process(other).connect("198.51.100.7", 443) == errno.EPERM
    bad = tmp_path / "bad.c"
    bad.write_text("int am_connect4(struct bpf_sock_addr *ctx) { return nonsense; }\n")
    code, found = as_command(lab, tmp_path, request(lab, source=str(bad)))
    assert (code, found["error"], found["program"]) == (1, "refused", str(bad))
    bad.write_text("int am_connect4(struct bpf_sock_addr *ctx) { return 7; }\n")
    code, found = as_command(lab, tmp_path, request(lab, source=str(bad)))
    assert (code, found["error"], found["program"], found["errno"]) == (1, "refused", "am_connect4", errno.EINVAL)


def test_bpf_a_loader_that_hangs_is_killed(lab: Lab) -> None:
    with pytest.raises(BpfError, match="killed by signal 9"):
        child.run(request(lab), timeout_s=0)


def test_bpf_a_cgroup_that_is_none() -> None:
    with Lab() as lab:
        with pytest.raises(Missing, match="a cgroup v2 directory at /tmp"):
            lab.programs.open("/tmp")
        assert not lab.pin_dir.exists()


def test_bpf_bcc_missing_or_another_package(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(Missing, match="bcc") as error:
        loader.load(request(lab))
    assert "apt-get install python3-bpfcc" in error.value.hint
    lattice = types.ModuleType("bcc")
    monkeypatch.setitem(sys.modules, "bcc", lattice)
    with pytest.raises(Missing, match=r"bcc 0.25 or newer \(found a package without bcc.BPF\)"):
        loader.load(request(lab))
    lattice.BPF, lattice.__version__ = object, "0.18.0"  # type: ignore[attr-defined]
    with pytest.raises(Missing, match=r"found 0.18.0"):
        loader.load(request(lab))


def test_bpf_bpffs_is_mounted_where_it_is_not(lab: Lab) -> None:
    """In a mount namespace of its own, so that nobody else sees the file system go."""
    code = (
        "from pathlib import Path; from ebpf.pins import Pins, BPFFS, mounted\n"
        "assert not mounted(BPFFS)\n"
        "Pins(BPFFS / 'agentmon-test-mount', 'x').prepare()\n"
        "assert mounted(BPFFS) and (BPFFS / 'agentmon-test-mount/links').is_dir()\n"
        "Pins(BPFFS / 'agentmon-test-mount', 'x').remove()\n"
    )
    script = 'while umount /sys/fs/bpf 2>/dev/null; do :; done; exec "$0" -c "$1"'
    subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, code], check=True, cwd=Path(abi.__file__).parents[1]
    )


def test_bpf_mount_failures_say_what_to_do() -> None:
    with pytest.raises(Missing, match="no-such-fs at /nowhere") as error:
        syscall.mount("x", "/nowhere", "no-such-fs")
    assert error.value.hint


def test_bpf_probe_finds_what_this_kernel_takes() -> None:
    found = {f.feature: f for f in probe.probe()}
    assert {f.feature for f in found.values() if f.required and f.missing} == set()
    assert {f"hook {h.function}" for h in links.HOOKS if h.prog_type != links.LSM} <= set(found)
    with pytest.raises(BpfError) as error:
        syscall.prog_load(GO, 999, 0)
    assert error.value.errno == errno.EINVAL
    assert "older than 6.1" in error.value.hint


def test_bpf_pins_that_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BpfError, match="removing the pins in") as error:
        CgroupPrograms(tmp_path / "file").close()
    assert error.value.errno == errno.ENOTDIR


def test_bpf_system_calls_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BpfError, match="timerfd_settime"):
        syscall.arm(-1, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(BpfError, match="timerfd_create"):
            syscall.timerfd()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(Missing, match="on vax") as error:
        syscall.obj_get("/x")
    assert "x86_64" in error.value.hint


def test_bpf_probe_says_what_is_missing() -> None:
    """Without site packages there is no bcc; in a mount namespace without bpffs it is found mountable."""
    code = "from ebpf.probe import probe; print(*(f.feature for f in probe() if f.missing), sep=',')"
    script = 'while umount /sys/fs/bpf 2>/dev/null; do :; done; exec "$0" -S -c "$1"'
    argv = ["unshare", "-m", "sh", "-c", script, sys.executable, code]
    found = subprocess.run(argv, check=True, cwd=Path(abi.__file__).parents[1], capture_output=True, text=True)
    assert "bcc" in found.stdout.strip().split(",")
    assert "bpffs" not in found.stdout
    refused = probe.attempt("a hook nobody has", False, partial(probe.load, links.Hook("x", 999, 0)))
    assert "Invalid argument" in refused.missing
    assert refused.hint
    absent = probe.attempt("bcc", True, partial(probe.package, "no_such_package"))
    assert "python3-bpfcc" in absent.hint
    with pytest.raises(BpfError, match="file system type bpf"):
        probe.mountable("nodev\tproc\n")
