"""A bottle whose ledger is in PostgreSQL: metered, cut, shown by the commands, refused while the database is away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.e2e.test_bottle import Shell
from tests.internet.world import NETNS, WEB
from tests.support.live import World, until
from tests.support.postgres_rig import ASKED, PASSWORD, Server

pytestmark = pytest.mark.e2e
SMALL, LARGE = "claude-scripted-in10-out10", "claude-scripted-in1200-out100"


@pytest.fixture(scope="module")
def server(postgres: Server) -> Iterator[Server]:
    """Stopped in one of the tests."""
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[World]:
    """The server is somewhere in the world, and asks for a password, which is a credential."""
    name = urlsplit(server.new()).path.strip("/")
    url = f"postgresql://{ASKED}@{WEB[0]}:5432/{name}"
    with World(tmp_path_factory.mktemp("shared"), f"ledger: {url}\n") as made:
        server.end()
        server.netns = NETNS
        server.start()
        place = made.root / "etc/agentmon/credentials"
        place.mkdir(parents=True, mode=0o700)
        (place / "ledger").write_text(PASSWORD + "\n")
        (place / "ledger").chmod(0o600)
        made.start_daemon()
        yield made
        made.stop_daemon()
        server.end()


def test_commands_show_what_is_in_the_database(world: World) -> None:
    shell = Shell(world, "metered", "--provider", "claude", "--budget", "3000")
    assert shell.message(SMALL)[0] == 200
    (line,) = until(lambda: world.rows("usage"))
    assert (line["bottle"], line["weighted"]) == ("metered", 20)
    assert [(b["scope"], b["used"]) for b in world.rows("budget", "show")] == [("bottle", 20)]
    assert [row["provider"] for row in world.rows("ledger", "export")] == ["claude"]
    checked = json.loads(world.agentmon("ledger", "check", "--json").stdout)
    assert checked["ok"] and "what is held against the holds" in {entry["what"] for entry in checked["checked"]}
    refused = world.agentmon("ledger", "backup", str(world.tmp / "copy"), check=False)
    assert refused.returncode == 2 and "pg_dump" in refused.stderr
    assert not (world.root / "var/lib/agentmon/ledger/ledger.db").exists()
    for last in (False, False, True):
        shell.message(LARGE, crosses=last)
    until(lambda: [row["phase"] for row in world.rows("ps")] == ["cut"])
    status, body = shell.message(SMALL)
    assert (status, body["error"]["type"]) == (403, "budget_exhausted")
    (cut,) = until(lambda: world.rows("ledger", "export", "enforcement"))
    assert (cut["policy"], cut["trigger"], cut["by"]) == ("cutoff", "budget", "bottle:metered")
    assert shell.end() == 0


def test_away_and_back(world: World, server: Server) -> None:
    shell = Shell(world, "waits", "--provider", "claude")
    assert shell.message(SMALL)[0] == 200
    server.end()
    status, body = shell.message(SMALL)
    assert (status, body["error"]["type"]) == (503, "ledger_unavailable")
    late = Shell(world, "late", "--provider", "claude")
    assert late.message(SMALL)[0] == 503
    server.start()
    until(lambda: shell.message(SMALL)[0] == 200)
    until(lambda: late.message(SMALL)[0] == 200)
    assert (shell.end(), late.end()) == (0, 0)
    until(lambda: {r["bottle"]: r["requests"] for r in world.rows("usage")}["waits"] >= 2)
    for file in (*world.run_dir.rglob("*.json"), *world.run_dir.rglob("*.log")):
        assert PASSWORD not in file.read_text(errors="replace"), file
