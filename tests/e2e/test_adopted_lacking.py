"""An upgrade after which the host holds less than it did: what relies on it is cut and told, and stays cut.

The next daemon finds the features of the BPF programs where the last one left them, in a pinned map; there one is
removed, as a kernel would that took its programs before and refuses them now.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon import paths
from ebpf import abi, encode
from ebpf.maps import Map
from tests.support.live import World, until

pytestmark = pytest.mark.e2e
FETCH = "curl -sS -m 5 -o /dev/null -w '%{http_code}\\n' https://www.allowed.example/ 2>&1 || true"
SHELL = ("sh", "-c", 'while read -r line; do eval "$line"; echo "[done]"; done')


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        made.start_daemon()
        yield made


def ask(job, text: str) -> str:  # type: ignore[no-untyped-def]
    job.say(text)
    out = []
    while (line := job.line(15.0)) != "[done]":
        out.append(line)
    return "\n".join(out)


def phases_of(world: World) -> dict[str, str] | None:
    """Of both bottles, once both are there."""
    found = {row["bottle"]: row["phase"] for row in world.rows("ps")}
    return found if len(found) == 2 else None


def forget_vouching() -> None:
    (path,) = paths.BPFFS.glob("layout-*/am_config")
    key = bytes(4)
    with Map(str(path)) as config:
        *kept, features = encode.CONFIG.unpack(config.lookup(key))
        config.update(key, encode.CONFIG.pack(*kept, features & ~abi.FEATURES["vouch"]))


def test_a_bottle_whose_protection_is_gone_is_cut(world: World, tmp_path: Path) -> None:
    jobs = {}
    for guard in ("strict", "observe"):
        manifest = tmp_path / f"{guard}.yml"
        manifest.write_text(f'allow: ["www.allowed.example:443"]\nguard: {guard}\n')
        jobs[guard] = world.run("--name", guard, "--policy", str(manifest), "--", *SHELL)
        assert ask(jobs[guard], FETCH) == "200"
    assert world.daemon is not None
    world.daemon.terminate()
    assert world.daemon.wait(20) == 0
    forget_vouching()
    world.start_daemon()
    phases = until(lambda: phases_of(world))
    assert phases == {"strict": "cut", "observe": "running"}
    assert ask(jobs["observe"], FETCH) == "200"
    assert "200" not in ask(jobs["strict"], FETCH)
    (told,) = (e for e in world.rows("events", "--bottle", "strict") if e["kind"] == "cutoff")
    assert told["reason"].startswith("guard: strict needs BPF programs that this kernel does not take")
    assert told["detail"]["hint"].startswith("write guard: observe, or boot")
    resumed = world.agentmon("resume", "strict", check=False)
    assert resumed.returncode == 4, resumed.stderr
    assert "guard: strict needs" in resumed.stderr and "hint: end it (agentmon kill)" in resumed.stderr
    for job in jobs.values():
        job.say("exit 0")
        assert job.end()[0] == 0
