"""docs/netfilter-library.md: its program runs as it stands, in a host of its own, and leaves nothing."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from netfilter.fake import FakeNetfilter
from netfilter.host import HostNetfilter
from netfilter.spec import Netfilter
from tests.support.nf_lab import Lab

pytestmark = pytest.mark.root
GUIDE = Path(__file__).parents[2] / "docs/netfilter-library.md"


def test_the_guides_program_runs_and_leaves_nothing() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert program.count("\n") <= 16
    said = io.StringIO()

    def work() -> None:
        with contextlib.redirect_stdout(said):
            exec(compile(program, GUIDE.name, "exec"), {"__name__": "guide"})  # noqa: S102 - our own text

    with Lab(six=False) as lab:
        before = lab.shell("nft", "list", "ruleset"), lab.shell("ip", "rule"), lab.shell("ip", "netns")
        lab.run(work)
        assert (lab.shell("nft", "list", "ruleset"), lab.shell("ip", "rule"), lab.shell("ip", "netns")) == before
    assert "host: add element inet agentmon s4_16 { 198.51.100.7 . tcp . 443 }" in said.getvalue()
    assert "'policy': 0" in said.getvalue()


def test_every_public_name_says_what_it_does() -> None:
    names = [name for name in vars(Netfilter) if not name.startswith("_")]
    assert len(names) > 15
    for name in names:
        assert (getattr(Netfilter, name).__doc__ or "").strip(), name
        for keeper in (HostNetfilter, FakeNetfilter):
            assert callable(getattr(keeper, name)), f"{keeper.__name__} has no {name}"
