"""Which requests are git's, by every way that git speaks HTTP: smart and dumb, WebDAV, LFS. Pure.

gitprotocol-http(5), gitprotocol-v2(5), git-http-push(1), and the LFS API (git-lfs docs/api). The service is named by
path and query in every protocol version, so a body, compressed or not, says nothing more; only an LFS batch has to be
read. Names are compared decoded twice and without case: what any server behind could take for git's is git's.
"""

from __future__ import annotations

import json
import re
import zlib
from enum import Enum
from typing import Any
from urllib.parse import unquote_plus

PUSH_SAYS = (
    "git push is not possible from inside this bottle: commit here, and let the operator push from outside, "
    "or hand the commits over in a file (git bundle create)."
)
FETCH_SAYS = "git fetch and clone are not allowed here by this bottle's routes."
FETCH_HINT = "the operator can write git_fetch: true into the route of {host} in the manifest"

_BATCH_BYTES = 8 << 20
_LFS_TYPE = "application/vnd.git-lfs+json"
_DAV_ONLY = frozenset(("PROPFIND", "PROPPATCH", "MKCOL", "LOCK", "UNLOCK", "MOVE", "COPY"))
_WRITES = frozenset(("PUT", "DELETE", "PATCH"))
_REFS = r"info/(refs|packs)|refs/(heads|tags|notes|remotes|stash)|objects/([0-9a-f]{2}/|pack/pack-|info/)"
_INSIDE = re.compile(rf"/({_REFS})|\.git(/|$)")
_DAV_INSIDE = re.compile(rf"/({_REFS}|refs/?$|objects/?$|objects/[0-9a-f]{{2}}/?$|objects/pack/?$|head$)|\.git(/|$)")
_DUMB = re.compile(
    r"/(info/refs|objects/info/(packs|alternates|http-alternates)|objects/[0-9a-f]{2}/[0-9a-f]{38,62}"
    r"|objects/pack/pack-[0-9a-f]{40,64}\.(pack|idx|rev|bitmap))/*$"
)


class Use(Enum):
    """What git wants. LFS_BATCH: download or upload, as its body says."""

    NONE = 0
    FETCH = 1
    PUSH = 2
    LFS_BATCH = 3


def use_of(method: str, target: str, content_type: str) -> Use:
    """:param target: path and query as they came."""
    path, _, query = target.partition("?")
    path, query, kind = _plain(path), _plain(query), content_type.lower()
    if any("git-receive-pack" in text for text in (path, query, kind)):
        return Use.PUSH
    if method in _DAV_ONLY and _DAV_INSIDE.search(path):
        return Use.PUSH
    lfs = _LFS_TYPE in kind or "/info/lfs/" in path or path.rstrip("/").endswith("/objects/batch")
    if lfs:
        return _lfs(method, path.rstrip("/"))
    if method in _WRITES and _INSIDE.search(path):
        return Use.PUSH
    if any("git-upload-" in text for text in (path, query, kind)) or _DUMB.search(path):
        return Use.FETCH
    return Use.NONE


def lfs_downloads(coding: str, raw: bytes) -> bool:
    """Whether an LFS batch only downloads, however it is read: plain or one gzip member, and in its JSON one
    "operation" in one spelling. :param coding: Content-Encoding."""
    try:
        body = {"": raw, "identity": raw}[coding] if coding != "gzip" else _gunzip(raw)
        said = json.loads(body.decode("utf-8"), object_pairs_hook=_Pairs)
    except (KeyError, zlib.error, ValueError, RecursionError):
        return False
    named = [(key, value) for key, value in said if key.casefold() == "operation"] if isinstance(said, _Pairs) else []
    return named == [("operation", "download")]


def _gunzip(raw: bytes) -> bytes:
    """:raises ValueError, zlib.error: not one whole gzip member, or more than _BATCH_BYTES in it."""
    state = zlib.decompressobj(31)
    body = state.decompress(raw, _BATCH_BYTES)
    if not state.eof or state.unused_data:
        raise ValueError("not one gzip member")
    return body


class _Pairs(list[tuple[str, Any]]):
    """An object with all of its keys, also those that come twice."""


def _lfs(method: str, path: str) -> Use:
    if method in {"GET", "HEAD"}:
        return Use.FETCH
    return Use.LFS_BATCH if method == "POST" and path.endswith("/batch") else Use.PUSH


def _plain(text: str) -> str:
    return re.sub("/{2,}", "/", unquote_plus(unquote_plus(text)).lower())
