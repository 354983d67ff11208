"""How many tokens a request brings in at most: `count_tokens`, the default of every declaration.

Counted by structure: text by its bytes, pictures and documents by what a model makes of them and not by their base64,
and what only points to something that the provider keeps by a fixed allowance. On the high side: a hold that is too
large shrinks at settlement, one that is too small is overspend.
"""

from __future__ import annotations

from agentmon.providers.request import Request

BYTES_PER_TOKEN = 3  # low for English prose, about right for code, JSON escapes and other scripts
IMAGE_TOKENS = 5_000  # the most a picture is scaled down to (Claude: 4,784; GPT and Gemini: less but for small models)
MEDIA_BYTES_PER_TOKEN = 100  # sound and film: 8 kB/s speech at Gemini's 32 and OpenAI's 10 tokens a second, and more
STORED_TOKENS = 8_000  # an earlier response, a conversation, a file, a cached context: its size is not known here
_MOST_VALUES = 20_000  # looked at in one request; what is beyond counts as text, and takes no time
_BLOB = 2_000  # characters without a space from which on a string may be base64

_STORED = {
    "previous_response_id", "conversation", "file_id", "fileUri", "file_uri", "cachedContent", "file_url",
    "container_id", "vector_store_ids",
}  # fmt: skip
_IMAGE_KEYS = {"image_url", "image"}


def tokens_of(n_bytes: int) -> int:
    """Tokens that `n_bytes` of text may be, rounded up."""
    return -(-n_bytes // BYTES_PER_TOKEN)


def count_tokens(request: Request) -> int:
    """Input tokens of a request, at most."""
    form = -(-request.files_bytes // MEDIA_BYTES_PER_TOKEN)
    if not request.fields:
        return tokens_of(len(request.body)) if not request.files_bytes else form
    if request.files_bytes:
        return form + tokens_of(sum(len(str(value).encode()) for value in request.fields.values()))
    less, more = _structure(request.fields)
    return tokens_of(max(0, len(request.body) - less)) + more


def _structure(document: object) -> tuple[int, int]:
    """(bytes that are no text, tokens that stand for them), walking the document without recursion."""
    less = more = 0
    waiting: list[tuple[object, str]] = [(document, "")]
    for _ in range(_MOST_VALUES):
        if not waiting:
            break
        value, around = waiting.pop()
        if isinstance(value, list):
            waiting += ((inner, "") for inner in value)
        elif isinstance(value, dict):
            kind = _kind(value) or around
            for key, inner in value.items():
                if key in _STORED and inner:
                    more += STORED_TOKENS
                elif key in _IMAGE_KEYS and _is_link(inner):
                    more += IMAGE_TOKENS
                if isinstance(inner, str):
                    blob = _blob_tokens(inner, kind)
                    less, more = (less + len(inner), more + blob) if blob else (less, more)
                else:
                    waiting.append((inner, kind if key == "source" else ""))
    return less, more


def _is_link(value: object) -> bool:
    url = value.get("url") if isinstance(value, dict) else value
    return isinstance(url, str) and url.startswith(("http:", "https:"))


def _kind(part: dict[str, object]) -> str:
    """The media type that stands beside a blob, "" if none does."""
    named = (part.get(key) for key in ("media_type", "mimeType", "mime_type", "format"))
    return next((value.lower() for value in named if isinstance(value, str) and value), "")


def _blob_tokens(value: str, kind: str) -> int:
    """Tokens of a string that holds base64; 0 for text."""
    if value.startswith("data:") and ";base64," in value[:200]:
        kind, _, value = value[5:].partition(";")
    elif len(value) < _BLOB or not kind or " " in value[:_BLOB] or "\n\n" in value[:_BLOB]:
        return 0
    content_bytes = len(value) * 3 // 4
    if kind.startswith("image/") or kind in {"png", "jpeg", "gif", "webp"}:
        return IMAGE_TOKENS
    if kind.startswith(("audio/", "video/")) or kind in {"wav", "mp3", "mp4", "mov", "webm", "flac", "ogg"}:
        return -(-content_bytes // MEDIA_BYTES_PER_TOKEN)
    return tokens_of(content_bytes)
