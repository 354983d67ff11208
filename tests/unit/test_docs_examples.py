"""Every fenced block of the documentation is run, loaded or at least parsed, and what pages name is there.

    ```python    run, by the page's own test          ```yaml    loaded as a manifest, or as settings
    ```console   run in a fresh clone                 ```sql     asked of an empty ledger
    ```diff      put into a copy, which is run        ```sh      only parsed; docs/testing.md says so

OWN says which test has which blocks of which page; all others are loaded or parsed here.
"""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from agentmon.errors import BadInput
from agentmon.policy import manifest, settings
from scripts import check_docs, newcomer

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<info>[^\n]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
OWN = {  # page, kind of block → the test that has it
    ("docs/policy.md", "yaml"): "tests/unit/test_policy_docs.py",
    ("docs/recipes.md", "yaml"): "tests/unit/test_policy_docs.py",
    ("docs/providers.md", "yaml"): "tests/unit/test_provider_docs.py",
    ("docs/ledger.md", "sql"): "tests/unit/test_ledger_views.py",
    ("docs/contributing.md", "python"): "tests/adversarial/test_egress_guard.py",
    ("docs/netfilter-library.md", "python"): "tests/root/test_nf_library.py",
    ("docs/ebpf-library.md", "python"): "tests/root/test_bpf_library.py",
    ("docs/extending.md", "python"): "tests/unit/test_docs_extending.py",
    ("docs/extending.md", "diff"): "tests/unit/test_docs_extending.py",
    ("README.md", "console"): "tests/e2e/test_newcomer.py",
    ("docs/quickstart.md", "console"): "tests/e2e/test_newcomer.py",
}
PAGES = [page.relative_to(ROOT).as_posix() for page in check_docs.pages()]
BLOCKS = [(page, found) for page in PAGES for found in FENCE.finditer((ROOT / page).read_text())]


def kind(found: re.Match[str]) -> str:
    return found["info"].split()[0]


def of(wanted: str) -> list[tuple[str, str]]:
    """Pages and bodies of the blocks of one kind that no other test has."""
    return [(page, found["body"]) for page, found in BLOCKS if kind(found) == wanted and (page, wanted) not in OWN]


def test_every_block_is_of_a_kind_that_a_test_has() -> None:
    assert len(BLOCKS) > 40
    unknown = [
        f"{page}: ```{found['info']}"
        for page, found in BLOCKS
        if (page, kind(found)) not in OWN and kind(found) not in {"yaml", "sh"}
    ]
    assert unknown == []
    for (page, what), test in OWN.items():
        assert any(page == where and kind(found) == what for where, found in BLOCKS), (page, what)
        assert Path(page).name in (ROOT / test).read_text(), test


@pytest.mark.parametrize(("page", "body"), of("yaml"))
def test_yaml_is_a_manifest_or_settings(page: str, body: str, tmp_path: Path) -> None:
    """Paths that the settings name need not be on this host."""
    errors = []
    for load in (lambda: manifest.parse(body, "m.yml", trusted=True), lambda: settings.parse(body, "s.yml")):
        try:
            load()
        except BadInput as error:
            errors.append(error.message)
    assert len(errors) < 2, (page, errors)


@pytest.mark.parametrize(("page", "body"), of("sh"))
def test_shell_parses(page: str, body: str) -> None:
    assert subprocess.run(["sh", "-n"], input=body, text=True, check=False).returncode == 0, page


@pytest.mark.parametrize("page", [page for page, what in OWN if what == "console"])
def test_sessions_are_understood(page: str) -> None:
    found = list(newcomer.steps((ROOT / page).read_text()))
    assert found and all(step.command for step in found)


def test_what_a_session_prints_is_compared() -> None:
    """The comparison fails for a missing, a changed and a misplaced line, and for nothing else."""
    printed = "08:31:05 trial: curl (pid 22328) asked\n  other\nallow it: x\n"
    assert newcomer.lacking(["10:00:00 trial: curl (pid 1) asked", "    allow it: x"], printed) is None
    assert newcomer.lacking(["allow it: x", "other"], printed) == "other"
    assert newcomer.lacking(["allow it: y"], printed) == "allow it: y"
    with pytest.raises(ValueError, match="first line"):
        list(newcomer.steps("```console\nno command\n```\n"))


@cache
def functions_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    inner = {c.name: c.body for c in tree.body if isinstance(c, ast.ClassDef)}
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    return frozenset(names | {f"{c}::{n.name}" for c, b in inner.items() for n in b if isinstance(n, ast.FunctionDef)})


@pytest.mark.parametrize("page", ["docs/faults.md", "docs/security.md", "docs/testing.md"])
def test_tests_that_a_page_names_are_there(page: str) -> None:
    named = re.findall(r"`([a-z]+/test_\w+\.py)::([\w:]+)`", (ROOT / page).read_text())
    assert len(named) > 10
    assert [f"{file}::{name}" for file, name in named if name not in functions_in(file)] == []


@pytest.mark.parametrize("section", ["Processes", "The host's network", "Disk, database, files", "At the start"])
def test_every_fault_has_a_test_that_makes_it(section: str) -> None:
    text = (ROOT / "docs/faults.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows and [row for row in rows if ".py::test_" not in row.rsplit("|", 2)[1]] == []


@pytest.mark.parametrize("page", [p for p in PAGES if "adr" not in p and p != "CHANGELOG.md"])
def test_files_that_a_page_names_are_there(page: str) -> None:
    """Names with a directory, in backquotes, and in the design's pictures: from the root, or from inside a package."""
    around = r"(?<![\w/])({})(?![\w/])" if page == "docs/design/README.md" else "`({})`"
    path = r"[a-z]\w*(?:/[a-z][a-z_0-9-]*)+\.(?:py|h|c|yml|sh|toml|sql)"
    named = set(re.findall(around.format(path), (ROOT / page).read_text()))
    assert page != "docs/design/README.md" or len(named) > 40
    places = [ROOT, ROOT / "agentmon", ROOT / "ebpf", ROOT / "netfilter", ROOT / "tests"]
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def test_links_lead_somewhere_and_the_index_has_every_page() -> None:
    assert [line for page in check_docs.pages() for line in check_docs.broken(page)] == []
    index = (ROOT / "docs/README.md").read_text()
    missing = [p for p in PAGES if p.startswith("docs/") and "/adr/" not in p and p != "docs/README.md"]
    assert [p for p in missing if f"({p.removeprefix('docs/')}" not in index] == []
