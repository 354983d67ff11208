"""Every refusal names the process, whichever layer refuses: relay and proxy by the port the connection came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.live import World, until

pytestmark = pytest.mark.e2e
CURL = ("curl", "-sS", "-k", "-m", "8", "-o", "/dev/null")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("attribution")) as made:
        made.start_daemon()
        yield made


def refusal(world: World, bottle: str, layer: str, host: str, *curl: str) -> dict[str, Any]:
    """What one curl in a bottle of its own is told of, by this layer."""
    options = ("--provider", "claude", "--allow", "www.allowed.example:443")
    world.agentmon("run", "--name", bottle, *options, "--", *CURL, *curl, check=False)
    event: dict[str, Any] = until(lambda: world.events(bottle, layer=layer, verdict="refused"))[0]
    assert event["host"] == host
    return event


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_name_the_relay_refuses(world: World, family: str) -> None:
    """The connection is for an allowed name, what is said in it is another."""
    to = ("--connect-to", "::www.allowed.example:443", "https://www.forbidden.example/")
    event = refusal(world, f"relay{family[1]}", "relay", "www.forbidden.example", family, *to)
    assert (event["comm"], event["pid"] > 0, event["reason"]) == ("curl", True, "default"), event


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_name_the_proxy_refuses(world: World, family: str) -> None:
    to = ("--connect-to", "::api.anthropic.com:443", "https://www.forbidden.example/")
    event = refusal(world, f"hello{family[1]}", "proxy", "www.forbidden.example", family, *to)
    assert (event["comm"], event["pid"] > 0, event["kind"]) == ("curl", True, "request"), event


def test_a_request_the_proxy_refuses(world: World) -> None:
    event = refusal(world, "path", "proxy", "api.anthropic.com", "https://api.anthropic.com/v1/not/an/endpoint")
    assert (event["comm"], event["pid"] > 0) == ("curl", True), event
    assert event["detail"]["path"] == "/v1/not/an/endpoint"
