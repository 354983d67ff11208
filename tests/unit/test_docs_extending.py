"""docs/extending.md is true: its rule type, put into a copy of the parser, works; its provider meters its case."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentmon.providers import lint, match, registry
from agentmon.providers.declaration import Provider
from agentmon.proxy.tap import Answer, Tap
from tests.support import provider_cases

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/extending.md").read_text()
DIFF = re.compile(r"^```diff file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAD = "from agentmon.policy.rules import RuleError, parse_rule\n"


def block(info: str) -> str:
    (found,) = re.findall(rf"^```python {info}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return str(found)


def changed(text: str, diff: str) -> str:
    """`text` after a diff without line numbers, whose old lines stand in it once."""
    before = "".join(line[1:] + "\n" for line in diff.splitlines() if line[0] in " -")
    after = "".join(line[1:] + "\n" for line in diff.splitlines() if line[0] in " +")
    assert text.count(before) == 1, f"docs/extending.md changes what is not there:\n{before}"
    return text.replace(before, after)


def says(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD + block("tests=grammar")], cwd=place, env={"PYTHONPATH": str(place)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_new_rule_type_works_in_a_copy_and_not_without_its_diff(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "agentmon/policy", tmp_path / "agentmon/policy", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "agentmon/__init__.py").touch()
    assert "is not a scheme of rules" in says(tmp_path).stderr
    diffs = DIFF.findall(GUIDE)
    assert len(diffs) == 2
    for file, diff in diffs:
        path = tmp_path / file
        path.write_text(changed(path.read_text(), diff))
    done = says(tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_new_provider_is_in_order_and_meters_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    module: dict[str, Any] = {}
    exec(compile(block("provider"), "example.py", "exec"), module)  # noqa: S102 - our own text
    provider = module["PROVIDER"]
    assert isinstance(provider, Provider) and lint.endpoints(provider.endpoints) == ""
    monkeypatch.setattr(registry, "BUILT_IN", (*registry.BUILT_IN, provider))
    assert registry.load()["example"] is provider

    case = eval(block("case"), vars(provider_cases))
    endpoint = match.endpoint(provider, case.method, case.path)
    assert endpoint is not None and endpoint.parser is not None
    tap = Tap(endpoint.parser(case.headers), Answer("", case.sse), None, lambda _: None)
    tap(case.body)
    tap.ended()
    usage = tap.close()
    assert usage is not None and usage.complete and (usage.model, usage.request_id) == (case.model, case.id)
    written = usage.cache_write_5m, usage.cache_write_1h
    assert (usage.input, usage.cache_read, *written, usage.output, usage.reasoning) == case.row


def test_the_files_of_the_order_are_there() -> None:
    named = re.findall(r"`((?:agentmon|tests|netfilter|ebpf)/[\w/.]+)`", GUIDE)
    assert len(named) > 12
    assert [path for path in named if not (ROOT / path).exists()] == []
