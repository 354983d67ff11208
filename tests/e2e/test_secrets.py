"""Secrets that a job holds do not get out of its bottle, in whatever form, and stand nowhere that people look."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Iterator

import pytest

from tests.support.live import World, until

pytestmark = pytest.mark.e2e

BLOCKS, SCRUBS = "www.allowed.example", "other.allowed.example"
ENV, HOUSE = f"planted-{secrets.token_hex(12)}", f"house-{secrets.token_hex(12)}"
TOKEN = f"ghp_{secrets.token_hex(18)}"
MANIFEST = f"""
allow: ["{BLOCKS}:443", "{SCRUBS}:443"]
routes:
  - {{host: {BLOCKS}, outbound: block}}
  - {{host: {SCRUBS}, outbound: redact}}
"""
# Sends each line's form of each value to each host; prints status and what the server had got.
JOB = """
import base64, json, os, sys, urllib.error, urllib.request
VALUES = {"env": os.environ["HOUSE_TOKEN"], "house": sys.argv[1][::-1], "rule": sys.argv[2][::-1]}
FORMS = {
    "plain": lambda v: json.dumps({"text": f"a line\\n{v}\\n"}).encode(),
    "base64": lambda v: base64.b64encode(b"some text before " + v.encode()),
    "hex": lambda v: v.encode().hex().encode(),
    "twice": lambda v: base64.b64encode(base64.b64encode(b"more " + v.encode())),
}
for line in sys.stdin:
    host, value, form = line.split()
    asked = urllib.request.Request(f"https://{host}/echo", FORMS[form](VALUES[value]))
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            print(answer.status, json.dumps(answer.read().decode()), flush=True)
    except urllib.error.HTTPError as e:
        print(e.code, json.dumps(e.read().decode()), flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("secrets")
    (tmp / "bottles").mkdir()
    (tmp / "bottles/held.yml").write_text(MANIFEST)
    with World(tmp, f"log: full\nbottles_dir: {tmp}/bottles\n") as made:
        directory = made.root / "etc/agentmon/credentials"
        directory.mkdir(mode=0o700, parents=True)
        (directory / "house").write_text(HOUSE + "\n")
        (directory / "house").chmod(0o600)
        made.start_daemon()
        yield made


def test_values_stay_in_the_bottle_and_out_of_sight(world: World) -> None:
    job = world.run(
        "--name", "held", "--policy", str(world.tmp / "bottles/held.yml"), "--env", f"HOUSE_TOKEN={ENV}", "--",
        "python3", "-c", JOB, HOUSE[::-1], TOKEN[::-1],
    )  # fmt: skip

    def ask(host: str, value: str, form: str) -> tuple[int, str]:
        job.say(f"{host} {value} {form}")
        status, _, body = job.line().partition(" ")
        return int(status), json.loads(body)

    detectors = {"env": "exact:env HOUSE_TOKEN", "house": "exact:credential house", "rule": "github-pat"}
    for value, detector in detectors.items():
        for form in ("plain", "base64", "hex", "twice"):
            status, body = ask(BLOCKS, value, form)
            assert status == 403, (value, form, body)
            error = json.loads(body)["error"]
            assert (error["detector"], error["where"], error["decision"]) == (detector, "body", "block")
            status, body = ask(SCRUBS, value, form)
            assert status == 200 and "REDACTED-BY-AGENTMON" in body, (value, form, body)
            if form == "plain":
                assert json.loads(body) == {"text": "a line\nREDACTED-BY-AGENTMON\n"}
    told = until(lambda: len(found := world.events("held", kind="secret")) >= 6 and found, 15, "not all were told")
    assert {(e["verdict"], e["detail"]["detector"]) for e in told} == {
        (verdict, detector) for verdict in ("refused", "allowed") for detector in detectors.values()
    }
    nowhere(world)
    shown = world.agentmon("events", "--bottle", "held").stdout
    assert "github-pat" in shown and not any(v in shown for v in (ENV, HOUSE, TOKEN))
    _, out, err = job.end()
    assert not any(v in out + err for v in (ENV, HOUSE, TOKEN))


def test_other_rules_by_settings_and_a_bad_file(world: World) -> None:
    file = world.tmp / "own.toml"
    good = "[[rules]]\nid = 'own'\nregex = '''\\b(OWN-[a-z]{10})\\b'''\n"
    file.write_text(good)
    world.settings.write_text(world.settings.read_text() + f"dlp: {{rules: {file}}}\n")
    assert world.daemon is not None
    job = world.run(
        "--name", "ruled", "--policy", str(world.tmp / "bottles/held.yml"), "--env", f"HOUSE_TOKEN={ENV}", "--",
        "python3", "-c", JOB, "", "OWN-abcdefghij"[::-1],
    )  # fmt: skip

    def status() -> int:
        job.say(f"{BLOCKS} rule plain")
        return int(job.line().partition(" ")[0])

    world.daemon.send_signal(signal.SIGHUP)
    until(lambda: status() == 403, 15, "the operator's rules are not in force")
    file.write_text(good + "\n[[rules]]\nid = 'bad'\nregex = '('\n")
    world.daemon.send_signal(signal.SIGHUP)

    def bad() -> list[dict[str, object]]:
        return [e for e in world.rows("events", "--kind", "policy") if "own.toml:7: regex" in str(e.get("reason"))]

    until(bad, 15, "a bad rule file is not told")
    assert status() == 403
    assert job.end()[0] == 0


def nowhere(world: World) -> None:
    """Events, ledger, logs, state of services: no file of the installation has a value, but the credential's own and
    the daemon's state of the running bottle (root, 0600)."""
    own = {world.root / "etc/agentmon/credentials/house"}
    files = [f for top in (world.root, world.net) for f in top.rglob("*") if f.is_file() and f not in own]
    assert any(f.name == "events.db" for f in files) and any(f.name == "ledger.db" for f in files)
    for file in (*files, world.tmp / "daemon.log"):
        data = file.read_bytes()
        state = file.parent.name == "state" and file.stat().st_mode & 0o077 == 0
        for value in (ENV, HOUSE, TOKEN):
            assert value.encode() not in data or (value == ENV and state), file
