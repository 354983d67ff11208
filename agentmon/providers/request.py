"""A request as the estimators see it: its members, whether they came as JSON or as a form with files.

A multipart form (RFC 7578) is recognised by its first bytes; its files stay bytes, its other parts become members.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from agentmon.providers.jsonread import Json, parse_object, text

_PARTS = 1000
_NAME = re.compile(rb'\bname="([^"]{1,100})"')
_IN_PATH = re.compile(r"/(?:models?|deployments|tunedModels)/([^/]+)")


@dataclass(frozen=True, slots=True)
class Request:
    """`fields`: members of the body; {} where it is neither. `files_bytes`: of a form; 0 otherwise."""

    path: str  # normalised
    body: bytes
    fields: Json
    files_bytes: int = 0

    @property
    def model(self) -> str:
        """The model that the body names, else the one in the path (…/models/NAME:verb, …/deployments/NAME/…)."""
        named = text(self.fields.get("model"))
        found = None if named else _IN_PATH.search(self.path)
        return named or (unquote(found[1].partition(":")[0])[:200] if found else "")


def read(path: str, body: bytes) -> Request:
    """The request in `body`; never raises."""
    if body.startswith(b"--"):
        fields, files_bytes = _form(body)
        return Request(path, body, fields, files_bytes)
    return Request(path, body, parse_object(body) or {})


def _form(body: bytes) -> tuple[Json, int]:
    boundary = body[:80].partition(b"\n")[0].rstrip(b"\r")
    fields: Json = {}
    files_bytes = 0
    for part in body.split(boundary, _PARTS)[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename" in head:
            files_bytes += len(content)
        elif name := _NAME.search(head):
            fields[name[1].decode("utf-8", "replace")] = content.removesuffix(b"\r\n").decode("utf-8", "replace")
    return fields, files_bytes
