"""Several proxy workers: a bottle has its own and reaches no other; one that dies takes no other's traffic along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.internet.world import DIRECT, WEB
from tests.support.live import Job, World, until

pytestmark = pytest.mark.e2e

HOST = "www.allowed.example"
FETCH = f"curl -sS -m 3 -o /dev/null -w '%{{http_code}}\\n' https://{HOST}/headers 2>&1 || true"
MANIFEST = f'allow: ["{HOST}"]\nroutes: [{{host: {HOST}, inbound: warn, outbound: block}}]\n'
SHELL = ("sh", "-c", 'while read -r line; do eval "$line"; echo "[done]"; done')
NAMES = ("proxy", "proxy-1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("workers")
    (tmp / "m.yml").write_text(MANIFEST)
    with World(tmp, "proxies: 2\n") as made:
        made.start_daemon()
        yield made


@pytest.fixture(scope="module")
def jobs(world: World) -> Iterator[dict[str, Job]]:
    yield from two(world)


def two(world: World) -> Iterator[dict[str, Job]]:
    """By worker: two bottles in slots that follow one another."""
    found: dict[str, Job] = {}
    for name in ("one", "two"):
        job = world.run("--name", name, "--policy", str(world.tmp / "m.yml"), "--", *SHELL)
        address = ask(job, f"getent ahostsv4 {HOST} | head -n 1 | cut -d' ' -f1")
        found[{"10.213.0.4": "proxy", "10.213.0.5": "proxy-1"}[address]] = job
    assert set(found) == set(NAMES)
    yield found
    for job in found.values():
        job.say("exit 0")
        assert job.end()[0] == 0


def ask(job: Job, text: str) -> str:
    """What the job's shell prints for one line of script."""
    job.say(text)
    out = []
    while (line := job.line(20)) != "[done]":
        out.append(line)
    return "\n".join(out)


def test_a_bottle_reaches_its_own_worker_and_no_other(world: World, jobs: dict[str, Job]) -> None:
    for name, other in zip(NAMES, ("10.213.0.5", "10.213.0.4"), strict=True):
        assert ask(jobs[name], FETCH) == "200"
        assert "200" not in ask(jobs[name], FETCH.replace("-sS", f"-sS --resolve {HOST}:443:{other}"))
        plain = FETCH.replace("https://", "http://")
        assert ask(jobs[name], plain) == "200"  # port 80 of an inspected host: at its own worker as well


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("service", NAMES)
def test_a_worker_that_dies_refuses_its_bottles_and_no_others(
    world: World, jobs: dict[str, Job], service: str, number: signal.Signals
) -> None:
    mine, others = jobs[service], next(job for name, job in jobs.items() if name != service)
    old = world.pid_of(service)
    os.kill(old, signal.SIGSTOP)  # held, so that what is asked now meets an outage and not its successor
    try:
        said = ask(mine, FETCH.replace("-m 3", "-m 1"))
        assert "200" not in said
        assert ask(others, FETCH) == "200"
    finally:
        os.kill(old, number)
        os.kill(old, signal.SIGCONT)
    until(lambda: world.pid_of(service) != old, 20)
    assert ask(others, FETCH) == "200"
    until(lambda: ask(mine, FETCH) == "200", 20, f"{service} does not serve again")
    told = [event["reason"] for event in world.rows("events", "--kind", "daemon") if "reason" in event]
    assert f"the {service} has gone away" in told


def test_a_worker_reaches_only_what_policies_name(world: World, jobs: dict[str, Job]) -> None:
    """From its namespace, as root: the address that a look-up for a bottle committed, and no other, no other port."""
    assert ask(jobs["proxy"], FETCH) == "200"
    reach = (
        "import json, socket, sys\nout = []\nfor host, port in json.loads(sys.argv[1]):\n"
        "    try:\n        socket.create_connection((host, port), 2).close()\n        out.append('open')\n"
        "    except OSError:\n        out.append('closed')\nprint(json.dumps(out))\n"
    )
    tried = [(WEB[0], 443), (WEB[0], 8443), (DIRECT[0], 443), (DIRECT[0], 7), ("198.51.100.53", 443)]
    done = subprocess.run(
        ["nsenter", "--net=/run/netns/am-svc", "python3", "-c", reach, json.dumps(tried)],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == ["open", "closed", "closed", "closed", "closed"]
