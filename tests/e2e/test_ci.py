"""CI mode with a job that installs real packages by pip, npm, apt and git: a runner held whole, and steps that enter a
place; what is new fails; what is not expected is refused; the stand-in internet says what it received."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.e2e.test_attach import Shell, command
from tests.support import mirrors
from tests.support.live import COMMAND, World, until

pytestmark = pytest.mark.e2e
NEW = "curl -sS -m 5 -k https://www.allowed.example/ -o /dev/null || echo refused"
PAGE = "this is www.allowed.example"
GOT = {"pip": "from-pip", "npm": "from-npm", "apt": "from-apt", "git": "from-git"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if lacking := mirrors.missing():
        pytest.skip(f"scripts/setup.sh tests, or apt-get install {' '.join(lacking)}")
    place = tmp_path_factory.mktemp("ci")
    mirrors.make(place / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMNET_FILES", str(place / "files"))
        patch.delenv("GITHUB_STEP_SUMMARY", raising=False)
        with World(place) as made:
            made.start_daemon()
            yield made


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


def baseline(tmp_path: Path, *rules: str) -> Path:
    file = tmp_path / "egress.yml"
    file.write_text("allow:\n" + "".join(f"- {rule}\n" for rule in rules))
    return file


def test_a_runner_is_observed_whole_and_its_baseline_is_written(world: World, work: Path, tmp_path: Path) -> None:
    """The runner knows nothing of it: it starts its steps with the variables of its CI system, and one names itself."""
    runner, file = Shell("unshare", "-n"), tmp_path / "egress.yml"
    try:
        pid = str(runner.process.pid)
        said = world.agentmon("ci", "start", "--pid", pid, "--baseline", str(file), "--json").stdout
        assert json.loads(said)["layers"] == ["host-nft", "bottle-nft", "bpf", "resolver", "relay", "proxy"]
        done = world.agentmon("ci", "start", "--pid", pid, check=False)
        assert done.returncode == 1 and "agentmon ci stop --name ci" in done.stderr
        for step, script in mirrors.steps(world.net / "ca.pem", work).items():
            out = runner(f"GITHUB_ACTION={step} bash -ec '{script}' 2>&1", 60)
            assert out.endswith(GOT[step]), out
        own = " ".join(COMMAND)
        assert runner(f"{own} ci step 'by hand' -- curl -sS -k -m 5 https://www.allowed.example/ 2>&1") == PAGE
        world.agentmon("ci", "stop")
        assert runner("echo alive") == "alive"
    finally:
        runner.end()
    found = json.loads(world.agentmon("ci", "report", "--baseline", str(file), "--update", "--json").stdout)["ci"]
    assert {one["rule"]: one["steps"] for one in found["reached"]} == {
        **{rule: [rule.partition(".")[0]] for rule in mirrors.RULES}, "www.allowed.example:443": ["by hand"],
    }  # fmt: skip
    assert not any(one["refused"] for one in found["reached"]) and found["untold"] == [] and found["lost"] == 0
    written = file.read_text()
    assert written.splitlines()[2:] == ["allow:", *(f'  - "{r}"' for r in (*mirrors.RULES, "www.allowed.example:443"))]
    assert "5 rules" in world.agentmon("policy", "check", str(file)).stdout
    # known now: nothing is written, and nothing fails; without one rule, that one is new
    world.agentmon("ci", "report", "--update")
    assert file.read_text() == written
    summary, out = tmp_path / "summary.md", tmp_path / "out"
    summary.write_text("of another step\n")
    world.agentmon("ci", "report", "--summary", str(summary), "--artefacts", str(out))
    assert "All of it is in egress.yml." in summary.read_text() and summary.read_text().startswith("of another step\n")
    assert summary.read_text().endswith((out / "report.md").read_text())
    assert json.loads((out / "report.json").read_text())["ci"]["clean"] is True
    HTMLParser().feed((out / "report.html").read_text())
    less = baseline(tmp_path, *mirrors.RULES)
    done = world.agentmon("ci", "report", "--baseline", str(less), check=False)
    assert done.returncode == 1 and "www.allowed.example:443" in done.stderr
    assert "| www.allowed.example:443 | by hand | curl |" in done.stdout


def test_steps_that_enter_a_place_are_held_to_the_baseline(world: World, work: Path, tmp_path: Path) -> None:
    file = baseline(tmp_path, *mirrors.RULES)
    before = len(world.counters()["requests"])
    world.agentmon("ci", "start", "--name", "held", "--enforce", "--baseline", str(file))
    session = json.loads((world.root / "var/lib/agentmon/ci/held.json").read_text())
    try:
        scripts = mirrors.steps(world.net / "ca.pem", work) | {"new": NEW, "root": "id -u; agentmon-is-not-there"}
        for step, script in scripts.items():
            done = step_of(world, "held", step, script)
            if step == "root":
                assert done.returncode == 127 and done.stdout == "0\n"  # by root, without sudo: as root
            else:
                assert done.returncode == 0 and done.stdout.split()[-1] == GOT.get(step, "refused"), done.stderr
        done = step_of(world, "held", "stop", " ".join([*COMMAND, "ci", "stop", "--name", "held"]))
        assert done.returncode == 3 and "inside a bottle" in done.stderr  # a job does not end its own supervision
        done = step_of(world, "held", "user", "id -u; sleep 300 >/dev/null 2>&1 &", SUDO_UID="65534")
        assert done.stdout == "65534\n", done.stderr
    finally:
        stopped = world.agentmon("ci", "stop", "--name", "held")
    assert "1 processes that steps had left running were ended" in stopped.stderr
    assert not Path(session["cgroup"]).exists()
    until(lambda: not Path(f"/proc/{session['watch']['pid']}/ns").is_dir() or _zombie(session["watch"]["pid"]))
    requests = {entry["host"] for entry in world.counters()["requests"][before:]}
    assert "www.allowed.example" not in requests and len(requests) == len(GOT)
    done = world.agentmon("ci", "report", "--name", "held", "--json", check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["ci"]["new"] == ["www.allowed.example:443"]
    one = next(r for r in found["ci"]["reached"] if r["new"])
    assert (one["steps"], one["processes"], one["refused"]) == (["new"], ["curl"], True)
    assert found["refused"]["count"] > 0
    for words in (("ci", "exec", "--name", "held", "--", "true"), ("ci", "stop", "--name", "held")):
        done = world.agentmon(*words, check=False)
        assert done.returncode == 2 and "has been stopped" in done.stderr


def _zombie(pid: int) -> bool:
    """Its parent, the command that started it, has ended: init waits for it, in its own time."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def step_of(world: World, name: str, step: str, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As a CI system starts one that has `shell: agentmon ci exec`."""
    return subprocess.run(
        [*COMMAND, "ci", "exec", "--name", name, "--", "bash", "-ec", script],
        env=world.env | {"GITHUB_ACTION": step, **env}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def test_what_cannot_be_started_leaves_nothing(world: World, tmp_path: Path) -> None:
    cgroups = command("sh", "-c", "find /sys/fs/cgroup -name 'agentmon-ci-*' 2>/dev/null; true")
    for words, status, text in (
        (("--pid", str(os.getpid())), 2, "in the host's own network namespace"),
        (("--pid", "1", "--netns", "x"), 2, "one thing is held at a time"),
        (("--enforce", "--baseline", "/nonexistent.yml"), 2, "observe first"),
        (("--policy", "/nonexistent.yml"), 2, "/nonexistent.yml"),
        (("--allow", "127.0.0.1:1"), 2, "127.0.0.1"),  # the daemon refuses it when the place is there
        (("--name", "no/name"), 2, "cannot name a CI session"),
    ):
        done = world.agentmon("ci", "start", *words, check=False)
        assert done.returncode == status and text in done.stderr, (words, done.stderr)
    for words in (("report", "--name", "none"), ("exec", "--name", "none", "--", "true"), ("stop", "--name", "none")):
        done = world.agentmon("ci", *words, check=False)
        assert done.returncode == 2 and "no CI session 'none'" in done.stderr
    assert command("sh", "-c", "find /sys/fs/cgroup -name 'agentmon-ci-*' 2>/dev/null; true") == cgroups
    assert not world.rows("ps")
