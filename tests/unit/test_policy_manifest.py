"""Manifests: every key, the chain that `extends` makes, and what a file from elsewhere may not say."""

from __future__ import annotations

import pytest

from agentmon import wire
from agentmon.errors import BadInput
from agentmon.policy import manifest, settings
from agentmon.policy.settings import Settings

FULL = """\
extends: base
provider: claude
agents: {reviewer: {budget: 50000}, writer: {budget: {codex: 7, claude: {tokens: 9, per: day}}}, idle: {}}
allow: [api.anthropic.com, "https://index.example.org", "10.1.0.0/16:5432", "!*.evil.example"]
routes:
  - host: api.anthropic.com
    auth: {header: X-Api-Key, credential: anthropic}
    methods: [POST]
    paths: ["/v1/*"]
    outbound: redact
    inbound: off
    scan_headers: {except: [Cookie]}
    git_fetch: false
  - {host: "*.example.org", auth: none, scan_headers: all}
budget: {claude: 200000}
shutdown: freeze
guard: off
home: host
ro: [/srv/data, ~/.gitconfig]
rw: [/srv/cache]
unix: [/run/postgresql/.s.PGSQL.5432, /run/nscd/]
listen: [8080, 9000-9100, 9050-9200, udp:5353, "tcp:80"]
io_uring: true
limits: {pids: 64}
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_key():
    m = manifest.parse(FULL, "/etc/agentmon/bottles/web.yml", trusted=True)
    assert (m.extends, m.provider, m.shutdown, m.guard, m.home, m.io_uring) == (
        "base", "claude", "freeze", "off", "host", True,
    )  # fmt: skip
    assert [(b.provider, b.tokens, b.per) for b in m.agents["reviewer"]] == [("", 50000, None)]
    assert [(b.provider, b.tokens, b.per) for b in m.agents["writer"]] == [("codex", 7, None), ("claude", 9, "day")]
    assert m.agents["idle"] == ()
    assert [(p.rule.text, p.origin) for p in m.allow][-1] == ("!*.evil.example", "/etc/agentmon/bottles/web.yml:4")
    assert [r.route for r in m.routes] == [
        wire.Route(
            host="api.anthropic.com", auth_header="x-api-key", auth_credential="anthropic", methods=("POST",),
            paths=("/v1/*",), outbound="redact", inbound="off", scan_headers_except=("cookie",),
        ),
        wire.Route(host="*.example.org", auth_none=True),
    ]  # fmt: skip
    assert (m.ro, m.rw, m.unix) == (
        ("/srv/data", "~/.gitconfig"), ("/srv/cache",), ("/run/postgresql/.s.PGSQL.5432", "/run/nscd/"),
    )  # fmt: skip
    assert m.listen == ("tcp:80", "tcp:8080", "tcp:9000-9200", "udp:5353")
    assert manifest.parse("listen: []", "f.yml", trusted=True).listen == ()
    assert manifest.parse("", "f.yml", trusted=True).listen is None
    assert m.limits == {"pids": 64}
    assert m.scope == m.bottle_name == "web"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deny: []", "f.yml:1: unknown key 'deny'"),
        ("allow:\n- ok.example\n- 10.*", "f.yml:3: allow[1]: '10.*' looks like a pattern of addresses"),
        ("allow: [{a: b}]", "a mapping; expected a rule"),
        ("agents: {Rev iewer: {}}", "agents.Rev iewer: agent 'Rev iewer' is not a usable name"),
        ("agents: {a: {tokens: 5}}", "unknown key 'tokens'"),
        ("guard: maybe", "expected off | observe | strict"),
        ("home: shared", "expected private | host"),
        ("io_uring: 1", "expected true or false"),
        ("limits: {pids: 0}", "limits.pids: '0'; expected a number, 1 to"),
        ("limits: {files: 5}", "unknown key 'files'"),
        ("ro: [data]", "'data'; expected an absolute path"),
        ("rw: [/srv/../etc]", "has '..' in it"),
        ("unix: [run/x]", "expected an absolute path"),
        ("unix: [/run//x]", "expected an absolute path without //"),
        ("unix: [/run/../x]", "expected an absolute path without //"),
        ("unix: [/srv/./x]", "expected an absolute path without //"),
        ("unix: [/run/]", "the bottle's own"),
        ("unix: [/tmp]", "the bottle's own"),
        ("unix: [/run/agentmon/control.sock]", "cannot be given"),
        (f"unix: [/srv/{'x' * 103}]", "can be no socket's path"),
        ("listen: 8080", "a list of ports"),
        ("listen: [0]", "'0'; expected a port"),
        ("listen: [90-80]", "'90-80'; expected a port"),
        ("listen: [65536]", "expected a port"),
        ("listen: ['sctp:80']", "expected a port"),
        ("listen: [1, 3, 5, 7, 9, 11, 13, 15, 17]", "more than 8 port ranges of TCP"),
        ("routes: [{paths: []}]", "host: is missing"),
        ("routes: [{host: 'https://x.example'}]", "host 'https://x.example' has ':' in it"),
        ("routes: [{host: x.example, method: GET}]", "unknown key 'method'"),
        ("routes: [{host: x.example, methods: [get]}]", "expected a method in capitals"),
        ("routes: [{host: x.example, paths: [v1]}]", "expected a path such as"),
        ("routes: [{host: x.example, outbound: warn}]", "expected block | redact | supervise"),
        ("routes: [{host: x.example, auth: some}]", "expected none"),
        ("routes: [{host: x.example, auth: {header: x}}]", "credential: is missing"),
        ("routes: [{host: x.example, auth: {header: 'x y', credential: a}}]", "expected a header name"),
        ("routes: [{host: x.example, auth: {header: x, credential: 'sk-ANT secret'}}]", "not the name of a credential"),
        ("routes: [{host: x.example, scan_headers: some}]", "expected all"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(BadInput) as caught:
        manifest.parse(text, "f.yml", trusted=True)
    assert message in caught.value.message
    assert "sk-ANT" not in caught.value.message + caught.value.hint


def test_chain_by_name_and_by_path(tmp_path):
    bottles = tmp_path / "bottles"
    write(bottles / "base.yml", "shutdown: kill\n")
    write(bottles / "web.yml", "extends: base\n")
    own = write(tmp_path / "repo/agentmon.yml", "extends: more/extra.yml\n")
    write(tmp_path / "repo/more/extra.yml", "extends: web\n")
    chain = manifest.load_chain(own, bottles)
    assert [m.trusted for m in chain] == [False, False, True, True]
    assert [m.scope for m in chain][2:] == ["web", "base"]
    assert chain[0].scope == str(own)  # a path: it cannot pass for the host's manifest of that name
    assert manifest.find("web", bottles) == bottles / "web.yml"
    assert str(manifest.find("./web.yml", bottles)) == "web.yml"


def test_chain_errors(tmp_path):
    bottles = tmp_path / "bottles"
    write(bottles / "a.yml", "\nextends: b\n")
    write(bottles / "b.yml", "extends: a\n")
    with pytest.raises(BadInput, match=r"b.yml:1: extends: 'a' makes a circle: a.yml → b.yml → a.yml"):
        manifest.load_chain(bottles / "a.yml", bottles)
    write(bottles / "c.yml", "extends: bb\n")
    with pytest.raises(BadInput, match=r"c.yml:1: extends: parent 'bb': .*no such file") as caught:
        manifest.load_chain(bottles / "c.yml", bottles)
    assert caught.value.hint == "did you mean 'b'?"
    for number in range(12):
        write(bottles / f"d{number}.yml", f"extends: d{number + 1}\n")
    with pytest.raises(BadInput, match="more than 8 manifests"):
        manifest.load_chain(bottles / "d0.yml", bottles)
    write(bottles / "e.yml", "extends: f\n")
    write(bottles / "f.yml", "shutdown: x\n")
    with pytest.raises(BadInput, match=r"f.yml:1: shutdown: 'x'"):
        manifest.load_chain(bottles / "e.yml", bottles)
    lonely = write(tmp_path / "empty/g.yml", "extends: none\n")
    with pytest.raises(BadInput) as caught:
        manifest.load_chain(lonely, tmp_path / "empty-bottles")
    assert "stand in" in caught.value.hint
    write(tmp_path / "empty/none.yml", "")
    with pytest.raises(BadInput) as caught:
        manifest.load_chain(lonely, tmp_path / "empty-bottles")
    assert "write none.yml" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("home: host", "home: gives the job your home directory"),
        ("io_uring: true", "io_uring: gives the job io_uring"),
        ("unix: [/run/docker.sock]", "unix: gives the job host sockets"),
        ("guard: off", "guard: turns the guard off"),
        ("shutdown: cutoff", "'cutoff' is milder than the host's 'freeze'"),
        ("limits: {pids: 513}", "pids: 513 is more than the host gives (512)"),
        ("routes: [{host: x.example, auth: {header: a, credential: anthropic}}]", "asks for the host's credential"),
        ("budget: {claude: 101}", "budget.claude: 101 tokens are more than the host gives (100 per month)"),
        ("budget: {codex: 51}", "51 tokens are more than the host gives (50 per day)"),
        ("budget: {claude: {tokens: 5, shadow: true}}", "would record instead of cutting"),
        ("agents: {a: {budget: {claude: 101}}}", "101 tokens are more than the host gives"),
    ],
)
def test_a_manifest_from_elsewhere_may_only_lower(text, message):
    host = settings.parse('budget: {claude: 100, "*": {tokens: 50, per: day}}\nshutdown: freeze\n', "s.yml")
    with pytest.raises(BadInput) as caught:
        _asked(text, host, trusted=False)
    assert caught.value.message.startswith("f.yml:1: ")
    assert message in caught.value.message
    assert "/etc/agentmon/bottles" in caught.value.hint
    if "credential" not in text:
        _asked(text, host, trusted=True)


def test_what_a_manifest_from_elsewhere_may_say():
    host = settings.parse("budget: {claude: 100}\n", "s.yml")
    text = (
        "budget: {claude: 100, codex: 9}\nshutdown: kill\nio_uring: false\nguard: strict\nlimits: {pids: 5}\nlisten: []"
    )
    _asked(text, host, trusted=False)


def _asked(text, host, *, trusted):
    """What is asked of a manifest before a bottle is started."""
    made = manifest.parse(text, "f.yml", trusted=trusted)
    manifest.untrusted(made, host)
    manifest.only_lowers(made, host)


def test_paths_of_a_manifest_from_elsewhere(tmp_path):
    own = write(tmp_path / "repo/m.yml", "rw: [cache, ./build/]\n")
    assert manifest.load(own, tmp_path / "b").rw == (f"{tmp_path}/repo/cache", f"{tmp_path}/repo/build")
    for path in ("/etc", "~/.ssh"):
        with pytest.raises(BadInput, match="is outside this manifest's directory"):
            manifest.load(write(own, f"ro: [{path}]\n"), tmp_path / "b")
    (tmp_path / "repo/link").symlink_to("/etc")
    with pytest.raises(BadInput, match="leads outside"):
        manifest.load(write(own, "ro: [link]\n"), tmp_path / "b")


def test_a_link_into_bottles_dir_is_judged_by_where_it_leads(tmp_path):
    outside = write(tmp_path / "repo/m.yml", "home: host\n")
    (tmp_path / "bottles").mkdir()
    (tmp_path / "bottles/m.yml").symlink_to(outside)
    assert not manifest.load(tmp_path / "bottles/m.yml", tmp_path / "bottles").trusted


def test_the_daemon_reads_no_file_for_others(tmp_path):
    bottles = tmp_path / "bottles"
    write(bottles / "base.yml", "shutdown: kill\n")
    own = write(tmp_path / "repo/m.yml", "extends: base\n")
    texts = manifest.gather(own, bottles)
    assert texts == {str(own): "extends: base\n"}
    chain = manifest.load_chain(own, bottles, manifest.reader(texts, bottles))
    assert [m.scope for m in chain] == [str(own), "base"]
    with pytest.raises(BadInput, match="did not come with the request"):
        manifest.load_chain(own, bottles, manifest.reader({}, bottles))


def test_bottle_names_are_made_of_file_names():
    assert manifest.Manifest("/x/My Repo!.yml", trusted=False).bottle_name == "my-repo"
    assert Settings().bottles_dir.name == "bottles"
