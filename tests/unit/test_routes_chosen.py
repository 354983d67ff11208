"""Which route a request goes by: order, wildcards, methods, paths, headers, query."""

from __future__ import annotations

from typing import Any

import pytest

from agentmon import wire
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.explain_requests import connection, request
from agentmon.policy.rules import parse_rule
from agentmon.providers import registry
from agentmon.proxy.routed import Asked, Uncovered, choose

HOST = "h.example"


def said(route: wire.Route, **asked: Any) -> str:
    found = choose((route,), HOST, Asked(**({"method": "GET", "path": "/"} | asked)))
    return found.reason if isinstance(found, Uncovered) else "covered" if found is route else "none"


@pytest.mark.parametrize(
    ("wanted", "sent", "verdict"),
    [
        ({"x-team": "blue"}, [("X-Team", "blue")], "covered"), ({"x-team": "blue"}, [], "header"),
        ({"x-team": "blue"}, [("x-team", "blues")], "header"), ({"x-team": "b*e"}, [("x-team", "bluee")], "covered"),
        ({"x-team": "blue"}, [("x-team", "blue"), ("X_Team", "red")], "header"),
        ({"x-team": "*"}, [("x-team", "")], "covered"), ({"x-debug": None}, [], "covered"),
        ({"x-debug": None}, [("x_debug", "1")], "header"), ({"x-debug": None}, [("x-debug", "")], "header"),
        ({"a": "1", "b": None}, [("a", "1")], "covered"), ({"a": "1", "b": None}, [("a", "1"), ("b", "")], "header"),
    ],
)  # fmt: skip
def test_headers(wanted: dict[str, str | None], sent: list[tuple[str, str]], verdict: str) -> None:
    assert said(wire.Route(HOST, headers=wanted), headers=tuple(sent)) == verdict


@pytest.mark.parametrize(
    ("wanted", "sent", "verdict"),
    [
        ({"v": "2"}, "v=2", "covered"), ({"v": "2"}, "", "query"), ({"v": "2"}, "v=2&v=3", "query"),
        ({"v": "2"}, "%76=%32", "covered"), ({"v": "2"}, "v=2;v=3", "query"), ({"v": "2*"}, "a&v=2024-01", "covered"),
        ({"debug": None}, "a=1", "covered"), ({"debug": None}, "a=1;debug", "query"),
        ({"debug": None}, "d%65bug=", "query"),
    ],
)  # fmt: skip
def test_query(wanted: dict[str, str | None], sent: str, verdict: str) -> None:
    assert said(wire.Route(HOST, query=wanted), query=sent) == verdict


def test_the_first_that_covers_it_and_none_for_other_hosts() -> None:
    routes = (
        wire.Route(HOST, methods=("PUT",)), wire.Route("*.h.example", paths=("/a/*",)), wire.Route(HOST, paths=("/b",)),
    )  # fmt: skip
    assert choose(routes, HOST, Asked("PUT", "/b")) is routes[0]
    assert choose(routes, HOST, Asked("GET", "/b")) is routes[2]
    refused = choose(routes, HOST, Asked("GET", "/c"))
    assert isinstance(refused, Uncovered) and refused.reason == "method"
    assert choose(routes, "x.h.example", Asked("GET", "/a/1")) is routes[1]
    assert isinstance(choose(routes, "x.h.example", Asked("GET", "/b")), Uncovered)
    assert choose(routes, "other.example", Asked("GET", "/")) is None


def test_explain_says_what_requests_have_to_carry() -> None:
    route = wire.Route(HOST, headers={"x-team": "blue"}, query={"debug": None})
    policy = EffectivePolicy("b", (parse_rule(HOST),), inspected=(HOST,), routes=(route,))
    lines = ["headers: x-team=blue", "query: no debug"]
    providers = registry.load()
    assert request(policy, HOST, 443, "/", tls=True, providers=providers) == {"requests": lines}
    assert connection(policy, HOST, tls=True, providers=providers) == {"requests": lines}
