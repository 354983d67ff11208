"""What a host may lack, and how it is told."""

from __future__ import annotations

import errno
import sys

import pytest

from netfilter import nft, probe
from netfilter.errors import Missing
from netfilter.probe import Feature


def test_without_the_python_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nftables", None)
    with pytest.raises(Missing, match="python3-nftables: apt-get install"):
        nft.Nft()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise OSError("libnftables.so.1: cannot open shared object file")

    monkeypatch.setattr(pytest.importorskip("nftables"), "Nftables", absent)
    with pytest.raises(Missing, match="libnftables: apt-get install libnftables1"):
        nft.Nft()


def test_a_needed_feature_stops_an_optional_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = Feature("egress", False, "Operation not supported", "a newer kernel")
    monkeypatch.setattr(probe, "probe", lambda: (Feature("nft", True, "", ""), optional))
    probe.require()
    needed = Feature("SOCK_DESTROY", True, "Operation not supported", "modprobe tcp_diag")
    monkeypatch.setattr(probe, "probe", lambda: (optional, needed))
    with pytest.raises(Missing, match=r"SOCK_DESTROY \(Operation not supported\): modprobe tcp_diag"):
        probe.require()


def test_no_namespaces_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise probe.KernelRefused(errno.EPERM, "make a network namespace")

    monkeypatch.setattr(probe.namespaces, "unshare", refused)
    with pytest.raises(Missing, match="network namespaces: run as root"):
        probe.probe()


def test_a_failed_try_says_why() -> None:
    def fails() -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    feature = probe._tried("x", True, "y", fails)
    assert not feature.present
    assert feature.why_not == "Operation not supported"
