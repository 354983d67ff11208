"""http://agentmon.internal, asked with curl inside bottles: each its own, whatever the request says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.test_bottle import Shell
from tests.support.live import World

pytestmark = pytest.mark.e2e

ONE, TWO = "www.allowed.example", "other.allowed.example"
PAGES = ("allowlist", "budget", "healthz")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("internal")
    (tmp / "bottles").mkdir()
    route = f"{{host: {ONE}, methods: [GET], paths: ['/v1/*'], auth: {{header: x-api-key, credential: house}}}}"
    (tmp / "bottles/routed.yml").write_text(f"allow: [{ONE}:443]\nroutes: [{route}]\nbudget: {{claude: 77}}\n")
    with World(tmp, f"bottles_dir: {tmp}/bottles\n") as made:
        made.start_daemon()
        yield made


def page(shell: Shell, name: str, *options: str) -> tuple[int, Any]:
    out = shell(f"curl -sS -m 10 -w '\\n%{{http_code}}\\n' {' '.join(options)} http://agentmon.internal/{name} 2>&1")
    body, _, status = out.rpartition("\n")
    return int(status), json.loads(body) if body.startswith("{") else body


def test_pages_of_two_bottles(world: World) -> None:
    first = Shell(world, "first", "--policy", str(world.tmp / "bottles/routed.yml"))
    second = Shell(world, "second", "--allow", f"{TWO}:443")
    status, said = page(first, "allowlist")
    assert (status, said["bottle"], said["rules"]) == (200, "first", [f"{ONE}:443"])
    (route,) = said["routes"]
    assert (route["host"], route["methods"], route["paths"], route["auth"]) == (ONE, ["GET"], ["/v1/*"], "replaced")
    assert "house" not in json.dumps(said) and "x-api-key" not in json.dumps(said)
    status, said = page(first, "budget")
    assert (status, [b["tokens"] for b in said["budgets"] if b["scope"] == "bottle"]) == (200, [77])
    status, said = page(first, "healthz")
    assert (said["status"], said["services"]) == ("ok", {"ledger": "ok", "resolver": "ok"})
    assert page(first, "secrets")[0] == 404 and page(first, "allowlist", "-X", "DELETE")[0] == 405

    address = next(row["addr4"] for row in world.rows("ps") if row["bottle"] == "first")
    for name in PAGES:
        for trick in (
            ("-H", f"'X-Forwarded-For: {address}'"), ("-H", f"'Forwarded: for={address}'"), ("-H", "'Host: first'"),
            ("--proxy", "http://agentmon.internal:80"), ("-H", "'X-Bottle: first'", "-G", "-d", "bottle=first"),
        ):  # fmt: skip
            said = page(second, name, *trick)[1]
            assert ONE not in json.dumps(said) and "77" not in json.dumps(said), trick
            assert not isinstance(said, dict) or said.get("bottle", "second") == "second", trick
    assert page(second, "allowlist")[1]["rules"] == [f"{TWO}:443"]
    assert (first.end(), second.end()) == (0, 0)
