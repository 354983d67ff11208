"""The YAML edge: places in errors, the subset of YAML, and readers that say what they expected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.errors import BadInput
from agentmon.policy import document, values


def parse(text):
    return document.parse(text, "f.yml")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a: 1\nb: &x 2\n", "f.yml:2: b: '&x' is an anchor", "write the value out"),
        ("a: 1\nb: *x\n", "f.yml:2: b: '*x' is an alias", "quotes"),
        ("a: 1\na: 2\n", "f.yml:2: 'a' stands twice (first in line 1)", "one key"),
        ("allow:\n  - !evil.example\n", "f.yml:2: allow[0]: '!evil.example' is a tag", "quotes"),
        ("a: !!python/name:os.system x\n", "f.yml:1: a: '!!python/name:os.system' is a tag", "take the tag out"),
        ("allow:\n  - *.example.com:443\n", "f.yml:2: ", "quotes"),
        ("a: 1\n---\nb: 2\n", "f.yml:2: a second document", "---"),
        ("- a\n- b\n", "f.yml:1: a list where keys", "key: value"),
        ("word\n", "f.yml:1: 'word' where keys", "key: value"),
        ("a:\n\t- b\n", "f.yml:2: not YAML", "spaces"),
        ("a: [b\n", "not YAML", "quotes"),
        ("a: 'b\n", "not YAML", "quotes"),
        ("a: \x07\n", "f.yml: not YAML", "control"),
        ("? [a, b]\n: c\n", "f.yml:1: a list as a key", ""),
        ("a: " + "[" * 20 + "]" * 20, "nested deeper than 12", ""),
    ],
)
def test_what_is_refused(text, message, hint):
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_long_value_is_not_shown_whole():
    with pytest.raises(BadInput) as caught:
        parse("word " * 100)
    assert len(caught.value.message) < 120


def test_words_stay_words():
    table = parse("log: off\nport: 22:30\nversion: 1.10\nquoted: 'null'\nnone:\ntilde: ~\n")
    assert document.choice(table.values["log"], ("off", "on")) == "off"
    assert document.text(table.values["port"]) == "22:30"
    assert document.text(table.values["version"]) == "1.10"
    assert document.text(table.values["quoted"]) == "null"
    assert values.optional(table, "none") is None
    assert values.optional(table, "tilde") is None
    assert values.optional(table, "absent") is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n"])
def test_nothing_is_an_empty_mapping(text):
    assert parse(text).values == {}


def test_a_value_is_placed_where_its_key_stands():
    table = parse("a: 1\n\nallow:\n\n  - x\n  - y\n")
    assert table.values["allow"].place.at() == "f.yml:3"
    assert [n.place.line for n in table.values["allow"].values] == [5, 6]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda n: document.integer(n, least=1, most=9, expected="a digit"), "'x'; expected a digit, 1 to 9"),
        (lambda n: document.boolean(n), "'x'; expected true or false"),
        (lambda n: document.choice(n, ("xx", "yy")), "'x'; expected xx | yy"),
        (lambda n: document.items(n, "a list of things"), "'x'; expected a list of things"),
        (lambda n: document.mapping(n, "a table"), "'x'; expected a table"),
        (lambda n: values.size(n), "'x'; expected a size such as 256M"),
        (lambda n: values.duration(n), "'x'; expected a duration such as 7d"),
    ],
)
def test_readers_say_what_they_expected(act, message):
    with pytest.raises(BadInput, match=r"f.yml:1: k: ") as caught:
        act(parse("k: x").values["k"])
    assert message in caught.value.message


@pytest.mark.parametrize("text", ["k: '5'", "k: 10", "k: -1", "k: 1.5", "k: 0x5", "k: ", "k: []", "k: ５"])
def test_not_an_integer(text):
    with pytest.raises(BadInput, match="expected a digit"):
        document.integer(parse(text).values["k"], least=1, most=9, expected="a digit")


def test_values():
    table = parse("n: 5_000\nyes: true\nsize: 256M\nweek: 1w\nseconds: 30\nlist:\n  - a\n  - b\nempty:\n")
    assert document.integer(table.values["n"], least=0, most=9999, expected="a number") == 5000
    assert document.boolean(table.values["yes"]) is True
    assert values.size(table.values["size"]) == 256 << 20
    assert values.duration(table.values["week"]) == 604800
    assert values.duration(table.values["seconds"]) == 30
    assert document.texts(table.values["list"], "words") == ("a", "b")
    assert document.items(table.values["empty"], "words") == ()
    assert document.mapping(table.values["empty"], "a table").values == {}


def test_plain():
    table = parse("a: [1, true, null, 'true', x]\nb: {c: off}\n")
    assert document.plain(table) == {"a": [1, True, None, "true", "x"], "b": {"c": "off"}}


def test_unknown_keys_are_errors_with_a_suggestion():
    with pytest.raises(BadInput, match=r"f.yml:2: unknown key 'shutdwon'") as caught:
        document.check_keys(parse("log: off\nshutdwon: kill\n"), ("log", "shutdown"))
    assert caught.value.hint == "did you mean 'shutdown'?"
    with pytest.raises(BadInput) as caught:
        document.check_keys(parse("zzz: 1\n"), ("log", "shutdown"))
    assert caught.value.hint == "known: log, shutdown"


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="there is no such file"):
        document.read(tmp_path / "none.yml")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        document.read(tmp_path)
    (tmp_path / "latin.yml").write_bytes(b"a: 1\nb: \xe4\n")
    with pytest.raises(BadInput, match=r"latin.yml:2: not UTF-8 \(byte 0xe4\)"):
        document.read(tmp_path / "latin.yml")
    monkeypatch.setattr(document, "MAX_BYTES", 10)
    (tmp_path / "large.yml").write_bytes(b"a" * 11)
    with pytest.raises(BadInput, match="larger than"):
        document.read(tmp_path / "large.yml")


@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.text("ab:-[]{}&*!|>'\"\n #", max_size=60))
def test_any_text_is_a_mapping_or_bad_input(text):
    try:
        document.parse(text, "f.yml")
    except BadInput as e:
        assert e.message.startswith("f.yml")


def test_a_hundred_thousand_lines():
    table = parse("allow:\n" + "".join(f"  - h{i}.example:443\n" for i in range(100_000)))
    assert len(table.values["allow"].values) == 100_000
