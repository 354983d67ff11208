"""The pure parts around the edges: cgroup paths, sources, errors, the loader's answers."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ebpf import abi, cgroup, child, sources
from ebpf.errors import BpfError, MapFull, Missing, VerifierRefused, last_useful_line
from ebpf.loader import Request
from ebpf.maps import parse_cpus

MOUNTS = (
    "24 30 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n"
    "25 24 0:23 / /sys/fs/cgroup/unified\\040two rw shared:9 - cgroup2 cgroup2 rw\n"
    "broken line\n"
)


def test_bpf_mountinfo() -> None:
    assert cgroup.parse_mountinfo(MOUNTS) == [
        ("/", "/sys/fs/cgroup", "tmpfs"),
        ("/", "/sys/fs/cgroup/unified two", "cgroup2"),
    ]


def test_bpf_no_cgroup_v2_says_what_to_do() -> None:
    with pytest.raises(Missing, match="a cgroup v2 hierarchy") as error:
        cgroup.v2_of(cgroup.parse_mountinfo(MOUNTS.splitlines()[0]))
    assert "mount -t cgroup2" in error.value.hint


def test_bpf_level_counts_from_the_root() -> None:
    root = cgroup.find_v2()
    assert cgroup.level(root) == 0
    with pytest.raises(Missing, match="a cgroup v2 directory at /nowhere"):
        cgroup.level("/nowhere")
    with pytest.raises(Missing):
        cgroup.level("/tmp")


def test_bpf_sources_headers_are_put_in_once() -> None:
    text = sources.program_text(abi.SOURCES, "am_programs.bpf.c")
    assert '#include "' not in text
    assert text.count("struct am_bottle {") == 1


def test_bpf_sources_sizes_are_part_of_the_layout() -> None:
    one = sources.Sizes()
    other = replace(one, exact=1)
    assert sources.layout(abi.SOURCES, one) != sources.layout(abi.SOURCES, other)
    assert sources.program_hash("x", one) != sources.program_hash("y", one) != sources.program_hash("y", other)
    assert "-DAM_MAX_EXACT=1" in other.defines()
    assert "-DAM_RING_BYTES=1048576" in other.defines()


def test_bpf_request_round_trips() -> None:
    request = Request("a.c", "/m", "/l", "/c", 1, 2, 3, sources.Sizes(exact=5))
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ({"error": "missing", "what": "bcc", "hint": "apt"}, Missing, "bcc"),
        ({"error": "refused", "program": "am_x", "errno": errno.EINVAL}, VerifierRefused, "R1 invalid mem access"),
        (
            {"error": "kernel", "operation": "attaching", "errno": errno.EPERM, "hint": ""},
            BpfError,
            "attaching: Operation",
        ),
    ],
)
def test_bpf_child_answers_become_errors(answer: dict[str, object], kind: type[Exception], text: str) -> None:
    log = "bpf: Failed to load program: Invalid argument\n3: R1 invalid mem access\nprocessed 3 insns (limit 1)\n"
    with pytest.raises(kind, match=text) as error:
        child.judge(json.dumps(answer).encode(), 1, log)
    assert error.value.hint
    if isinstance(error.value, VerifierRefused):
        assert error.value.log == log
        assert error.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("code", "log", "text"), [(-9, "", "killed by signal 9"), (1, "Traceback\nboom\n", "status 1: boom")]
)
def test_bpf_child_without_an_answer(code: int, log: str, text: str) -> None:
    with pytest.raises(BpfError, match=text):
        child.judge(b"", code, log)


def test_bpf_child_good_answer() -> None:
    child.judge(b'{"ok": true}', 0, "warnings of clang do not matter")


def test_bpf_errors_name_table_and_limit() -> None:
    error = MapFull("am_exact", 10)
    assert error.errno == errno.E2BIG
    assert "am_exact holds 10 entries" in str(error)
    assert last_useful_line("") == ""


@pytest.mark.parametrize(("text", "cpus"), [("0\n", 1), ("0-3", 4), ("0,2-7", 8)])
def test_bpf_possible_cpus(text: str, cpus: int) -> None:
    assert parse_cpus(text) == cpus


def test_bpf_sources_are_shipped() -> None:
    assert (abi.SOURCES / "shim/include/linux/kconfig.h").is_file()
    assert Path(abi.SOURCES).name == "bpf"
