"""The set-up's promises that can be read off its files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELL = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_scripts_parse_and_name_no_path_of_a_developer(path: Path) -> None:
    text = path.read_text()
    shell = "bash" if text.startswith("#!/usr/bin/env bash") else "sh"
    assert subprocess.run([shell, "-n", path], check=False).returncode == 0
    assert not re.search(r"/home/|/root/\.|/work/|[a-z]+\.org/simple", text)


def test_every_target_of_the_contract_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"setup", "demo", "test", "lint", "bench", "docs", "uninstall"} <= targets


def test_every_target_but_uninstall_sets_up_first() -> None:
    rules = dict(re.findall(r"^([a-z-]+):(.*)##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {target for target, needs in rules.items() if "setup" not in needs} == {
        "help",
        "setup",
        "uninstall",
    }


def test_ci_runs_setup_lint_and_tests_without_stdin() -> None:
    text = (ROOT / ".ci/run").read_text()
    assert re.findall(r"^make (\w+)$", text, flags=re.MULTILINE) == ["setup", "lint", "test"]
    assert "</dev/null" in text and "CI=true" in text
