"""docs/policy.md and docs/recipes.md are true: rules in their tables, manifests in them and those under examples/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentmon.cli.main import main
from agentmon.errors import BadInput
from agentmon.policy import manifest
from agentmon.policy.explain import warnings
from agentmon.policy.merge import Options, effective
from agentmon.policy.rules import RuleError, parse_rule
from agentmon.policy.rules.ports import ALL, text_of
from agentmon.policy.settings import Settings
from agentmon.providers.registry import load

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/policy.md").read_text()
RECIPES = (ROOT / "docs/recipes.md").read_text()
EXAMPLES = ROOT / "examples/manifests"
PROVIDERS = load()
HOSTS_ONLY = {"aider.yml", "postgres-socket.yml"}  # what they grant only root may
DEPTHS = {"direct": "direct", "name": "by name", "inspected": "inspected"}
BLOCK = re.compile(r"^```yaml(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.M | re.S)


def table(heading):
    """Rows of the table whose head is `heading`, without backquotes."""
    lines = GUIDE[GUIDE.index(heading) :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")))
    return rows


def grouped(rows):
    out: dict[str, list[tuple[str, ...]]] = {}
    rule = ""
    for first, *rest in rows:
        rule = first or rule
        out.setdefault(rule, []).append(tuple(rest))
    return list(out.items())


def what(proto, ports):
    return f"{proto.upper()} {'all' if ports == ALL else text_of(ports)}"


@pytest.mark.parametrize(("text", "rows"), grouped(table("| rule | opens | checked |")))
def test_what_a_rule_opens(text, rows):
    rule = parse_rule(text)
    assert [(what(proto, ports), DEPTHS[depth.name.lower()]) for proto, ports, depth in rule.parts] == rows


@pytest.mark.parametrize(("text", "rows"), grouped(table("| rule | denies |")))
def test_what_a_rule_denies(text, rows):
    assert [(what(proto, ports),) for proto, ports, _ in parse_rule(text).parts] == rows


@pytest.mark.parametrize(("text", "instead"), table("| written | instead |"))
def test_what_to_write_instead(text, instead):
    with pytest.raises(RuleError) as caught:
        parse_rule(text)
    assert caught.value.hint == instead


@pytest.mark.parametrize(
    "block",
    [*BLOCK.finditer(GUIDE), *BLOCK.finditer(RECIPES)],
    ids=lambda b: f"line-{b.string.count(chr(10), 0, b.start()) + 1}",
)
def test_manifests_in_the_guide(block):
    info, body = block["info"], block["body"]
    if name := re.search(r"file=(\S+)", info):
        assert (EXAMPLES / name[1]).read_text() == body
        return
    expected = re.search(r'error="([^"]*)"', info)
    trusted = "from=elsewhere" not in info

    def use():
        chain = (manifest.parse(body, "guide.yml", trusted=trusted),)
        return effective(Settings(), chain, Options(), providers=PROVIDERS)

    if expected:
        with pytest.raises(BadInput) as caught:
            use()
        assert expected[1] in caught.value.message
    else:
        assert warnings(use()) == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yml")), ids=lambda p: p.name)
def test_examples_are_usable_and_without_idle_rules(path, tmp_path, monkeypatch, capsys):
    """By the command, as the host's manifest; and as a repository's, where it grants nothing."""
    settings = tmp_path / "settings.yml"
    settings.write_text(f"bottles_dir: {EXAMPLES}\n")
    monkeypatch.setenv("AGENTMON_SETTINGS", str(settings))
    assert main(["policy", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"{path}: ok, " in said and "warning" not in said
    if "extends:" in path.read_text():
        return
    nowhere = ROOT / "nowhere"
    chain = manifest.load_chain(path, nowhere)

    def elsewhere():
        return effective(Settings(bottles_dir=nowhere), chain, Options(), providers=PROVIDERS)

    if path.name in HOSTS_ONLY:
        with pytest.raises(BadInput, match=r"gives the job|credential"):
            elsewhere()
    else:
        assert warnings(elsewhere()) == []


def test_every_manifest_key_is_in_the_guide():
    for key in manifest._READERS:
        assert re.search(rf"\b{key}\b", GUIDE), key
