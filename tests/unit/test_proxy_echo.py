"""The credential in what a server says back: overwritten in every form and wherever pieces part it, nothing else."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.credentials.secret import Secret
from agentmon.proxy.echo import Echo, Stream

KEY = 'sk-planted/"0815"+x'


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (KEY, KEY), (KEY, json.dumps(KEY)), (KEY, quote(KEY, safe="")), (f"Bearer {KEY}", KEY),
        (f"Basic {base64.b64encode(b'me:the-password').decode()}", "the-password"),
    ],
)  # fmt: skip
def test_every_form_is_overwritten_by_as_many_asterisks(value: str, told: str) -> None:
    data = f"you sent {told}, did you".encode()
    out = Echo(Secret(value)).without(data)
    assert len(out) == len(data) and told.strip('"').encode() not in out
    assert out.startswith(b"you sent ") and out.endswith(b", did you") and b"****" in out


def test_what_is_as_short_as_a_word_stays() -> None:
    assert Echo(Secret("word")).without(b"a word") == b"a word"


@given(st.lists(st.sampled_from([KEY, KEY[:7], "sk-", "text ", "\n"])), st.lists(st.integers(1, 30)))
def test_pieces_change_nothing(words: list[str], sizes: list[int]) -> None:
    data = "".join(words).encode()
    seen: list[bytes] = []

    def then(piece: bytes) -> bytes:
        seen.append(piece)
        return piece

    echo = Echo(Secret(KEY))
    stream, out, at = Stream(echo, then), b"", 0
    for size in sizes:
        out += b"".join(stream(data[at : at + size])) if data[at : at + size] else b""
        at += size
        assert at < len(KEY) or len(out) > min(at, len(data)) - len(KEY)  # no more is held back
    out += b"".join(stream(data[at:])) if data[at:] else b""
    out += b"".join(stream(b""))
    assert out == echo.without(data) and b"".join(seen) == out and seen[-1] == b"" and b"" not in seen[:-1]
