"""docs/testing.md's table of METERING's torture cases is true: every case has tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs/testing.md").read_text().partition("## The torture cases of metering")[2].partition("\n## ")[0]
ROWS = {int(number): tests for number, tests in re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", SECTION, re.M)}


def test_every_case_has_a_row() -> None:
    assert list(ROWS) == list(range(1, 27))


@pytest.mark.parametrize("number", ROWS)
def test_what_is_named_is_there_and_one_goes_over_real_sockets(number: int) -> None:
    named = re.findall(r"`([^`]+)::(\w+)`", ROWS[number])
    assert len(named) == ROWS[number].count("`") // 2
    for file, test in named:
        parsed = ast.parse((ROOT / "tests" / file).read_text())
        functions = {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}
        assert test in functions, f"{file} has no {test}"
    assert any(file.startswith(("root/test_proxy_", "root/test_metering_", "e2e/")) for file, _ in named)
