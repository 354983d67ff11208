"""The pure parts of the kernel matrix: which packages, which modules, what is shared, what the table says."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.kernel import __main__ as matrix
from tests.kernel import archive, boot, config, fetch, initramfs, table, trampoline

DEB822 = """\
# http://archive.example/2025
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""
ONE_LINE = """\
deb-src http://source.example/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://mirror.example/debian bookworm main contrib  # the mirror
deb http://tools.example/apt tools main
"""


@pytest.mark.parametrize("text", [DEB822, ONE_LINE])
def test_the_mirror_is_the_hosts_own(text: str) -> None:
    found = archive.sources(text)
    assert archive.mirror(found, "bookworm") == "http://mirror.example/debian"
    assert archive.mirror(found, "trixie") is None


def test_a_disabled_source_is_none() -> None:
    assert archive.sources(DEB822.replace("Types: deb\n", "Enabled: no\nTypes: deb\n")) == []


def test_a_backports_suite_comes_with_the_suite_it_adds_to() -> None:
    assert archive.suites("trixie-backports") == ["trixie-backports", "trixie"]
    assert archive.suites("trixie") == ["trixie"]


@pytest.mark.parametrize(
    ("depends", "expected"),
    [
        ("linux-image-6.1.0-50-amd64 (= 6.1.176-1)", ["linux-image-6.1.0-50-amd64"]),
        ("kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool", []),
        (
            "linux-base-amd64 (= 7.3.4-1~bpo13+1), linux-image-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1)",
            ["linux-image-7.3.4+deb13-amd64"],
        ),
        (
            "dracut, linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1), linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1)",
            ["linux-binary-7.3.4+deb13-amd64", "linux-modules-7.3.4+deb13-amd64"],
        ),
    ],
)
def test_the_packages_of_a_kernel(depends: str, expected: list[str]) -> None:
    assert archive.parts(f"Package: x\nDepends: {depends}\nDescription: linux-image-9.9-amd64\n") == expected


def test_a_host_that_is_not_debian_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AGENTMON_KERNEL_MIRROR", raising=False)
    monkeypatch.setattr(fetch, "KEYRING", tmp_path)
    monkeypatch.setattr(fetch, "ETC_APT", tmp_path)
    with pytest.raises(fetch.Unavailable, match="name no Debian mirror") as caught:
        fetch.debian_mirror()
    assert "AGENTMON_KERNEL_MIRROR" in caught.value.hint
    monkeypatch.setenv("AGENTMON_KERNEL_MIRROR", "http://mirror.example/debian")
    assert fetch.debian_mirror() == "http://mirror.example/debian"
    monkeypatch.setattr(fetch, "KEYRING", tmp_path / "none")
    with pytest.raises(fetch.Unavailable, match="is missing"):
        fetch.debian_mirror()


@pytest.mark.parametrize("usr", [False, True], ids=["6.1", "7.0"])
def test_what_was_fetched_is_found_where_the_packages_put_it(usr: bool, tmp_path: Path) -> None:
    assert fetch.have(tmp_path) is None
    modules = tmp_path / ("root/usr/lib/modules" if usr else "root/lib/modules")
    image = modules / "6.1.0/vmlinuz" if usr else tmp_path / "root/boot/vmlinuz-6.1.0"
    shell = tmp_path / ("root/usr/bin/busybox" if usr else "root/bin/busybox")
    (modules / "6.1.0").mkdir(parents=True)
    for file in (image, shell):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert fetch.have(tmp_path) == fetch.Files("6.1.0", str(image), str(modules), str(shell))


def test_modules_come_after_what_they_need() -> None:
    dep = """\
kernel/net/9p/9pnet.ko.xz:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/virtio/virtio_ring.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/net/sctp/sctp.ko.xz:
"""  # noqa: E501
    names = [initramfs.module_name(path) for path in initramfs.closure(dep, ("overlay", "9pnet_virtio"))]
    assert sorted(names) == ["9pnet", "9pnet_virtio", "virtio", "virtio_ring"]
    assert names.index("virtio") < names.index("virtio_ring") < names.index("9pnet_virtio")
    assert names.index("9pnet") < names.index("9pnet_virtio")


def test_the_ram_disk_is_a_cpio_archive(tmp_path: Path) -> None:
    data = initramfs.archive({"init": (0o755, b"#!/bin/sh\n"), "modules/a/b.ko": (0o644, b"odd")})
    assert len(data) % 4 == 0 and data.count(b"070701") == 5 and b"TRAILER!!!\0" in data
    if cpio := shutil.which("cpio"):
        subprocess.run([cpio, "-idm", "--quiet"], input=data, cwd=tmp_path, check=True)
        assert (tmp_path / "modules/a/b.ko").read_bytes() == b"odd"
        assert os.access(tmp_path / "init", os.X_OK)


def test_the_guest_reads_the_host_and_has_no_network() -> None:
    words = boot.argv(fetch.Files("6.1", "/k/image", "/k/modules", "/k/sh"), Path("/i"), Path("/out,put"), "lsm=bpf")
    assert words[words.index("-nic") + 1] == "none"
    shares = [words[n + 1] for n, word in enumerate(words) if word == "-fsdev"]
    assert len(shares) == 2
    assert "path=/," in shares[0] and "readonly=on" in shares[0]
    assert "path=/out,,put," in shares[1]
    assert words[words.index("-append") + 1].endswith(" lsm=bpf")


def test_the_selection_exists() -> None:
    for path in config.TESTS:
        file, _, name = path.partition("::")
        assert f"def {name}" in (boot.ROOT / file).read_text(), path
    assert len({k.name for k in config.KERNELS}) == len(config.KERNELS)


JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="4" time="12.5">
<testcase classname="tests.root.test_bpf_unix" name="test_a" time="1"/>
<testcase classname="tests.root.test_bpf_unix" name="test_b[x]" time="1"><failure message="assert 1 == 2&#10;more">trace</failure></testcase>
<testcase classname="tests.root.test_bpf_unix" name="test_c" time="1"><skipped type="pytest.skip" message="needs Linux 6.7">x</skipped></testcase>
<testcase classname="tests.root.test_bpf_unix" name="test_d" time="1"><error message="failed on setup">x</error></testcase>
</testsuite></testsuites>"""  # noqa: E501


def test_junit_is_counted_and_failures_keep_their_reason() -> None:
    found = table.read(JUNIT)
    assert found == table.Tests(
        1,
        (
            ("tests/root/test_bpf_unix.py::test_b[x]", "assert 1 == 2"),
            ("tests/root/test_bpf_unix.py::test_d", "failed on setup"),
        ),
        Counter({"needs Linux 6.7": 1}),
        12.5,
    )


def test_the_table() -> None:
    good = table.Row("6.1", "6.1.0-50-amd64", 13.6, table.Tests(93, (), Counter({"needs 6.7": 2}), 290), {"LSM": "yes"})
    failed = table.Tests(0, (("a", "no BTF"), ("b", "1 == 2"), ("c", "no BTF")))
    assert table.render([table.Row("6.12", tests=failed)])[2:] == [
        "6.12: failed: a and 1 more: no BTF",
        "6.12: failed: b: 1 == 2",
    ]
    assert table.render([good, table.Row("newest", trouble="did not boot in 120 s")]) == [
        "kernel  release         boot  tests  passed  failed  skipped  LSM  fentry",
        "6.1     6.1.0-50-amd64  14 s  290 s      93       0        2  yes       -",
        "newest  -                0 s    0 s       0       0        0    -       -",
        "6.1: skipped 2: needs 6.7",
        "newest: did not boot in 120 s",
    ]


@pytest.mark.parametrize(
    ("came", "junit", "good"),
    [
        (boot.Boot(0, 5, 9), '<testsuite><testcase classname="a" name="b"/></testsuite>', True),
        (boot.Boot(1, 5, 9), JUNIT, False),
        (boot.Boot(2, 5, 9), "", False),  # the probe, or pytest itself
        (boot.Boot(1, 5, 9), '<testsuite><testcase classname="a" name="b"/></testsuite>', False),
        (boot.Boot(0, 5, 9), "", False),  # nothing ran
        (boot.Boot(None, 5, 9), '<testsuite><testcase classname="a" name="b"/></testsuite>', False),  # crashed
        (boot.Boot(None, 0, 9), "", False),
    ],
)
def test_only_tests_that_ran_and_passed_are_good(came: boot.Boot, junit: str, good: bool, tmp_path: Path) -> None:
    if junit:
        (tmp_path / "junit.xml").write_text(junit)
    (tmp_path / "findings.json").write_text('{"features": {"LSM": "not attached: EPERM"}}')
    row = matrix.row("6.1", "6.1.0", came, tmp_path)
    assert row.good is good
    assert row.features == {"LSM": "not attached: EPERM"}


def test_an_unknown_kernel_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        matrix.main(["2.4"])
    assert caught.value.code == 2
    assert "there are: 6.1, 6.12" in capsys.readouterr().err


def test_two_runs_do_not_share_a_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "CACHE", tmp_path)
    with matrix.alone(config.KERNELS[0]):
        assert matrix.main([config.KERNELS[0].name]) == 4
    assert "is being tested by another run" in capsys.readouterr().err


def test_a_function_is_found_in_btf() -> None:
    strings = b"\0int\0first\0second\0"
    offset = {name: strings.index(b"\0" + name + b"\0") + 1 for name in (b"int", b"first", b"second")}
    types = struct.pack("=IIII", offset[b"int"], 1 << 24, 4, 32)
    types += struct.pack("=IIIII", 0, 13 << 24 | 1, 1, 0, 1)  # int (*)(int): one parameter of 8 bytes
    types += struct.pack("=III", offset[b"first"], 12 << 24, 2) + struct.pack("=III", offset[b"second"], 12 << 24, 2)
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    assert trampoline.function_id(head + types + strings, "second") == 4
    with pytest.raises(LookupError, match="no function third"):
        trampoline.function_id(head + types + strings, "third")
    with pytest.raises(LookupError, match="no function int"):  # a name, but of a type
        trampoline.function_id(head + types + strings, "int")
