"""Bytes of a body in the one form that rules are written for: what a model reads, without what hides it. Pure.

JSON and HTML escapes undone, invisible characters out, look-alike letters folded (NFKC), emphasis and tags out, one
space between words. Each step is taken only where its mark stands in the text, so that ordinary text costs little.
"""

from __future__ import annotations

import html
import re
import unicodedata

_SURROGATE = re.compile(r"\\u[dD][89abAB]")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0]+"
)
_ESCAPED = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([nrtbf/\"'\\]))")
_TAG = re.compile(r"<(?!\||<|/?sys|/?system)[^<>]{0,400}>", re.IGNORECASE)


def plain(data: bytes) -> str:
    """Of any bytes; what is no UTF-8 is left out."""
    text = data.decode("utf-8", "ignore")
    if "\\" in text:
        paired = _SURROGATE.search(text) is not None
        text = _ESCAPED.sub(_unescape, text)
        if paired:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
        if not unicodedata.is_normalized("NFKC", text):
            text = unicodedata.normalize("NFKC", text)
        text = text.replace("’", "'")
    if "<" in text:
        text = _TAG.sub(" ", text)
    for mark in "*`~":
        text = text.replace(mark, "")
    return " ".join(text.replace("_", " ").split())


def _unescape(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    if code:
        return chr(int(code, 16))
    return " " if found[3] in "nrtbf" else found[3]
