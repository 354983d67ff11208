"""Settings and manifests that change under a running bottle: in force at once, as a whole, or not at all and told."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_bottle import Shell
from tests.support.live import World, until

pytestmark = pytest.mark.e2e

ONE, TWO = "www.allowed.example", "other.allowed.example"
HOST = "bottles_dir: {tmp}/bottles\nbudget: {{claude: 5000}}\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("reload")
    (tmp / "bottles").mkdir()
    with World(tmp, HOST.format(tmp=tmp)) as made:
        made.start_daemon()
        yield made


def say(file: Path, text: str) -> None:
    """Replace a file as an editor does."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def settings(world: World, more: str) -> None:
    before = world.settings.read_text().partition("# more\n")[0]
    say(world.settings, f"{before}# more\n{more}")


def test_rules_budgets_limits_and_denies_change_when_files_do(world: World) -> None:
    file = world.tmp / "bottles/live.yml"
    say(file, f"allow: [{ONE}:443, {TWO}:443]\nlimits: {{pids: 400}}\n")
    shell = Shell(world, "live", "--policy", str(file))
    assert [shell.status(f"https://{host}/") for host in (ONE, TWO)] == ["200", "200"]
    say(file, f"allow: [{ONE}:443]\nlimits: {{pids: 300}}\nbudget: {{claude: 77}}\n")
    until(lambda: shell.status(f"https://{TWO}/") == "000", 15, "a rule that was taken out is still in force")
    assert shell.status(f"https://{ONE}/") == "200"

    def row() -> dict:
        return next(row for row in world.rows("ps") if row["bottle"] == "live")

    until(lambda: [b["tokens"] for b in row()["budgets"] if b["scope"] == "bottle"] == [77])
    limits = Path("/sys/fs/cgroup").rglob(f"b{row()['slot']}/pids.max")  # none where pids is a controller of v1
    assert {file.read_text().strip() for file in limits} <= {"300"}
    world.agentmon("allow", "live", f"{TWO}:443")
    settings(world, f"deny: [{ONE}]\nceiling: {{claude: 9}}\n")
    until(lambda: shell.status(f"https://{ONE}/") == "000", 15, "a deny of the settings is not in force")
    assert shell.status(f"https://{TWO}/") == "200"  # allowed by an operator, and so it stays
    assert [b["tokens"] for b in row()["budgets"] if b["scope"] == "ceiling"] == [9]
    settings(world, "")
    until(lambda: shell.status(f"https://{ONE}/") == "200", 15, "a deny that was taken out is still in force")
    assert shell.end() == 0


def test_a_bad_file_leaves_all_as_it_was_and_is_told_everywhere(world: World) -> None:
    file = world.tmp / "bottles/kept.yml"
    say(file, f"allow: [{ONE}:443]\n")
    shell = Shell(world, "kept", "--policy", str(file))
    say(file, f"allow: [{TWO}:443]\nlimits: {{pids: many}}\n")
    (bad,) = until(lambda: world.events("kept", kind="policy", verdict="refused"), 15)
    assert bad["reason"].startswith(f"{file}:2: limits.pids: ") and bad["hint"]
    assert f"error: bottle kept: {file}:2: " in world.log()
    listed = world.agentmon("ps")
    assert "STALE" in listed.stdout and f"note: {file}:2: " in listed.stderr and "(kept)" in listed.stderr
    assert f"{file}:2: " in world.agentmon("policy", "explain", "kept").stderr
    assert [shell.status(f"https://{host}/") for host in (ONE, TWO)] == ["200", "000"]
    settings(world, "deny: [x y]\n")  # and nothing of good manifests is taken while the settings are bad
    until(lambda: f"error: {world.settings}:" in world.log(), 15)
    say(file, f"allow: [{TWO}:443]\n")
    assert world.daemon is not None
    world.daemon.send_signal(signal.SIGHUP)
    assert shell.status(f"https://{TWO}/") == "000"
    settings(world, "retention: {events: 1d}\n")
    until(lambda: shell.status(f"https://{TWO}/") == "200", 15, "a file that was mended is not in force")
    assert "retention: changed, in force when the daemon is started again" in world.log()
    assert "STALE" not in world.agentmon("ps").stdout
    assert shell.end() == 0


def test_a_stream_survives_twenty_reloads(world: World) -> None:
    file = world.tmp / "bottles/streams.yml"
    routes = f"allow: [{ONE}:443, {TWO}:443]\nroutes: [{{host: {ONE}, methods: [GET, %s]}}]\n"
    say(file, routes % "PUT")
    shell = Shell(world, "streams", "--policy", str(file))
    count = shell.world.log().count("hint")  # nothing is wrong with any of them
    shell(f"curl -sS -m 30 -o /tmp/slow 'https://{ONE}/slow?s=6' & echo started")
    for n in range(20):
        method = ("POST", "PUT")[n % 2]
        say(file, (routes % method) + ("" if n % 3 else f"budget: {{claude: {1000 + n}}}\n"))
        assert world.daemon is not None
        world.daemon.send_signal(signal.SIGHUP)
        other = ("PUT", "POST")[n % 2]
        asked = f"-X {method} -d x"
        until(lambda asked=asked: shell.status(f"https://{ONE}/", asked) == "200", 15, f"reload {n} is not in force")
        assert shell.status(f"https://{ONE}/", f"-X {other} -d x") == "403"
    assert shell("wait; wc -c < /tmp/slow") == "120"
    assert world.log().count("hint") == count
    assert shell.end() == 0
