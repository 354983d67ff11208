"""What the matrix rests on: a guest's verdict comes out whole, and nothing else does. Boots the first kernel twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel import __main__ as matrix
from tests.kernel import boot, config, fetch

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def files() -> fetch.Files:
    found = fetch.have(matrix.CACHE / config.KERNELS[0].name)
    if found is None:
        pytest.skip(f"needs a kernel: make test-kernels KERNELS={config.KERNELS[0].name}")
    return found


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "tree").write_text(f"{matrix.snapshot(tmp_path / 'copy')}\n")
    return tmp_path


def test_status_and_files_come_out_and_nothing_else_changes(files: fetch.Files, shared: Path) -> None:
    job = f"""
        uname -r >/mnt/out/release
        ip -o link >/mnt/out/links
        stat -f -c %T /sys/fs/cgroup /sys/fs/bpf /tmp /run >/mnt/out/types
        echo changed >{boot.ROOT}/README.md && echo changed >/etc/hostname && touch /var/lib/new-in-the-guest || exit 9
        exit 3
    """
    before = [(boot.ROOT / "README.md").read_bytes(), Path("/etc/hostname").read_bytes()]
    came = boot.run(files, job, shared)
    assert came.status == 3, (shared / "log").read_text()
    assert 0 < came.up_s < came.took_s
    assert (shared / "release").read_text().strip() == files.release
    (only,) = (shared / "links").read_text().splitlines()
    assert only.split()[1] == "lo:"
    assert (shared / "types").read_text().split() == ["cgroup2fs", "bpf_fs", "tmpfs", "tmpfs"]
    assert [(boot.ROOT / "README.md").read_bytes(), Path("/etc/hostname").read_bytes()] == before
    assert not Path("/var/lib/new-in-the-guest").exists()


def test_a_kernel_that_crashes_is_no_success(files: fetch.Files, shared: Path) -> None:
    came = boot.run(files, "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 60", shared)
    assert came.status is None
    assert came.up_s > 0
    row = matrix.row("x", files.release, came, shared)
    assert not row.good and "crashed" in row.trouble
