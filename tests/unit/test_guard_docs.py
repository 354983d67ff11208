"""docs/guard.md against the code: its example runs, its table has every call, its numbers are the code's."""

from __future__ import annotations

import re

from agentmon.guard import EgressGuard, EgressViolation, names, vouching
from tests.support import guarded

DOC = (guarded.ROOT / "docs/guard.md").read_text()


def test_every_public_call_is_in_the_table():
    calls = [name for name in vars(EgressGuard) if not name.startswith("_")]
    assert len(calls) == 8
    assert [name for name in calls if f"`{name}(" not in DOC and f"{name}(" not in DOC] == []


def test_the_fields_of_a_violation_are_named():
    violation = EgressViolation("h.test", 443)
    for field in ("host", "port", "address", "rule", "layer", "rules", "reason", "hint"):
        assert hasattr(violation, field) and f"`{field}`" in DOC


def test_the_example_does_what_it_says():
    code = re.search(r"(    from agentmon\.guard.*?)\n\n    urllib", DOC, re.DOTALL)
    assert code is not None
    install = "\n".join(line[4:] for line in code[1].splitlines())
    body = f"{install}\nimport urllib.request\nprint(json.dumps(attempt(urllib.request.urlopen, 'https://evil.test/')))"
    found = guarded.answer(body)
    assert found["refused"] == "default"
    for sentence in re.findall(r"#\s+(.*)", DOC.split("urllib.request.urlopen")[1].split("\n\n")[0]):
        said = sentence.removeprefix("agentmon.guard.EgressViolation: ").removesuffix(" api.anthropic.com:443, …")
        assert said in found["text"]


def test_its_numbers_are_the_codes():
    assert names.FRESH_NS == 60 * 10**9 and "once a minute" in DOC
    assert names.CHASED == 4 and "the last four names" in DOC
    assert vouching.MAX_DESTINATIONS == 4 and "the socket's last four vouches" in DOC
