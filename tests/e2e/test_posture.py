"""The report on a running daemon: what was planted in bottles, programs and services is found; the canary is held."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ebpf import abi
from ebpf.maps import Map
from ebpf.programs import DEFAULT_PINS
from tests.support.live import Job, World, until

pytestmark = pytest.mark.e2e
SLEEP = ("sh", "-c", "echo up; exec sleep 60")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("posture")) as made:
        made.start_daemon()
        yield made


def report(world: World, *options: str) -> dict[str, Any]:
    done = world.agentmon("posture", "--json", *options, check=False)
    value: dict[str, Any] = json.loads(done.stdout)
    worst = {"ok": 0, "warn": 1, "unknown": 1, "fail": 2}[value["status"]]
    assert done.returncode == worst, done.stderr
    return value


def about(value: dict[str, Any], id_: str) -> dict[str, Any]:
    return next(f for f in value["findings"] if f["id"] == id_)


def start(world: World, name: str, *options: str) -> Job:
    job = world.run("--name", name, *options, "--", *SLEEP)
    assert job.line(20) == "up"
    return job


def test_bottles_as_their_policy_compiles_to_and_what_it_leaves_open(world: World) -> None:
    start(world, "clean", "--allow", "www.allowed.example:443", "--allow", "tcp://203.0.113.20:8080")
    value = report(world)
    wrong = {f["id"]: f["evidence"] for f in value["findings"] if f["status"] != "ok"}
    assert not {id_ for id_ in wrong if id_.startswith(("bottle.", "daemon."))} - {"daemon.programs"}, wrong
    manifest = world.root / "etc/agentmon/bottles/loose.yml"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text('io_uring: true\nallow: ["10.0.0.0/8:5432", "tcp://203.0.113.53:53"]\n')
    start(world, "loose", "--policy", str(manifest), "--observe")
    value = report(world)
    for id_ in ("bottle.io_uring", "bottle.observe", "bottle.wide", "bottle.dns"):
        found = about(value, id_)
        assert found["status"] == "warn" and "loose" in found["evidence"] and "clean" not in found["evidence"], found
    assert about(value, "bottle.capabilities")["status"] == "ok"
    world.agentmon("kill", "--all")
    until(lambda: not world.rows("ps"))


def test_an_element_taken_from_a_map_is_found(world: World) -> None:
    start(world, "maps", "--allow", "tcp://203.0.113.20:8080")
    assert about(report(world), "bottle.programs")["status"] == "ok"
    (maps,) = DEFAULT_PINS.glob("layout-*")
    with Map(str(maps / "am_exact")) as exact:
        abi.check("am_exact", exact.key_bytes, exact.value_bytes)
        taken = [(key, value) for key, value in exact.items()]
        exact.delete(taken[0][0])
    found = about(report(world), "bottle.programs")
    assert found["status"] == "fail" and "is gone" in found["evidence"], found
    world.agentmon("kill", "maps")
    until(lambda: not world.rows("ps"))


def test_a_service_that_was_stopped_is_found(world: World) -> None:
    assert about(report(world), "daemon.privileges")["status"] == "ok"
    pid = world.pid_of("relay")
    os.kill(pid, signal.SIGSTOP)
    try:
        found = about(report(world), "daemon.services")
        assert found["status"] == "fail" and "relay" in found["evidence"], found
    finally:
        os.kill(pid, signal.SIGCONT)
    assert about(report(world), "daemon.services")["status"] == "ok"


def test_the_canary_is_held_by_more_than_one_layer(world: World) -> None:
    value = report(world, "--canary")
    held = about(value, "canary.held")
    assert held["status"] == "ok", (held, value["canary"])
    assert len(value["canary"]) >= 18 and all(a["refused"] for a in value["canary"])
    told = {layer for a in value["canary"] for layer in a["layers"]}
    assert {"bpf", "resolver"} <= told
    assert not world.rows("ps")
