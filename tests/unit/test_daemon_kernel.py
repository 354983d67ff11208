"""What the daemon tells the kernel of a bottle beyond its rules, and what it says of a kernel that lacks something."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

import ebpf.spec
from agentmon.addresses import Pool
from agentmon.channel import Peer
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon import requests
from agentmon.daemon.cgroups import Tree
from agentmon.daemon.kernel import Kernel, _Kept
from agentmon.errors import HostLacks
from agentmon.launch.host_sockets import Places
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings
from ebpf.fake import FakeBpf
from netfilter.fake import FakeNetfilter


class Older(FakeBpf):
    """A kernel that takes neither the unix hooks nor the tracing programs."""

    left_out: ClassVar = {"unix": "attach type 48: invalid argument"}

    def features(self) -> frozenset[str]:
        return frozenset(("vouch",))


def bpf_policy(tmp_path: Path, bpf: FakeBpf) -> ebpf.spec.BottlePolicy:
    policy = EffectivePolicy("b", (), guard="strict", listen=("tcp:80", "udp:5-6"))
    bottle = Bottle(16, "b", "r", Phase.RUNNING, policy, Job(("true",), (), "/", 1, 1, (), False), 1)
    kernel = Kernel(FakeNetfilter(), bpf, Tree(tmp_path), Pool(), lambda _: Places(("/tmp/",), ("/tmp/x/",)))
    kernel._kept[16] = _Kept(4711, 99)
    return kernel.compiled(bottle, "enforce").bpf


def test_guard_listening_and_sockets_reach_the_programs(tmp_path: Path) -> None:
    found = bpf_policy(tmp_path, FakeBpf())
    assert (found.guard, found.unix, found.unix_closed) == (ebpf.spec.Guard.STRICT, ("/tmp/",), ("/tmp/x/",))
    assert found.listen == (ebpf.spec.Listen("tcp", 80, 80), ebpf.spec.Listen("udp", 5, 6))
    assert {s.unvouched for s in found.services if s.port == 53} == {True}
    assert {s.unvouched for s in found.services if s.port != 53} == {False}


def test_a_cut_of_a_bottle_that_the_programs_do_not_know_yet_is_one_of_its_network(tmp_path: Path) -> None:
    cut: list[int] = []
    nft = FakeNetfilter()
    nft.cut = cut.append  # type: ignore[method-assign]
    bpf = FakeBpf()
    kernel = Kernel(nft, bpf, Tree(tmp_path), Pool(), lambda _: Places((), ()))
    kernel.cut(16)
    assert cut == [16] and not bpf.slots()


def test_without_the_unix_hooks_sockets_are_not_limited(tmp_path: Path) -> None:
    found = bpf_policy(tmp_path, Older())
    assert (found.unix, found.unix_closed) == (None, ())


def test_what_is_left_out_is_said_with_its_reason(tmp_path: Path) -> None:
    kernel = Kernel(FakeNetfilter(), Older(), Tree(tmp_path), Pool(), lambda _: Places((), ()))
    found = kernel.left_out()
    assert (found["unix"], found["origin"]) == (
        "attach type 48: invalid argument",
        "the kernel did not take its programs",
    )
    assert "vouch" not in found
    whole = Kernel(FakeNetfilter(), FakeBpf(), Tree(tmp_path), Pool(), lambda _: Places((), ())).left_out()
    assert FakeBpf().features().isdisjoint(whole)


def test_a_run_that_needs_what_the_kernel_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "strict.yml").write_text("guard: strict\n")
    args = {"argv": ["true"], "policy_file": str(tmp_path / "strict.yml"), "run_as": [1, 1]}
    settings = Settings(bottles_dir=tmp_path)
    with pytest.raises(HostLacks, match="guard: strict"):
        requests.policy(args, settings, {}, Peer(1, 0, 0, frozenset((0,))), frozenset(("unix",)))
    assert requests.policy(args, settings, {}, Peer(1, 0, 0, frozenset((0,))), Older().features()).guard == "strict"
