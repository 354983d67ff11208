"""What agentmon.dlp finds: known values in every form, rules with their allowlists, and that no value is ever shown."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import sys
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.dlp import forms, scanner
from agentmon.dlp.scanner import MARKER, Detector, Scanner, redacted

KNOWN = b"pl4nted/value+0815=="
TOKEN = b"ghp_" + b"aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5"


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return scanner.detector(keep=tmp_path_factory.mktemp("dlp"))


@pytest.fixture(scope="session")
def found_by(detector: Detector) -> Scanner:
    return Scanner(detector, {"credential house": KNOWN}, b"key of the run")


def _escaped(value: bytes) -> bytes:
    return "".join(f"\\u{c:04X}" for c in value).encode()


FORMS = {
    "as it is": lambda v: v,
    "base64": base64.b64encode,
    "base64 after one byte": lambda v: base64.b64encode(b"x" + v + b"tail"),
    "base64 after two bytes": lambda v: base64.b64encode(b"xy" + v + b"tail"),
    "base64url": lambda v: base64.urlsafe_b64encode(b"ab" + v),
    "base64 of base64": lambda v: base64.b64encode(b"see: " + base64.b64encode(b"it is " + v)),
    "base64 in short lines": lambda v: b"\r\n".join(
        base64.b64encode(b"some words before it: " + v + b" and some after it")[at : at + 40]
        for at in range(0, 120, 40)
    ),
    "quoted-printable": lambda v: (
        b"CONTENT-TRANSFER-ENCODING: Quoted-Printable\r\n\r\n" + b"".join(b"=%02X" % c for c in v)
    ),
    "base64 in lines": lambda v: base64.encodebytes(b"some words before it, and then the thing itself: " + v),
    "base32": base64.b32encode,
    "hex": lambda v: v.hex().encode(),
    "HEX": lambda v: v.hex().upper().encode(),
    "hex of base64": lambda v: base64.b64encode(v).hex().encode(),
    "percent": lambda v: urllib.parse.quote(v, safe="").encode(),
    "percent, every byte": lambda v: "".join(f"%{c:02x}" for c in v).encode(),
    "percent twice": lambda v: urllib.parse.quote(urllib.parse.quote(v, safe=""), safe="").encode(),
    "JSON escapes": _escaped,
    "JSON in JSON": lambda v: json.dumps(json.dumps({"a": "line\n" + v.decode()})).encode(),
    "JSON in JSON, escaped": lambda v: json.dumps(_escaped(v).decode()).encode(),
    "slashes escaped": lambda v: v.replace(b"/", b"\\/"),
    "UTF-16": lambda v: v.decode().encode("utf-16-le"),
    "C escapes": lambda v: "".join(f"\\x{c:02x}" for c in v).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_known_value_is_found_in_every_form(found_by: Scanner, form: str) -> None:
    data = b'{"note": "' + FORMS[form](KNOWN) + b'", "more": 1}'
    findings = found_by.scan(data, "body")
    assert {f.detector for f in findings} == {"exact:credential house"}
    assert {f.digest for f in findings} == {found_by.digest(KNOWN)}
    scrubbed = redacted(data, findings)
    assert MARKER in scrubbed and not found_by.scan(scrubbed, "body")
    assert scrubbed.endswith(b'", "more": 1}') and scrubbed.startswith(b'{"note": "')


@pytest.mark.parametrize("form", [name for name in FORMS if name not in {"base32"}])
def test_a_token_is_found_in_every_form_that_is_text(found_by: Scanner, form: str) -> None:
    findings = found_by.scan(b'{"note": "' + FORMS[form](TOKEN) + b'"}', "body")
    assert "github-pat" in {f.detector for f in findings}, findings
    assert found_by.digest(TOKEN) in {f.digest for f in findings}


PEM = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 12 + "-----END PRIVATE KEY-----\n"
REAL = {
    "anthropic-api-key": "sk-ant-api03-" + "a1B2c3D4e5F6g7H8i9J0" * 4 + "abcdefghijklmAA",
    "openai-api-key": "sk-" + "aB3dE5gH7jK9mN1pQ3sT" + "T3BlbkFJ" + "vW7yZ9bC1dE3fG5hJ7kL",
    "aws-access-token": "AKIA" + "Z7QW3RT5YU2IPL4K",
    "gcp-api-key": "AIza" + "SyB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f",
    "gitlab-pat": "glpat-" + "aB3dE5gH7jK9mN1pQ3sT",
    "slack-bot-token": "xoxb-" + "263594206564-2343594206574-FGqddMF8t08v8N7Oq4i57vs1",
    "stripe-access-token": "sk_live_" + "51HZx8TqWvYbNcMdLfKgJhRtPs",
    "npm-access-token": "npm_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5",
    "pypi-upload-token": "pypi-AgEIcHlwaS5vcmc" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5hJ7kL9mN1pQ3sT5v",
    "private-key": PEM,
    "jwt": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJzdWIiOiI4NzE5Mjg3MyIsIm5hbWUiOiJhZ2VudCIsImlhdCI6MTUxNjIzOTAyMn0"
    ".kP3x9ZqLw7Rt2Vb8NmYc5Df1Gh4Jk6Qs0TuWaXeIoE",
    "generic-api-key": 'billing_secret = "q9Zx7Lk2Vb8Nm4Rt6Yp1Ws3"',
}


@pytest.mark.parametrize("rule", REAL)
def test_tokens_of_providers_are_found_where_a_conversation_has_them(found_by: Scanner, rule: str) -> None:
    text = f"I looked into the file:\n{REAL[rule]}\nand that is all."
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    findings = found_by.scan(body, "body")
    assert rule in {f.detector for f in findings}
    assert json.loads(redacted(body, findings))
    assert not found_by.scan(redacted(body, findings), "body")


ORDINARY = [
    "commit 6f1ed002ab5595859014ebf0951522d9a3b0a1c7 of https://example.org/project.git",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    'api_key = os.environ["API_KEY"]; token = settings.token; password = getpass()',
    'headers = {"Authorization": f"Bearer {token}"}  # put your key here',
    "AKIAIOSFODNN7EXAMPLE is the access key id of AWS' own documentation",
    "the primary_key is user_id, the sort key created_at; key=value pairs",
    "id 3f2504e0-4f89-11d3-9a0c-0305e82c3301, session cookie required",
    "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 40).decode(),
    "for key, value in sorted(tokens.items()): print(key, len(value))",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_none(found_by: Scanner, text: str) -> None:
    assert found_by.scan(json.dumps({"content": text}).encode(), "body") == ()


def test_agentmons_own_sources_have_none(found_by: Scanner) -> None:
    root = Path(scanner.__file__).parents[1]
    files = [f for f in root.rglob("*.py") if "demo" not in f.parts]
    assert len(files) > 100
    flagged = {f.name: [x.detector for x in found_by.scan(f.read_bytes(), "body")] for f in files}
    assert {name: found for name, found in flagged.items() if found} == {}


def test_a_form_has_its_plus_as_space(found_by: Scanner) -> None:
    pem = urllib.parse.urlencode({"file": PEM}).encode()
    assert {f.detector for f in found_by.scan(pem, "body", form=True)} == {"private-key"}


def test_the_value_is_in_no_repr_and_no_context(
    found_by: Scanner, detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    data = b"first " + KNOWN + b" then token=" + TOKEN + b"restofit and " + base64.b64encode(KNOWN) + b" end"
    findings = found_by.scan(data, "body")
    shown = f"{findings!r} {found_by!r} {detector!r} {[f.context for f in findings]} {caplog.text}"
    for piece in (
        KNOWN.decode(),
        TOKEN.decode(),
        TOKEN.decode()[4:16],
        "restofit",
        base64.b64encode(KNOWN).decode()[:12],
    ):
        assert piece not in shown
    assert "then token" in shown


def test_the_tail_of_a_body(found_by: Scanner) -> None:
    sha = b"6f1ed002ab5595859014ebf0951522d9a3b0a1c7"
    body = b"sourcegraph " + TOKEN + b" " + b"." * 5000 + sha + b" " + KNOWN + b" "
    tail = found_by.scan(body, "body", since=3000)
    assert {f.detector for f in tail} == {"sourcegraph-access-token", "exact:credential house"}
    assert [body[f.start : f.end] for f in tail] == [sha, KNOWN]


def test_digests_are_of_the_run(detector: Detector) -> None:
    one, two = (Scanner(detector, {}, key).scan(b"x " + TOKEN, "body")[0] for key in (b"run 1", b"run 2"))
    assert one.digest != two.digest and len(one.digest) == 32


def test_many_layers_and_many_findings_are_bounded(found_by: Scanner) -> None:
    assert len(found_by.scan(b" ".join([TOKEN] * 5000), "body")) == scanner._FINDINGS + 1
    assert found_by.scan(b"\\" * 300_000, "body") == ()
    deep = KNOWN
    for _ in range(3):
        deep = base64.b64encode(b"more: " + deep)
    assert found_by.scan(deep, "body")


@pytest.mark.parametrize("often", [TOKEN, KNOWN])
def test_what_is_not_looked_at_any_more_is_a_finding_of_its_own(found_by: Scanner, often: bytes) -> None:
    """A value that was approved a thousand times over hides no other: what follows is not taken for searched."""
    other = b"\nglpat-aB3dE5gH7jK9mN1pQ3sT\n"
    hidden = {f.digest for f in found_by.scan(b"\n".join([often] * 1000) + other, "body")}
    assert found_by.digest(often) in hidden and len(hidden) > 1
    few = {f.detector for f in found_by.scan(b"\n".join([often] * 200) + other, "body")}
    assert "gitlab-pat" in few and scanner.CROWDED not in few


def test_a_body_of_nothing_but_known_values_is_searched_in_no_more_than_its_length(found_by: Scanner) -> None:
    """Findings are compared with each other, and looked around: 20,000 of them took minutes. Counted, not timed."""
    steps = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        found_by.scan(KNOWN * 20_000, "body")
    finally:
        sys.setprofile(None)
    assert steps < 200_000


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400), st.sampled_from([KNOWN, TOKEN]))
def test_any_surroundings_do_not_hide_a_raw_value(found_by: Scanner, before: bytes, after: bytes, value: bytes) -> None:
    data = before + b" " + value + b" " + after
    findings = found_by.scan(data, "body")
    assert found_by.digest(value) in {f.digest for f in findings}
    for finding in findings:
        assert 0 <= finding.start < finding.end <= len(data)
        assert value.decode() not in finding.context
    assert value not in redacted(data, findings)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80), st.sampled_from(sorted(FORMS)))
def test_redacting_a_string_of_json_leaves_json(found_by: Scanner, before: str, after: str, form: str) -> None:
    body = json.dumps({"a": f"{before} {KNOWN.decode()} {after}", "n": [1, 2]}).encode()
    scrubbed = redacted(body, found_by.scan(body, "body"))
    assert json.loads(scrubbed)["n"] == [1, 2] and KNOWN not in scrubbed


def test_short_values_are_not_looked_for() -> None:
    assert forms.forms(b"seven77") == frozenset()
    assert all(len(form) >= 8 for form in forms.forms(b"eight888"))


def test_which_variables_hold_secrets() -> None:
    env = {
        "OPENAI_API_KEY": "sk-planted-0815-4711", "DATABASE_URL": "postgres://u:s3cr3t-pw@db/x",
        "GITHUB_TOKEN": "ghx_08154711",
        "PATH": "/usr/bin:/bin:/usr/sbin", "SSH_AUTH_SOCK": "/tmp/ssh-XX/agent.1", "KEYBOARD": "us-intl-nodeadkeys",
        "SERVICE_URL": "https://api.example.org/v1", "TOKEN_FILE_KEY": "/run/secrets/token", "AUTH_TOKEN": "required",
    }  # fmt: skip
    assert set(forms.secret_variables(env)) == {"OPENAI_API_KEY", "DATABASE_URL", "GITHUB_TOKEN"}


def test_a_compressed_file_is_not_text(found_by: Scanner) -> None:
    assert found_by.scan(gzip.compress(b"x" * 5000), "body") == ()
