"""Rule files: gitleaks' own is taken whole, a newer one too, a bad one is refused with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmon.dlp import engine, rules, scanner
from agentmon.errors import BadInput

ONE = "[[rules]]\nid = \"house\"\nregex = '''\\b(HS-[A-Z0-9]{12})\\b'''\nkeywords = [\"hs-\"]\n"


def test_the_shipped_file_is_gitleaks_own() -> None:
    shipped = rules.load()
    assert len(shipped.rules) > 200
    assert set(shipped.left_out) >= {"pkcs12-file"} and len(shipped.left_out) < 10
    assert (rules.SHIPPED.parent / "LICENSE.gitleaks").read_text().startswith("MIT License")


def test_an_operators_file(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(ONE + 'entropy = 2\n[[rules.allowlists]]\nstopwords = ["EXAMPLE"]\n')
    found = scanner.Scanner(scanner.detector(file), {}, b"k").scan(
        b"HS-A1B2C3D4E5F6 HS-EXAMPLE12345 HS-AAAAAAAAAAAA", "body"
    )
    assert [(f.detector, f.start, f.end) for f in found] == [("house", 0, 15)]


def test_allowlists_by_target_and_condition() -> None:
    def of(extra: str) -> rules.Rule:
        return rules.parse((ONE + extra).encode(), "x.toml").rules[0]

    either = of("[[rules.allowlists]]\nregexes = ['ABC']\nstopwords = ['zz']\n")
    assert not either.is_secret(b"HS-ABC", b"", b"") and not either.is_secret(b"HS-ZZ", b"", b"")
    both = of("[[rules.allowlists]]\ncondition = 'AND'\nregexes = ['ABC']\nstopwords = ['zz']\n")
    assert both.is_secret(b"HS-ABC", b"", b"") and not both.is_secret(b"HS-ABCzz", b"", b"")
    line = of("[[rules.allowlists]]\nregexTarget = 'line'\nregexes = ['^# ']\n")
    assert not line.is_secret(b"HS-1", b"", b"# HS-1") and line.is_secret(b"HS-1", b"", b"HS-1")
    files = of("[[rules.allowlists]]\ncondition = 'AND'\nregexes = ['HS']\npaths = ['x']\n")
    assert files.is_secret(b"HS-1", b"", b""), "what also needs a path allows nothing here"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rules]\n", "x.toml:1: "),
        ("", "x.toml:1: rules: is missing"),
        ("[[rules]]\nregex = 'a'\n", "x.toml:1: id: is missing"),
        (ONE + "\n" + ONE, "x.toml:7: id: 'house' is there twice"),
        (ONE + "\n[[rules]]\nid = 'b'\nregex = '(?=a)'\n", "x.toml:8: regex: '(?=a)': "),
        ("[[rules]]\nid = 'b'\nregex = 7\n", "x.toml:3: regex: 7; expected text"),
        (ONE + "secretGroup = 2\n", "x.toml:5: secretGroup: 2; the regex has 1 groups"),
        (ONE + "entropy = 'high'\n", "x.toml:5: entropy: 'high'; expected bits"),
        (ONE + "[[rules.allowlists]]\nregexTarget = 'file'\n", "x.toml:6: allowlists.regexTarget: 'file'; expected"),
        (ONE + "[[rules.allowlists]]\ncondition = 'XOR'\n", "x.toml:6: allowlists.condition: 'XOR'"),
        (ONE + "[[rules.allowlists]]\nstopwords = 'a'\n", "x.toml:6: stopwords: expected a list"),
        (ONE + "allowlist = 3\n", "x.toml:5: allowlist: expected a table"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(BadInput) as told:
        rules.parse(text.encode(), "x.toml")
    assert said in told.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        rules.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(BadInput, match="not UTF-8 at byte 5"):
        rules.load(tmp_path / "latin.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (rules.MAX_BYTES + 1))
    with pytest.raises(BadInput, match="more than"):
        rules.load(tmp_path / "big.toml")


def test_what_the_engine_does_not_take_is_named() -> None:
    parsed = rules.parse((ONE + "\n[[rules]]\nid = 'deep'\nregex = '" + "(?U)a+" + "'\n").encode(), "x.toml")
    with pytest.raises(BadInput, match="rule 'deep': regex"):
        engine.of_rules(parsed)


def test_compiled_rules_are_kept_and_a_damaged_copy_is_made_anew(tmp_path: Path) -> None:
    parsed = rules.parse(ONE.encode(), "x.toml")
    engine.of_rules(parsed, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    good = kept.read_bytes()
    for bad in (b"", good[:-9], b"x" * len(good)):
        kept.write_bytes(bad)
        assert engine.of_rules(parsed, tmp_path / "kept").scan(b" HS-A1B2C3D4E5F6 ")
        assert kept.read_bytes() == good
