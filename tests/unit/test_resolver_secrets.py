"""Known values in names: recognised by digests, in pieces and encodings, below wildcards; shown in no event."""

from __future__ import annotations

import base64

import pytest

from agentmon import wire
from agentmon.dlp import forms, names
from agentmon.dlp.names import Known
from agentmon.resolver.labels import Labels, Verdict
from agentmon.views import View, Views

VALUE = b"Planted/Secret+0815-xyz"
KEY = b"k" * 32


@pytest.fixture
def known() -> Known:
    return Known(KEY, names.digests(forms.name_forms(VALUE), KEY))


def view(run: str = "r") -> View:
    return Views().set(wire.BottleView(16, "b", run, "10.0.0.1", rules=("*.wild.example:443", "exact.example:443")))


def labels(known: Known) -> Labels:
    made = Labels()
    made.know(16, "r", known)
    return made


ENCODED = {
    "hex": VALUE.hex(),
    "base32": base64.b32encode(VALUE).decode().rstrip("=").lower(),
    "base64url": base64.urlsafe_b64encode(VALUE).decode().rstrip("=").lower(),
    "base64url, later": base64.urlsafe_b64encode(b"ab" + VALUE).decode().rstrip("=").lower(),
}


@pytest.mark.parametrize("form", ENCODED)
def test_a_value_below_a_wildcard_is_refused(known: Known, form: str) -> None:
    text = ENCODED[form]
    for name in (f"{text[:50]}.wild.example", f"x{text[3:17]}y.wild.example", f"{text[:8]}.{text[8:20]}.wild.example"):
        assert labels(known).spend(view(), name, 0) is Verdict.SECRET
        assert labels(known).shown(view(), name) == "(hidden).wild.example"


def test_plain_values_too() -> None:
    plain = Known(KEY, names.digests(forms.name_forms(b"planted-secret-value-77"), KEY))
    assert labels(plain).spend(view(), "a.PLANTED-secret-value-77.wild.example".lower(), 0) is Verdict.SECRET


def test_other_names_pass(known: Known) -> None:
    made = labels(known)
    for name in ("www.wild.example", "planted.wild.example", f"{ENCODED['hex'][:11]}.wild.example", "exact.example"):
        assert made.spend(view(), name, 0) is Verdict.FINE
        assert made.shown(view(), name) == name
    hidden = f"{ENCODED['hex'][:40]}.wild.example"
    assert made.spend(view("another run"), hidden, 0) is not Verdict.SECRET
    made.forget(16)
    assert made.spend(view(), hidden, 0) is not Verdict.SECRET


def test_digests_say_nothing_and_are_bounded(known: Known) -> None:
    told = wire.SetNames(1, 16, "r", KEY, names.digests(forms.name_forms(VALUE), KEY))
    assert VALUE.decode().lower() not in repr(told) + repr(known) and len(told.digests) > 50
    many = (f"{n:040d}".encode() for n in range(10_000))
    assert len(names.digests(many, KEY)) <= names.MOST
    assert names.digests([b"elevenchars"], KEY) == ()
