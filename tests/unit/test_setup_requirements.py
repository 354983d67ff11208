"""The locked requirements: pinned, hashed, for every supported Python, with no word about where they come from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
LOCKED = ("run.txt", "dev.txt")


def entries(file: str) -> dict[str, str]:
    """`name==version ; marker` → the text of its hashes."""
    text = re.sub(r"^\s*#.*\n", "", (REQUIREMENTS / file).read_text(), flags=re.MULTILINE)
    return dict(re.findall(r"^([a-z0-9].*?) \\\n((?:    --hash=.*\n)+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("file", LOCKED)
def test_everything_is_pinned_and_hashed(file: str) -> None:
    found = entries(file)
    assert len(found) > 30
    assert len(found) == len(re.findall(r"^[a-z0-9]", (REQUIREMENTS / file).read_text(), flags=re.MULTILINE))
    for requirement, hashes in found.items():
        assert re.match(r"[a-z0-9-]+==[\w.+!]+( ; .+)?$", requirement), requirement
        assert "--hash=sha256:" in hashes, requirement


@pytest.mark.parametrize("file", [*LOCKED, "run.in", "dev.in"])
def test_no_registry_is_named(file: str) -> None:
    text = (REQUIREMENTS / file).read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)


def test_each_python_gets_the_mitmproxy_made_for_it() -> None:
    found = {r for r in entries("run.txt") if r.startswith("mitmproxy==")}
    assert "mitmproxy==11.0.2 ; python_full_version < '3.12'" in found
    (newer,) = (r for r in found if ">= '3.12'" in r)
    assert int(newer.split("==")[1].split(".")[0]) >= 12


def test_running_and_testing_use_the_same_versions() -> None:
    running, testing = ({pin.partition(" ")[0] for pin in entries(file)} for file in LOCKED)
    assert running <= testing


def test_the_package_and_run_in_name_the_same_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (line.partition("#")[0].strip() for line in (REQUIREMENTS / "run.in").read_text().splitlines())
    assert {name(line) for line in lines if line} == {name(entry) for entry in project["dependencies"]}


def name(requirement: str) -> str:
    return re.split(r"[=<>;\s]", requirement)[0].lower()
