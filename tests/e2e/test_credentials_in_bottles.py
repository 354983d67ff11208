"""Credentials from the host's files into requests of a bottle, replaced while it runs, and nowhere else to be found."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import Job, World, until

pytestmark = pytest.mark.e2e

BY_FILE, BY_COMMAND = "www.allowed.example", "other.allowed.example"
KEYS = [f"sk-planted-{secrets.token_hex(16)}" for _ in range(4)]
SETTINGS = "log: full\nbottles_dir: {tmp}/bottles\ncredentials: {{told: {{command: [/bin/cat, {tmp}/told]}}}}\n"
MANIFEST = f"""
allow: ["{BY_FILE}:443", "{BY_COMMAND}:443"]
routes:
  - {{host: {BY_FILE}, auth: {{header: x-api-key, credential: house}}}}
  - {{host: {BY_COMMAND}, auth: {{header: authorization, credential: told}}}}
"""
# The stand-in server answers with digests of the headers it saw: values themselves do not come back through the proxy.
ASKS = """
import json, sys, urllib.error, urllib.request
for line in sys.stdin:
    host, header = line.split()
    asked = urllib.request.Request(f"https://{host}/digests", headers={"X-Api-Key": "own", "Authorization": "own"})
    try:
        seen = json.load(urllib.request.urlopen(asked, timeout=10))
        print(seen[header], flush=True)
    except urllib.error.HTTPError as e:
        print(e.code, json.load(e)["error"]["message"], flush=True)
    except OSError as e:
        print("broken", e, flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("credentials")
    (tmp / "bottles").mkdir()
    (tmp / "bottles/keyed.yml").write_text(MANIFEST)
    (tmp / "told").write_text(KEYS[2])
    with World(tmp, SETTINGS.format(tmp=tmp)) as made:
        made.start_daemon()
        yield made


def put(world: World, value: str, mode: int = 0o600) -> Path:
    """The file of `house`, replaced as a whole."""
    directory = world.root / "etc/agentmon/credentials"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = directory / ".new"
    new.write_text(value + "\n")
    new.chmod(mode)
    return new.replace(directory / "house")


def ask(job: Job, host: str, header: str) -> str:
    job.say(f"{host} {header}")
    return job.line()


def comes(job: Job, host: str, header: str, value: str) -> None:
    digest = hashlib.sha256(value.encode()).hexdigest()
    until(lambda: ask(job, host, header) == digest, 15, "the server never saw the new credential")


def test_from_missing_to_rotated_to_withdrawn_and_nowhere_else(world: World) -> None:
    job = world.run("--name", "keyed", "--policy", str(world.tmp / "bottles/keyed.yml"), "--", "python3", "-c", ASKS)
    assert "403 The credential 'house'" in ask(job, BY_FILE, "x-api-key")
    (missing,) = world.events("keyed", kind="daemon", verdict="refused")
    assert "credential 'house' is not on this host" in missing["reason"] and "install -m 600" in missing["hint"]

    put(world, KEYS[0])
    comes(job, BY_FILE, "x-api-key", KEYS[0])
    put(world, KEYS[1])
    comes(job, BY_FILE, "x-api-key", KEYS[1])

    comes(job, BY_COMMAND, "authorization", f"Bearer {KEYS[2]}")
    (world.tmp / "told").write_text(KEYS[3])
    assert world.daemon is not None
    world.daemon.send_signal(signal.SIGHUP)
    comes(job, BY_COMMAND, "authorization", f"Bearer {KEYS[3]}")

    os.kill(world.pid_of("proxy"), signal.SIGKILL)  # the next worker is told again
    comes(job, BY_FILE, "x-api-key", KEYS[1])

    looked = everywhere(world)
    put(world, KEYS[0], mode=0o644)
    until(lambda: ask(job, BY_FILE, "x-api-key").startswith("403 The credential"), 15, "a file for all is still used")
    assert any("mode 0644" in e["reason"] for e in world.events("keyed", kind="daemon", verdict="refused"))
    (world.root / "etc/agentmon/credentials/house").unlink()
    looked |= everywhere(world)
    assert {"daemon.log", "events.db", "ledger.db", "proxy.log", "environ", "cmdline"} <= looked
    shown = world.agentmon("events", "--bottle", "keyed", "--json").stdout + world.agentmon("ps", "--json").stdout
    assert BY_FILE in shown and not any(key in shown for key in KEYS)
    _, out, err = job.end()
    assert not any(key in out + err for key in KEYS)


def test_routes_are_read_anew_and_a_bad_file_changes_nothing(world: World) -> None:
    file = world.tmp / "bottles/routed.yml"

    def reload(text: str) -> None:
        file.write_text(f'allow: ["{BY_FILE}:443", "{BY_COMMAND}:443"]\nroutes:\n  - host: {BY_FILE}\n    {text}\n')
        assert world.daemon is not None
        world.daemon.send_signal(signal.SIGHUP)

    reload("auth: none")
    job = world.run("--name", "routed", "--policy", str(file), "--", "python3", "-c", ASKS)
    assert ask(job, BY_FILE, "host") == hashlib.sha256(BY_FILE.encode()).hexdigest()
    reload("methods: [PUT]")
    until(lambda: ask(job, BY_FILE, "host").startswith("403 Method GET"), 15, "the new route is not in force")
    reload("methods: [put]")
    (bad,) = until(lambda: world.events("routed", kind="policy", verdict="refused"), 15)
    assert f"{file}:4: " in bad["reason"] and "what was in force stays" in bad["reason"]
    assert ask(job, BY_FILE, "host").startswith("403 Method GET")
    (world.tmp / "told").write_text(KEYS[2])
    reload("auth: {header: x-api-key, credential: told}")  # a credential that this bottle had no part in
    comes(job, BY_FILE, "x-api-key", KEYS[2])
    assert job.end()[0] == 0


def everywhere(world: World) -> set[str]:
    """Names of what was searched for the keys: all files of the installation, logs, and /proc of every process."""
    own = {world.root / "etc/agentmon/credentials/house"}
    files = [f for top in (world.root, world.net) for f in top.rglob("*") if f.is_file() and f not in own]
    files += [world.tmp / "daemon.log"]
    files += [f for name in ("environ", "cmdline") for f in Path("/proc").glob(f"[0-9]*/{name}")]
    found = set()
    for file in files:
        try:
            data = file.read_bytes()
        except OSError:  # a process that is gone
            continue
        assert not any(key.encode() in data for key in KEYS), file
        found.add(file.name)
    status = Path(f"/proc/{world.pid_of('proxy')}/environ").stat()
    assert status.st_uid == 0, "a worker that can be dumped would leave its memory in a core file"
    return found
