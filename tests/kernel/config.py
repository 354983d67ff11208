"""The kernels that agentmon is tried on, and what is tried there: the one place to add either."""

from __future__ import annotations

from typing import NamedTuple


class Kernel(NamedTuple):
    """A Debian suite and the `name` its kernel has in the table; `name` begins the version, or is a word."""

    name: str
    suite: str


KERNELS = (
    Kernel("6.1", "bookworm"),  # the minimum
    Kernel("6.12", "trixie"),
    Kernel("newest", "trixie-backports"),
)

ARCHITECTURES = {"x86_64": "amd64"}  # uname -m → Debian's name; another needs its machine in boot.py

# Load, attach and verdict first: what fails there makes the rest noise. Every file, and every test of test_bpf_life,
# test_bpf_loading and the contract, compiles the programs anew, which takes a minute here: hence few of those.
_LOADING = "tests/root/test_bpf_loading.py::test_bpf_"
TESTS = (
    "tests/abi/test_bpf_abi.py",
    "tests/root/test_bpf_connect.py",
    "tests/root/test_bpf_policy.py",
    "tests/root/test_bpf_vouch.py",
    "tests/root/test_bpf_listen.py",
    "tests/root/test_bpf_unix.py",
    "tests/root/test_bpf_lsm.py",
    f"{_LOADING}probe_finds_what_this_kernel_takes",
    f"{_LOADING}a_program_that_the_verifier_refuses",
    "tests/root/test_bpf_life.py::test_bpf_closing_leaves_nothing",
    "tests/root/test_nf_packets.py",
)

BOOT_S = 120.0  # until the guest says that it is up; TCG needs 5 to 20 s
TEST_S = 300  # for one test
TESTS_S = 1800.0  # for all tests of one kernel; far above what they need
MEMORY_MB = 2048
CPUS = 2
