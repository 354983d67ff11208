"""The native audit beside a running daemon: a library that connected past the guard in a bottle is `seen`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import native_files as native
from tests.support.live import ROOT, World, until

pytestmark = pytest.mark.e2e
ADDRESS = "198.51.100.11:9000"
JOB = """
import ctypes, socket, struct, sys
from agentmon.guard import EgressGuard, selfcheck

EgressGuard.install(allow=["198.51.100.11:9000"])
print(__import__("json").dumps(selfcheck.report()["bottle"]), flush=True)
loud = ctypes.CDLL(sys.argv[1])
with socket.socket() as sock:
    to = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 9000) + socket.inet_aton("198.51.100.11") + bytes(8)
    print(loud.go(sock.fileno(), to), flush=True)
input()
"""


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("audited")
    with World(directory, f"bottles_dir: {directory}/bottles\n") as made:
        (directory / "bottles").mkdir()
        made.start_daemon()
        yield made


def test_what_layer_3_has_seen(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("native")
    place.chmod(0o755)
    loud = native.library(native.CONNECTS, place / "libloud.so")
    unused = native.library(native.CONNECTS, place / "libunused.so")
    (place / "job.py").write_text(JOB)
    manifest = world.tmp / "bottles/audited.yml"
    manifest.write_text(f"guard: strict\nallow: {json.dumps([f'tcp://{ADDRESS}'])}\n")
    assert audited(world, place) == {"libloud.so": "not seen", "libunused.so": "not seen"}

    options = ("--name", "audited", "--policy", str(manifest), "--ro", str(ROOT), "--ro", str(place))
    job = world.run(*options, "--env", f"PYTHONPATH={ROOT}", "--", "/usr/bin/python3", str(place / "job.py"), str(loud))
    assert json.loads(job.line(30)) == {"name": "audited", "vouching": "active"}
    assert job.line(30) == "-1"
    event = until(lambda: world.events("audited", kind="bypass"))[0]
    assert event["library"] == str(loud)
    job.say("")
    assert job.end()[0] == 0

    assert audited(world, place) == {"libloud.so": "seen", "libunused.so": "not seen"}
    out = world.agentmon("audit-native", str(place)).stdout
    (row,) = (line.split() for line in out.splitlines() if loud.name in line)
    assert row[1:4] == ["libloud.so", "connect", "seen"] and unused.name in out
    world.stop_daemon()  # what it stored is read without it
    assert audited(world, place)["libloud.so"] == "seen"


def audited(world: World, place: Path) -> dict[str, str]:
    data = json.loads(world.agentmon("audit-native", str(place), "--json").stdout)
    assert data["layer3"]["known"], data["layer3"]
    return {Path(f["path"]).name: f["layer3"] for f in data["findings"]}
