"""What services must not do with a policy: dial a denied address, or lead past the proxy of a metered host."""

from __future__ import annotations

from agentmon import wire
from agentmon.control.state import Bottle, Job, Phase
from agentmon.daemon.commits import Commits
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.rules import parse_rule
from agentmon.resolver.answer import Kind, decide
from agentmon.views import Views


class Recorder:
    """Takes what would be opened for the service namespace."""

    def __init__(self):
        self.permitted = []

    def permit_service(self, entries):
        self.permitted += entries


def test_a_denied_address_is_not_dialled_for_a_permitted_name():
    rules = tuple(parse_rule(text) for text in ("h.example", "!203.0.113.0/24:443"))
    job = Job(("true",), (), "/", 1000, 1000, (), False)
    bottle = Bottle(16, "b", "r", Phase.RUNNING, EffectivePolicy("b", rules), job, 1)
    seen = Recorder()
    commits = Commits(seen, lambda *_: None, lambda _: None)
    addresses = ("203.0.113.9", "198.51.100.9")
    answer = commits.commit(bottle, wire.Commit(1, 16, "h.example", addresses, 60, purpose="service", ports=(443,)))
    assert answer.addresses == ("198.51.100.9",)
    assert [str(entry.address) for entry in seen.permitted] == ["198.51.100.9"]
    plain_http = wire.Commit(2, 16, "h.example", addresses, 60, purpose="service", ports=(80,))
    assert commits.commit(bottle, plain_http).addresses == addresses


def test_observe_does_not_lead_past_the_proxy_of_a_metered_host():
    shown = wire.BottleView(
        slot=16, bottle="b", run="r", addr4="10.213.0.16", mode="observe", inspected=("api.anthropic.com",)
    )
    view = Views().set(shown)
    assert decide("other.example", view, {}).kind is Kind.UPSTREAM
    assert decide("api.anthropic.com", view, {}).kind is Kind.DENIED
