"""What breaks while a job runs: traffic stays refused, the message says what to do, and it heals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import COMMAND, ROOT, World, until

pytestmark = pytest.mark.e2e
FETCH = "curl -sS -m 5 -o /dev/null -w '%{http_code}\\n' https://www.allowed.example/ 2>&1 || true"
SHELL = ("sh", "-c", 'while read -r line; do eval "$line"; echo "[done]"; done')


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("faults")) as made:
        made.start_daemon()
        yield made


def ask(job, text: str, seconds: float = 15.0) -> str:  # type: ignore[no-untyped-def]
    """What the job's shell prints for one line of script."""
    job.say(text)
    out = []
    while (line := job.line(seconds)) != "[done]":
        out.append(line)
    return "\n".join(out)


def shell(world: World, name: str, *options: str):  # type: ignore[no-untyped-def]
    job = world.run("--name", name, "--allow", "www.allowed.example:443", *options, "--", *SHELL)
    assert ask(job, "echo up") == "up"
    return job


def test_command_not_found_and_not_executable_end_as_in_a_shell(world: World) -> None:
    assert world.agentmon("run", "--", "no-such-command-anywhere", check=False).returncode == 127
    assert world.agentmon("run", "--", "/etc/passwd", check=False).returncode == 126


def test_a_taken_name_is_refused_and_the_first_bottle_lives(world: World) -> None:
    job = shell(world, "taken")
    done = world.agentmon("run", "--name", "taken", "--", "true", check=False)
    assert done.returncode == 125 and "already running" in done.stderr and "hint:" in done.stderr
    assert ask(job, "echo still") == "still"
    job.say("exit 0")
    assert job.end()[0] == 0


@pytest.mark.parametrize("service", ["resolver", "relay"])
def test_a_killed_service_refuses_and_comes_back(world: World, service: str) -> None:
    job = shell(world, f"kill-{service}")
    assert ask(job, FETCH) == "200"
    old = world.pid_of(service)
    os.kill(old, signal.SIGSTOP)  # held, so that what is asked now meets an outage and not its successor
    try:
        said = ask(job, FETCH.replace("-m 5", "-m 2")).split()
        assert "000" in said and "200" not in said, said
    finally:
        os.kill(old, signal.SIGKILL)
    until(lambda: world.pid_of(service) != old, 20)
    until(lambda: ask(job, FETCH) == "200", 20, f"the {service} is not used again")
    told = world.rows("events", "--kind", "daemon")
    assert any(service in event.get("reason", "") for event in told)
    job.say("exit 0")
    assert job.end()[0] == 0


def test_a_killed_daemon_leaves_the_job_held_and_is_replaced(world: World) -> None:
    job = shell(world, "orphan")
    assert ask(job, FETCH) == "200"
    assert world.daemon is not None
    world.daemon.kill()
    world.daemon.wait()
    assert ask(job, FETCH) == "200"  # what was permitted goes on: relay and kernel state are in force
    refused = ask(job, "curl -sS -m 5 http://203.0.113.10/ 2>&1")
    assert "onnect" in refused, refused
    world.start_daemon()
    row = until(lambda: next((r for r in world.rows("ps") if r["bottle"] == "orphan"), None))
    assert row["phase"] == "running"
    assert ask(job, FETCH) == "200"
    world.agentmon("kill", "orphan")
    status, _, err = job.end()
    assert status != 0 and "Traceback" not in err
    assert not any(world.counters()["forbidden"].values())


def test_a_terminated_daemon_leaves_its_bottles_to_the_next(world: World) -> None:
    """An upgrade: SIGTERM, another daemon, and the command line, the job and its exit status go through."""
    job = shell(world, "upgrade")
    assert world.daemon is not None
    world.daemon.terminate()
    assert world.daemon.wait(20) == 0
    assert "1 bottles stay in force" in world.log()
    assert ask(job, "echo on") == "on"
    world.start_daemon()
    row = until(lambda: next((r for r in world.rows("ps") if r["bottle"] == "upgrade"), None))
    assert row["phase"] == "running"
    assert ask(job, FETCH) == "200"
    told = world.rows("events", "--kind", "daemon")
    assert any(e.get("reason") == "adopted" and e.get("bottle") == "upgrade" for e in told)
    job.say("exit 7")
    assert job.end()[0] == 7


def spawner_of(world: World) -> int:
    """The spawner has no pid file: it is known by its command line and the test's own root."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            here = str(world.root).encode() in (place / "environ").read_bytes()
            if here and b"agentmon.launch.spawner" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    (pid,) = found
    return pid


def test_a_killed_spawner_is_replaced_and_its_jobs_end_with_a_reason(world: World) -> None:
    """How a job ended nobody could say any more, so it is ended, and `run` says why; the next one works."""
    job = shell(world, "waited-for")
    os.kill(spawner_of(world), signal.SIGKILL)
    status, _, err = job.end()
    assert status == 125 and "launches and waits for jobs was killed" in err and "hint:" in err
    until(lambda: not any(r["bottle"] == "waited-for" for r in world.rows("ps")))
    assert world.agentmon("run", "--", "echo", "on").stdout == "on\n"
    told = world.rows("events", "--kind", "daemon")
    assert any("started again, 1 jobs are ended" in event.get("reason", "") for event in told)


@pytest.mark.parametrize("target", ["/run", "/"])
def test_a_link_out_of_what_may_be_shown_is_refused(world: World, tmp_path: Path, target: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    done = world.agentmon("run", "--rw", str(link), "--", "true", check=False)
    assert done.returncode == 125 and "private inside" in done.stderr and "hint:" in done.stderr


def test_the_client_that_dies_takes_its_bottle_along(world: World) -> None:
    job = shell(world, "lonely")
    job.process.kill()
    job.process.communicate()
    until(lambda: not any(r["bottle"] == "lonely" for r in world.rows("ps")), 20)
    assert not list((world.run_dir / "state").glob("*.json"))


def test_a_broken_manifest_names_file_line_and_key(world: World, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text("allow:\n  - www.allowed.example:443\nbudgget: {claude: 3}\n")
    done = world.agentmon("run", "--policy", str(bad), "--", "true", check=False)
    assert done.returncode == 125
    assert "bad.yml:3" in done.stderr and "budgget" in done.stderr and "hint:" in done.stderr


def test_an_unresolvable_name_is_unreachable_and_nothing_else_changes(world: World) -> None:
    job = shell(world, "lost-name", "--allow", "tcp://servfail.allowed.example:8443")
    assert "resolve" in ask(job, "curl -sS -m 8 https://servfail.allowed.example:8443/ 2>&1", 20)
    event = until(lambda: world.events("lost-name", kind="dns", reason="servfail"))[0]
    assert (event["verdict"], event["host"], event["comm"]) == ("allowed", "servfail.allowed.example", "curl")
    assert ask(job, FETCH) == "200"
    job.say("exit 0")
    assert job.end()[0] == 0


def daemon_alone(world: World, *words: str, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A daemon that is to fail at its start."""
    return subprocess.run(
        [*wrap, *COMMAND, "daemon", *words],
        cwd=ROOT,
        env=world.env,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_a_second_daemon_says_that_one_runs(world: World) -> None:
    done = daemon_alone(world)
    assert done.returncode == 4 and "already running" in done.stderr


def test_settings_that_cannot_be_used(world: World, tmp_path: Path) -> None:
    bad = tmp_path / "s.yml"
    bad.write_text("upstream: {ca: 7}\n")
    done = daemon_alone(world, "--settings", str(bad))
    assert done.returncode == 2 and "s.yml:1" in done.stderr
    done = daemon_alone(world, "--settings", str(tmp_path / "missing.yml"))
    assert done.returncode == 2 and "missing.yml" in done.stderr


class TestStart:
    """Failures of a daemon's start, without one running."""

    @pytest.fixture(scope="class")
    def quiet(self, world: World) -> Iterator[World]:
        world.stop_daemon()
        yield world
        world.start_daemon()

    def test_an_unreadable_ca_is_named(self, quiet: World, tmp_path: Path) -> None:
        bad = tmp_path / "s.yml"
        bad.write_text(f"upstream: {{ca: {tmp_path}/none.pem}}\n")
        done = daemon_alone(quiet, "--settings", str(bad))
        assert done.returncode == 4 and "none.pem" in done.stderr and "hint:" in done.stderr

    def test_without_cgroup_v2(self, quiet: World) -> None:
        script = 'umount -l $(awk \'$3 == "cgroup2" {print $2}\' /proc/mounts); exec "$@"'
        done = daemon_alone(quiet, wrap=("unshare", "-m", "sh", "-c", script, "sh"))
        assert done.returncode == 4 and "cgroup v2" in done.stderr and "hint:" in done.stderr

    def test_not_root(self, quiet: World) -> None:
        code = "import os, sys, agentmon.daemon.main; from agentmon.cli.main import main; "
        code += "os.seteuid(65534); sys.exit(main(['daemon']))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=quiet.env,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 4 and "root" in done.stderr and "sudo" in done.stderr

    def test_the_address_pool_is_used_up(self, quiet: World, tmp_path: Path) -> None:
        text = quiet.settings.read_text()
        quiet.settings.write_text(text + "addresses: {v4: 10.213.77.0/27, v6: 'fd61:6d6f:6e:77::/64'}\n")
        try:
            quiet.start_daemon()
            jobs = [quiet.run("--name", f"n{i}", "--", "cat") for i in range(15)]
            until(lambda: len(quiet.rows("ps")) == 15 and all(r["phase"] == "running" for r in quiet.rows("ps")), 60)
            done = quiet.agentmon("run", "--", "true", check=False)
            assert done.returncode == 125 and "address pool is used up" in done.stderr and "hint:" in done.stderr
            for job in jobs:
                assert job.process.stdin is not None
                job.process.stdin.close()
                assert job.process.wait(30) == 0
        finally:
            quiet.settings.write_text(text)
            quiet.stop_daemon()
