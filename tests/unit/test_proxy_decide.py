"""The decision on a request's head, and what is said about it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from agentmon import wire
from agentmon.addresses import Pool
from agentmon.events import Event, hint
from agentmon.policy.rules import RuleError
from agentmon.providers.registry import load
from agentmon.proxy import bodies, introspect
from agentmon.proxy.bottles import Bottle, Bottles
from agentmon.proxy.decide import Allow, Facts, Refuse, Tell, decide

PROVIDERS = load()
CLAUDE = "api.anthropic.com"


def bottle(*rules: str, spent: dict[str, Any] | None = None, **view: Any) -> Bottle:
    known = Bottles(Pool())
    known.set(wire.BottleView(16, "crate", "run-1", "10.213.0.16", rules=rules or (f"{CLAUDE}:443",), **view))
    if spent is not None:
        known.cut(16, spent)
    found = known.at(16)
    assert found is not None
    return found


def facts(**fields: Any) -> Facts:
    given = {"method": "POST", "target": "/v1/messages", "port": 443, "sni": CLAUDE, "hosts": (CLAUDE,)} | fields
    return Facts(**given)


def refusal(verdict: object) -> Refuse:
    assert isinstance(verdict, Refuse)
    assert verdict.error["message"] and verdict.status == 403
    return verdict


def test_a_metered_request_needs_a_hold() -> None:
    verdict = decide(bottle(), facts(target="/v1/messages?beta=true"), PROVIDERS)
    assert isinstance(verdict, Allow) and verdict.metered and verdict.provider is PROVIDERS["claude"]
    assert (verdict.host, verdict.path, verdict.rule) == (CLAUDE, "/v1/messages", f"{CLAUDE}:443")


def test_a_host_of_no_provider_needs_none() -> None:
    verdict = decide(
        bottle("https://x.example/a/*"), facts(target="/a/b", sni="x.example", hosts=("x.example",)), PROVIDERS
    )
    assert isinstance(verdict, Allow) and not verdict.metered


@pytest.mark.parametrize(
    "fields",
    [
        {"hosts": ()},
        {"hosts": ("evil.example",)},
        {"hosts": (CLAUDE, CLAUDE)},
        {"hosts": (f"{CLAUDE}:80",)},
        {"hosts": ("",)},
        {"hosts": (CLAUDE,), "authority": "evil.example"},
        {"hosts": ("127.0.0.1",), "sni": None},
        {"hosts": ("evil.example",), "sni": "evil.example", "authority": f"{CLAUDE}:443"},
    ],
)
def test_one_host_or_none(fields: dict[str, Any]) -> None:
    assert refusal(decide(bottle(), facts(**fields), PROVIDERS)).reason == "host"


@pytest.mark.parametrize(
    "fields",
    [{"hosts": (f"{CLAUDE}:443",)}, {"hosts": ("API.Anthropic.com.",)}, {"hosts": (), "authority": CLAUDE}],
)
def test_spellings_of_the_same_host(fields: dict[str, Any]) -> None:
    assert isinstance(decide(bottle(), facts(**fields), PROVIDERS), Allow)


@pytest.mark.parametrize(
    ("rules", "fields", "reason"),
    [
        (("other.example:443",), {}, "default"),
        ((f"{CLAUDE}:443", f"!{CLAUDE}:443"), {}, "deny"),
        ((), {"target": "/v1%2Fmessages"}, "path"),
        ((), {"target": "/v1//messages"}, "endpoint"),
        ((), {"target": "/v1/messages;x"}, "endpoint"),
        ((), {"target": "/v1/unknown"}, "endpoint"),
        ((), {"method": "DELETE"}, "endpoint"),
        ((), {"target": "/v1/messages/batches"}, "endpoint"),
        ((), {"upgrade": "websocket"}, "upgrade"),
        ((CLAUDE,), {"port": 80, "sni": None}, "plain"),
        ((CLAUDE,), {"port": 8080, "hosts": (f"{CLAUDE}:8080",)}, "default"),
    ],
)
def test_refusals(rules: tuple[str, ...], fields: dict[str, Any], reason: str) -> None:
    verdict = refusal(decide(bottle(*rules), facts(**fields), PROVIDERS))
    assert verdict.reason == reason and verdict.error["type"] == "egress_denied"
    assert bool(verdict.hint) == (reason not in ("default", "deny"))


def test_paths_of_rules_are_held() -> None:
    here = bottle("https://x.example/ok/*", "!https://x.example/ok/not/*")

    def reason(target: str) -> str:
        verdict = decide(here, facts(target=target, sni="x.example", hosts=("x.example",)), PROVIDERS)
        return verdict.reason if isinstance(verdict, Refuse) else "allow"

    assert [reason(t) for t in ("/ok/1", "/no", "/ok/not/1", "/ok/../no")] == ["allow", "default", "deny", "path"]


def test_routes() -> None:
    host = "x.example"
    route = wire.Route(host, methods=("GET",), paths=("/v1/*",), auth_none=True)

    def at(here: Bottle, **fields: Any) -> Any:
        return decide(
            here, facts(sni=host, hosts=(host,), **({"method": "GET", "target": "/v1/a"} | fields)), PROVIDERS
        )

    here = bottle(f"{host}:443", routes=(route,))
    assert at(here).route == route
    assert refusal(at(here, method="POST")).reason == "method"
    assert refusal(at(here, target="/v2")).reason == "path"
    wants = bottle(f"{host}:443", routes=(wire.Route(host, auth_header="x-api-key", auth_credential="key"),))
    assert refusal(at(wants)).reason == "credential"
    assert isinstance(at(bottle(f"{host}:443", routes=(wire.Route("other.example", methods=("PUT",)),))), Allow)


def test_modes() -> None:
    assert refusal(decide(bottle(mode="closed"), facts(), PROVIDERS)).reason == "closed"
    elsewhere = facts(sni="new.example", hosts=("new.example",))
    verdict = decide(bottle(mode="observe"), elsewhere, PROVIDERS)
    assert isinstance(verdict, Allow) and verdict.observed
    denied = bottle("!new.example:443", mode="observe")
    assert refusal(decide(denied, elsewhere, PROVIDERS)).reason == "deny"
    assert refusal(decide(bottle(mode="observe"), facts(target="/v1/unknown"), PROVIDERS)).reason == "endpoint"


def test_a_cut_bottle() -> None:
    spent = {"scope": "bottle", "name": "crate", "provider": "claude", "tokens": 5, "used": 9, "per": "run"}
    verdict = refusal(decide(bottle(spent=spent), facts(), PROVIDERS))
    assert verdict.error["type"] == "budget_exhausted" and verdict.reason == "budget"
    assert {k: verdict.error[k] for k in spent} == spent
    by_operator = refusal(decide(bottle(spent={}), facts(), PROVIDERS))
    assert by_operator.error["type"] == "egress_denied" and by_operator.reason == "cut"
    event = Event("request", "refused", "crate", reason=by_operator.reason, layer="proxy", hint=by_operator.hint)
    assert hint(event).startswith("agentmon resume crate")
    assert isinstance(decide(bottle(spent={}), facts(sni=None, hosts=("agentmon.internal",), port=80), PROVIDERS), Tell)


# ── bottles ──


def test_views_come_and_go() -> None:
    known = Bottles(Pool())
    view = wire.BottleView(16, "crate", "run-1", "10.213.0.16", rules=(f"{CLAUDE}:443",))
    known.cut(16, {"tokens": 1})
    assert known.at(16) is None
    known.set(view)
    known.cut(16, {"tokens": 1})
    known.set(msgspec.structs.replace(view, mode="cut", epoch=2))
    assert known.at(16).spent == {"tokens": 1}  # type: ignore[union-attr]
    known.set(view)
    assert not known.at(16).cut  # type: ignore[union-attr]
    with pytest.raises(RuleError):
        known.set(msgspec.structs.replace(view, rules=("10.*",)))
    assert known.at(16).view.rules == (f"{CLAUDE}:443",)  # type: ignore[union-attr]
    known.cut(16, {"tokens": 1})
    known.set(msgspec.structs.replace(view, mode="cut", run="run-2"))
    assert known.at(16).spent == {}  # type: ignore[union-attr]
    known.drop(16)
    assert known.at(16) is None


@pytest.mark.parametrize(
    ("address", "slot"),
    [
        ("10.213.0.16", 16), ("::ffff:10.213.0.17", 17), ("fd61:6d6f:6e::12", 18), ("fe80::1%eth0", None),
        ("10.213.0.4", None), ("192.0.2.1", None), ("", None), ("nonsense", None),
    ],
)  # fmt: skip
def test_whose_an_address_is(address: str, slot: int | None) -> None:
    assert Bottles(Pool()).slot_of(address) == slot


# ── bodies, introspection ──


def test_bodies() -> None:
    denied = wire.Denied(1, "host", "host", "claude", 100, 120, 5, "month")
    error = bodies.budget_exhausted(bodies.spent_of(denied))
    assert (error["type"], error["scope"], error["provider"], error["tokens"], error["used"]) == (
        "budget_exhausted", "host", "claude", 100, 120,
    )  # fmt: skip
    assert json.loads(bodies.encode(error)) == {"error": error}
    assert bodies.ledger_unavailable()["type"] == "ledger_unavailable"
    assert bodies.HEADERS["x-should-retry"] == "false"


NOTHING = introspect.Seen()


def told(here: Bottle, path: str, seen: introspect.Seen = NOTHING, method: str = "GET") -> tuple[int, Any]:
    status, body, _ = introspect.tell(here, method, path, seen)
    return status, json.loads(body)


def test_introspection() -> None:
    here = bottle(agent="reviewer")
    well = introspect.Seen([{"scope": "bottle", "tokens": 5}])
    up = {"ledger": "ok", "resolver": "ok"}
    whose = {"bottle": "crate", "mode": "enforce"}
    assert told(here, "/healthz", well) == (200, {"status": "ok", **whose, "services": up})
    status, said = told(here, "/healthz", introspect.Seen(None, False))
    assert (status, said["status"]) == (200, "degraded")
    assert said["services"] == {"ledger": "unavailable", "resolver": "unavailable"}
    assert told(here, "/allowlist")[1]["rules"] == [f"{CLAUDE}:443"]
    assert told(here, "/budget", well)[1]["budgets"] == well.totals
    assert told(here, "/budget")[0] == 503
    assert told(here, "/")[0] == 404
    assert told(here, "/budget", well, "POST")[0] == 405


def test_routes_are_told_without_what_they_hold() -> None:
    routes = (
        wire.Route("a.example", auth_header="x-api-key", auth_credential="house", methods=("GET",), paths=("/v1/*",)),
        wire.Route("b.example", auth_none=True, headers={"x-team": "blue-7", "x-debug": None}, query={"v": "2"}),
        wire.Route("c.example", outbound="block", git_fetch=True),
    )
    _, said = told(bottle(routes=routes), "/allowlist")
    first, second, third = said["routes"]
    assert (first["auth"], first["methods"], first["paths"]) == ("replaced", ["GET"], ["/v1/*"])
    assert (second["auth"], second["methods"], second["paths"]) == ("none", ["*"], ["/*"])
    assert second["headers"] == {"x-team": "required", "x-debug": "absent"} and second["query"] == {"v": "required"}
    assert (third["auth"], third["outbound"], third["git_fetch"]) == ("own", "block", True)
    text = json.dumps(said)
    assert not any(held in text for held in ("house", "x-api-key", "blue-7"))
