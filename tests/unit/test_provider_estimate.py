"""What a request is taken to bring in, by its structure, and how far estimates were off."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon import wire
from agentmon.providers.calibration import Error, errors
from agentmon.providers.counting import IMAGE_TOKENS, MEDIA_BYTES_PER_TOKEN, STORED_TOKENS, count_tokens, tokens_of
from agentmon.providers.declaration import Estimate
from agentmon.providers.registry import load
from agentmon.providers.request import read

MEGABYTE = base64.b64encode(bytes(1 << 20)).decode()


def counted(body: Any) -> int:
    return count_tokens(read("/v1/x", body if isinstance(body, bytes) else json.dumps(body).encode()))


def test_text_tools_and_systems_count_by_their_bytes() -> None:
    body = {"system": "s" * 300, "tools": [{"name": "t", "input_schema": {}}], "messages": [{"content": "é" * 300}]}
    raw = json.dumps(body).encode()
    assert counted(raw) == tokens_of(len(raw))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": MEGABYTE}},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + MEGABYTE}},
        {"type": "input_image", "image_url": "data:image/webp;base64," + MEGABYTE},
        {"inlineData": {"mimeType": "image/png", "data": MEGABYTE}},
        {"image": {"format": "png", "source": {"bytes": MEGABYTE}}},
        {"type": "input_image", "image_url": "https://pictures.example/x.png"},
        {"type": "image_url", "image_url": {"url": "https://pictures.example/x.png"}},
    ],
)
def test_a_picture_is_what_a_model_makes_of_it_and_not_its_base64(part: Any) -> None:
    text = counted({"messages": [{"content": []}]})
    most = counted({"messages": [{"content": [part]}]})
    assert text + IMAGE_TOKENS <= most <= text + IMAGE_TOKENS + 100


def test_sound_documents_and_references_have_their_own_measure() -> None:
    sound = {"input_audio": {"format": "wav", "data": MEGABYTE}}
    assert (1 << 20) // MEDIA_BYTES_PER_TOKEN <= counted(sound) <= (1 << 20) // MEDIA_BYTES_PER_TOKEN + 100
    document = {"source": {"media_type": "application/pdf", "data": MEGABYTE}}
    assert counted(document) >= tokens_of(1 << 20)
    assert counted({"input": "x", "previous_response_id": "resp_1"}) >= STORED_TOKENS
    assert (
        counted({"cachedContent": "c", "contents": [{"parts": [{"fileData": {"fileUri": "u"}}]}]}) >= 2 * STORED_TOKENS
    )
    assert counted({"input": "x", "previous_response_id": None}) < 100


def test_text_that_only_looks_long_stays_text() -> None:
    code = "x=1;" * 10_000
    assert counted({"messages": [{"content": code}]}) >= tokens_of(len(code))
    assert counted({"messages": [{"mime_type": "image/png", "data": "plain words " * 1000}]}) >= tokens_of(12_000)


def form(**parts: bytes) -> bytes:
    out = b""
    for name, content in parts.items():
        file = b'; filename="a.mp3"\r\nContent-Type: audio/mpeg' if name == "file" else b""
        out += b'--B\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + file + b"\r\n\r\n"
        out += content + b"\r\n"
    return out + b"--B--\r\n"


def test_a_form_with_files_is_read_for_its_members() -> None:
    request = read("/v1/audio/transcriptions", form(model=b"whisper-1", file=bytes(100_000), n=b"2"))
    assert (request.model, request.fields["n"]) == ("whisper-1", "2") and 100_000 <= request.files_bytes < 100_100
    assert 1000 <= count_tokens(request) < 1100
    assert read("/x", b"--").fields == {} and count_tokens(read("/x", b"--B\r\n\r\n")) >= 0


def test_a_request_of_millions_of_values_is_counted_by_its_bytes() -> None:
    body = b'{"model": "m", "max_tokens": 5, "messages": [' + b"[]," * 3_000_000 + b"[]]}"
    request = read("/v1/messages", body)
    assert request.fields == {} and count_tokens(request) == tokens_of(len(body))
    many = json.dumps({"messages": [{}] * 100_000 + [{"file_id": "f"}]}).encode()
    assert tokens_of(len(many)) <= count_tokens(read("/x", many)) <= tokens_of(len(many)) + STORED_TOKENS


@given(st.binary(max_size=200), st.sampled_from([b"", b"--B\r\n", b'{"model": ']))
def test_no_body_raises_and_counts_are_never_negative(body: bytes, start: bytes) -> None:
    assert count_tokens(read("/v1beta/models/m:x", start + body)) >= 0


def test_every_declaration_counts() -> None:
    for provider in load().values():
        assert provider.count_tokens(read("/v1/x", b'{"messages": "hello"}')) == 7


def test_how_far_estimates_were_off() -> None:
    def row(model: str, tokens: int, output: int, **more: Any) -> wire.Usage:
        return wire.Usage("p", model, input=tokens, output=output, **more)

    pairs = [
        (Estimate("m", 100, 1000), row("m", 50, 100, cache_read=25, cache_write_5m=5)),
        (Estimate("m", 100, 1000), row("m", 120, 2000)),
        (Estimate("m", 9, 9), row("m", 1, 1, complete=False)),
        (Estimate("m", 9, 9), row("m", 9, 9, source="estimate")),
        (Estimate("z", 0, 10), row("", 5, 5)),
    ]
    assert errors(pairs) == {
        "m": Error(2, input_per_mille=1000, output_per_mille=1050, short=1, worst_per_mille=1927),
        "z": Error(1, input_per_mille=5000, output_per_mille=500, short=0, worst_per_mille=0),
    }
    assert errors([]) == {}
