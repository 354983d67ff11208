"""Hosts and neighbours that are not as they should be: what is lacking is named, what can work does.

Nothing is simulated in the path of a claim: mount namespaces without a file system, programs that the verifier refuses,
a personality that names another machine, interpreters without bcc. Neighbours are in test_bpf_life.py, full maps in
test_bpf_stress.py, hosts' BTF in tests/unit/test_bpf_btf.py.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf import abi, cgroup, child, links, loader, syscall
from ebpf.programs import SOURCE
from ebpf.sources import program_text
from ebpf.spec import Guard
from tests.support.bpf_lab import SIZES, Lab, entry, until

pytestmark = pytest.mark.root
PACKAGES = Path(abi.__file__).parents[1]
OPEN, REFUSED = "198.51.100.7", "198.51.100.8"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def request(lab: Lab, source: str) -> loader.Request:
    (maps,) = lab.pin_dir.glob("layout-*")
    where = (str(maps), str(lab.pin_dir / "links"), str(lab.parent))
    return loader.Request(source, *where, cgroup.cgroup_id(lab.parent), cgroup.level(lab.parent) + 1, 0, SIZES)


def elsewhere(lab: Lab, before: str, *interpreter: str) -> dict[str, object]:
    """Open the lab's programs after the shell commands `before` in a mount namespace of their own; what came of it."""
    code = (
        "import json, sys; from ebpf.programs import *; from tests.support.bpf_lab import SIZES\n"
        "programs = CgroupPrograms(Path(sys.argv[1]), SIZES)\n"
        "try: programs.open(sys.argv[2])\n"
        "except Exception as e: print(json.dumps([type(e).__name__, str(e), e.hint])); sys.exit()\n"
        "print(json.dumps(['', programs.left_out, sorted(programs.features())])); programs.release()\n"
    )
    argv = ["unshare", "-m", "sh", "-c", f'{before}; exec "$@"', "sh", *interpreter]
    argv += [sys.executable, "-c", code, str(lab.pin_dir), str(lab.parent)]
    done = subprocess.run(argv, check=True, cwd=PACKAGES, capture_output=True, text=True)
    kind, what, more = json.loads(done.stdout)
    return {"error": kind, "what": what, "hint" if kind else "features": more}


def holds(lab: Lab) -> None:
    """What decides works: both families, both ways."""
    bottle = lab.bottle()
    both = (f"{OPEN}/32", "2001:db8::7/128")
    bottle.apply(allow=(*(entry(n, 443) for n in both), *(entry(n, 53, proto="udp") for n in both)))
    job = bottle.process()
    for host, number in ((OPEN, 0), (REFUSED, errno.EPERM), ("2001:db8::7", 0), ("2001:db8::8", errno.EPERM)):
        assert (job.connect(host, 443), job.sendto(host, 53)) == (number, number), host
    told = lab.events(job)
    until(lambda: told.extend(lab.events(job)) or len(told) >= 4)
    assert {str(e.dst) for e in told} == {REFUSED, "2001:db8::8"}
    assert {e.verdict for e in told} == {"refused"}


BROKEN = {  # function and context of one program of each optional group, and a number of that context
    "vouch": ("int am_setsockopt(struct bpf_sockopt *ctx)\n{\n", "level"),
    "origin": ("int am_by_address(struct bpf_sock_addr *ctx)\n{\n", "type"),
    "unix": ("int am_unix_connect(struct bpf_sock_addr *ctx)\n{\n", "type"),
}


def named(hook: links.Hook) -> str:
    return f" {hook.code or hook.function}("


@pytest.mark.parametrize("feature", BROKEN)
def test_bad_input_an_optional_program_that_the_verifier_refuses_is_left_out(
    lab: Lab, tmp_path: Path, feature: str
) -> None:
    lab.programs.open(str(lab.parent))
    if feature not in lab.programs.features():
        pytest.skip(f"this kernel does not take {feature} at all: {lab.programs.left_out[feature]}")
    head, number = BROKEN[feature]
    wrong = f"\tif (*(volatile int *)(long)ctx->{number})\n\t\treturn 1;\n"  # read from where it points
    text = program_text(abi.SOURCES, SOURCE)
    assert text.count(head) == 1
    bad = tmp_path / "bad.c"
    bad.write_text(text.replace(head, head + wrong))
    before = lab.programs.features()
    left_out, log = child.run(request(lab, str(bad)))
    assert left_out[feature].startswith(
        next(h.function for h in links.HOOKS if h.feature == feature and named(h) in head)
    )
    assert "processed" in log and "invalid" in log  # the verifier's whole text is kept
    assert "ermission denied" in left_out[feature]
    assert lab.programs.features() == before - {feature}
    for hook in links.HOOKS:
        there = (lab.pin_dir / "links" / hook.function).exists()
        assert there == (hook.feature not in left_out), hook.function
    holds(lab)


def test_bad_input_no_btf_leaves_the_optional_programs_out(lab: Lab) -> None:
    found = elsewhere(lab, "mount -t tmpfs none /sys/kernel/btf")
    left_out = found["what"]
    assert isinstance(left_out, dict) and found["features"] == []
    assert set(links.FEATURES) <= set(left_out)
    assert "/sys/kernel/btf/vmlinux: No such file or directory" in left_out["origin"]
    assert "CONFIG_DEBUG_INFO_BTF" in left_out["origin"]
    lab.programs.open(str(lab.parent))  # adopts them
    holds(lab)
    bottle = lab.bottle()
    bottle.apply(guard=Guard.STRICT)
    assert bottle.process().do("register", value=7) == errno.ENOPROTOOPT  # as outside of a bottle


def test_bad_input_cgroup_v1_only_says_what_to_boot_or_mount(lab: Lab) -> None:
    """Every v2 hierarchy unmounted, as on a host that boots with v1 alone."""
    found = elsewhere(lab, "while umount $(findmnt -n -o TARGET -t cgroup2 | tail -n 1) 2>/dev/null; do :; done")
    assert (found["error"], found["what"]) == ("Missing", "a cgroup v2 hierarchy")
    assert "systemd.unified_cgroup_hierarchy=1" in str(found["hint"])
    assert "mount -t cgroup2" in str(found["hint"])
    assert not lab.pin_dir.exists()


def test_bad_input_a_hybrid_layout_is_found_wherever_it_is_mounted(lab: Lab, tmp_path: Path) -> None:
    """v2 beside v1, at a place that nobody would guess."""
    place = tmp_path / "a place"
    place.mkdir()
    code = (
        "from ebpf import cgroup; import sys; v2 = cgroup.find_v2(); print(v2, cgroup.level(v2 / sys.argv[1]), sep='|')"
    )
    script = (
        "while umount $(findmnt -n -o TARGET -t cgroup2 | tail -n 1) 2>/dev/null; do :; done; "
        'mount -t cgroup2 none "$1" && exec "$2" -c "$3" "$4"'
    )
    argv = ["unshare", "-m", "sh", "-c", script, "sh", str(place), sys.executable, code, lab.parent.name]
    done = subprocess.run(argv, check=True, cwd=PACKAGES, capture_output=True, text=True)
    assert done.stdout.strip() == f"{place}|1"


def test_bad_input_a_machine_nobody_knows(lab: Lab) -> None:
    """setarch(8) makes uname(2) say so."""
    found = elsewhere(lab, "true", "setarch", "i686")
    assert found["error"] == "Missing"
    assert str(found["what"]).startswith("bpf(2) on i") and "x86_64" in str(found["hint"])


def as_command(argv: list[str], environment: dict[str, str], wanted: loader.Request, answer: Path) -> dict[str, str]:
    shell = ["sh", "-c", 'answer="$1"; shift; exec "$@" 3>"$answer"', "sh", str(answer), *argv, "-m", "ebpf.loader"]
    done = subprocess.run(
        [*shell, wanted.to_json()], cwd=PACKAGES, env=os.environ | environment, check=False, capture_output=True
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    found: dict[str, str] = json.loads(answer.read_text())
    return found


def test_bad_input_bcc_missing_too_old_or_another_package(lab: Lab, tmp_path: Path) -> None:
    """Real interpreters: one without site packages, one that finds something else under that name first."""
    lab.programs.open(str(lab.parent))
    wanted, answer = request(lab, SOURCE), tmp_path / "answer"
    found = as_command([sys.executable, "-S"], {}, wanted, answer)
    assert found["error"] == "missing" and found["what"].startswith("bcc (")
    assert "apt-get install python3-bpfcc" in found["hint"]
    package = tmp_path / "bcc"
    package.mkdir()
    for text, what in (
        ("__version__ = '0.18.0'\nclass BPF: pass\n", "bcc 0.25 or newer (found 0.18.0)"),
        ("__version__ = '1.0.0'\n", "bcc 0.25 or newer (found 1.0.0)"),
        ("", "bcc 0.25 or newer (found a package without bcc.BPF)"),
    ):
        (package / "__init__.py").write_text(text)
        found = as_command([sys.executable, "-B"], {"PYTHONPATH": str(tmp_path)}, wanted, answer)
        assert (found["error"], found["what"]) == ("missing", what)
        assert "python3-bpfcc" in found["hint"]
    holds(lab)  # what was in force still is


def order(lab: Lab, attach_type: int) -> list[int]:
    """Ids of the programs that run at the lab's parent cgroup, in their order."""
    ids = ctypes.create_string_buffer(4 * 16)
    directory = os.open(lab.parent, os.O_RDONLY)
    try:
        attr = struct.pack("=IIIIQI", directory, attach_type, 0, 0, ctypes.addressof(ids), 16)
        result, number, after = syscall.bpf(syscall.PROG_QUERY, attr)
    finally:
        os.close(directory)
    assert result == 0, os.strerror(number)
    (count,) = struct.unpack_from("=I", after, 24)
    return list(struct.unpack_from(f"={count}I", ids))


STOP = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = 0; exit


def test_bad_input_a_foreign_program_that_came_first_runs_first_and_ours_still_report(lab: Lab) -> None:
    """The kernel runs all of them, in the order of their attachment, and one refusal is enough."""
    fd = syscall.prog_load(STOP, links.SOCK_ADDR, 10)
    foreign = struct.unpack_from("=II", syscall.obj_info(fd, 8, "reading a program"))[1]
    directory = os.open(lab.parent, os.O_RDONLY)
    link = syscall.call(syscall.LINK_CREATE, struct.pack("=IIII", fd, directory, 10, 0), "attaching a foreign program")
    try:
        lab.programs = lab.new_programs(log_allowed=True)
        lab.programs.open(str(lab.parent))
        decides, attributes = (links.pinned(str(lab.pin_dir / "links" / n)) for n in ("am_connect4", "am_by_connect4"))
        assert decides is not None
        assert order(lab, 10) == [foreign, decides.prog_id, *([attributes.prog_id] if attributes else [])]
        bottle = lab.bottle()
        bottle.apply(allow=(entry(f"{OPEN}/32", 443),))
        job = bottle.process()
        assert job.connect(OPEN, 443) == errno.EPERM
        told = lab.events(job)
        until(lambda: told.extend(lab.events(job)) or told)
        assert [(e.verdict, e.reason) for e in told] == [("allowed", "rule")]  # what we decided: not who refused
    finally:
        for held in (link, directory, fd):
            os.close(held)
    assert job.connect(OPEN, 443) == 0


def test_bad_input_a_process_that_is_gone_leaves_what_the_kernel_saw(lab: Lab) -> None:
    lab.programs.open(str(lab.parent))
    bottle = lab.bottle()
    bottle.apply()
    job = bottle.process()
    assert job.connect(REFUSED, 443) == errno.EPERM
    lab.end_processes()
    told = lab.events(job)
    until(lambda: told.extend(lab.events(job)) or told)
    (event,) = told
    assert (event.verdict, str(event.dst), event.tgid, event.comm) == (
        "refused",
        REFUSED,
        job.pid,
        Path(sys.executable).name,
    )
    assert (event.ppid, event.exe, event.cmdline, event.library) == (0, "", "", "")
    if "origin" in lab.programs.features():
        assert (event.syscall, event.evidence) == ("connect", "gone")


def test_bad_input_an_adopter_says_what_is_missing_too(lab: Lab) -> None:
    lab.programs.open(str(lab.parent))
    loaded = dict(lab.programs.left_out)
    lab.programs.release()
    lab.programs.open(str(lab.parent))
    assert lab.programs.left_out.keys() == loaded.keys() & abi.FEATURES.keys()
    assert all("refused when" in why for why in lab.programs.left_out.values())
