"""Changes and the nftables commands that carry them out, as text and as JSON: NAME.nft, NAME.json.

`UPDATE_GOLDEN=1 pytest tests/golden` writes the files anew; read the difference before committing it.
That both languages say the same to the kernel is tested in tests/root/test_nf_languages.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from netfilter import language
from tests.support.nf_cases import CASES

DIRECTORY = Path(__file__).parent / "netfilter"


def as_text(name: str) -> str:
    return language.text(CASES[name][1]) + "\n"


def as_json(name: str) -> str:
    rows = language.json(CASES[name][1])["nftables"]
    return "".join(json.dumps(row, separators=(", ", ": ")) + "\n" for row in rows)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("suffix", "shown"), [("nft", as_text), ("json", as_json)], ids=["text", "json"])
def test_the_commands_are_as_committed(name: str, suffix: str, shown: object) -> None:
    assert callable(shown)
    file = DIRECTORY / f"{name}.{suffix}"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(shown(name))
    assert shown(name) == file.read_text(), f"{file.name}: UPDATE_GOLDEN=1 pytest tests/golden writes it anew"


def test_no_file_is_left_of_a_case_that_has_gone() -> None:
    assert {f.stem for f in DIRECTORY.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", ["mode-enforce", "next-epoch"])
def test_the_same_specs_give_the_same_bytes(name: str) -> None:
    from tests.support.nf_cases import RULES, applied

    shuffled = type(RULES)(
        RULES.slot, RULES.epoch, RULES.mode, RULES.services[::-1], RULES.allow[::-1], RULES.deny[::-1]
    )  # fmt: skip
    assert language.text(applied(shuffled, None)) == language.text(applied(RULES, None))


def test_a_chain_has_the_same_length_for_one_rule_and_for_a_thousand() -> None:
    """What a packet costs does not grow with the policy."""
    from tests.support.nf_cases import RULES, applied
    from tests.support.nf_lab import direct

    def rules_in(allow: tuple[object, ...]) -> int:
        wanted = type(RULES)(16, 7, RULES.mode, RULES.services, allow)  # type: ignore[arg-type]
        return sum(language.written(c).text.startswith("add rule inet agentmon b16 ") for c in applied(wanted, None))

    many = tuple(direct(f"198.51.{a}.{b}/32", "tcp", 443) for a in range(4) for b in range(250))
    assert rules_in(many) == rules_in(many[:1]) == rules_in(()) <= 48
