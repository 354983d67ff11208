"""gate.py: who may speak TLS through the relay."""

from __future__ import annotations

import pytest

from agentmon import wire
from agentmon.relay.gate import decide
from agentmon.views import View, Views

RULES = (
    "web.example:443",
    "api.vendor.example",
    "https://paths.example/v1/*",
    "tcp://raw.example:443",
    "!bad.example",
    "p.example:80",
)


def view(mode: str = "enforce") -> View:
    return Views().set(
        wire.BottleView(
            slot=16,
            bottle="b",
            run="r",
            addr4="",
            rules=RULES,
            inspected=("api.vendor.example", "*.i.example"),
            mode=mode,
        )
    )


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("web.example", ""),
        ("raw.example", "direct"),
        ("api.vendor.example", "inspected"),
        ("paths.example", "inspected"),
        ("bad.example", "deny"),
        ("other.example", "default"),
        ("p.example", "default"),
        ("localhost", "protected"),
    ],
)
def test_enforce(host: str, reason: str) -> None:
    verdict = decide(view(), host, 443)
    assert (verdict.allowed, verdict.reason, bool(verdict.alert)) == (not reason, reason, bool(reason))


@pytest.mark.parametrize(("mode", "reason"), [("closed", "closed"), ("cut", "cut")])
def test_nothing_passes_a_closed_or_cut_bottle(mode: str, reason: str) -> None:
    assert decide(view(mode), "web.example", 443).reason == reason


def test_a_cut_says_whether_a_budget_is_the_cause() -> None:
    views = Views()
    views.set(view().wire)
    views.cut(16, {"tokens": 5, "used": 7})
    assert reason_of(views) == "budget"
    views.set(view("cut").wire)  # the same view, pushed once more
    assert reason_of(views) == "budget"
    views.set(view().wire)
    assert reason_of(views) == ""
    views.cut(16, {})
    assert reason_of(views) == "cut"
    views.set(view("cut").wire)
    assert reason_of(views) == "cut"


def reason_of(views: Views) -> str:
    known = views.get(16)
    assert known is not None
    return decide(known, "web.example", 443).reason


def test_observe_relaxes_the_allowlist_only() -> None:
    v = view("observe")
    assert decide(v, "other.example", 443).observed
    assert decide(v, "other.example", 443).allowed
    assert not decide(v, "web.example", 443).observed
    for host in ("bad.example", "api.vendor.example", "localhost", "x.i.example"):
        assert not decide(v, host, 443).allowed, host
