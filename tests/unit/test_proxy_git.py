"""Which requests are git's, and what a body of an LFS batch may say."""

from __future__ import annotations

import gzip
import zlib

import pytest

from agentmon.proxy.git import Use, lfs_downloads, use_of

OBJECT = "objects/ab/" + "0" * 38
PACK = "objects/pack/pack-" + "1" * 40


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/r/info/refs?service=git-receive-pack"), ("GET", "/r/info/refs?a=1&service=git%2Dreceive-pack"),
        ("GET", "/r/info/refs?%73ervice=git%252Dreceive%252Dpack"), ("POST", "/r/git-receive-pack"),
        ("POST", "/r.git//git-receive-pack/"), ("POST", "/r/GIT-Receive-Pack"), ("PUT", "/r/git%2Dreceive-pack;x"),
        ("LOCK", "/r/info/refs"), ("PROPFIND", "/r.git/"), ("MKCOL", "/r/objects/ab/"), ("MOVE", f"/r/{OBJECT}_x"),
        ("PUT", "/r/refs/heads/main"), ("PUT", f"/r/{OBJECT}"), ("DELETE", "/r/refs/tags/v1"), ("PUT", "/r.git/x"),
        ("POST", "/r.git/info/lfs/locks"), ("POST", "/r.git/info/lfs/locks/verify"),
        ("PUT", "/r.git/info/lfs/objects/1"),
    ],
)  # fmt: skip
def test_a_push_in_any_form(method: str, target: str) -> None:
    assert use_of(method, target, "") is Use.PUSH


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/r/info/refs?service=git-upload-pack"), ("POST", "/r/git-upload-pack"), ("GET", "/r/info/refs"),
        ("HEAD", "/r/info/refs"), ("GET", "/r/info%2Frefs"), ("GET", f"/r/{OBJECT}"), ("GET", f"/r/{PACK}.idx"),
        ("GET", f"/r/{PACK}.pack"), ("GET", "/r/objects/info/packs"), ("POST", "/r/git-upload-archive"),
        ("GET", "/r.git/info/lfs/locks"),
    ],
)  # fmt: skip
def test_a_fetch_in_any_form(method: str, target: str) -> None:
    assert use_of(method, target, "") is Use.FETCH


def test_the_content_type_says_so_too() -> None:
    assert use_of("POST", "/r/git-upload-pack", "application/x-git-receive-pack-request") is Use.PUSH
    assert use_of("POST", "/x", "Application/X-Git-Upload-Pack-Request") is Use.FETCH
    assert use_of("POST", "/x/batch", "application/vnd.git-lfs+json; charset=utf-8") is Use.LFS_BATCH
    assert use_of("POST", "/r.git/info/lfs/objects/batch", "") is Use.LFS_BATCH


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"), ("GET", "/owner/repository"), ("GET", "/search?q=git+push"), ("PROPFIND", "/calendar/me"),
        ("PUT", "/v1/objects/name"), ("POST", "/v1/batch"), ("GET", "/archive/HEAD"), ("PUT", "/refs/x"),
    ],
)  # fmt: skip
def test_what_is_not_gits(method: str, target: str) -> None:
    assert use_of(method, target, "application/json") is Use.NONE


@pytest.mark.parametrize(
    ("body", "downloads"),
    [
        (b'{"operation": "download", "objects": [{"operation": "x"}]}', True),
        (b'{"operation": "upload"}', False), (b'{"operation": "download", "operation": "upload"}', False),
        (b'{"operation": "download", "Operation": "upload"}', False), (b'{"OPERATION": "download"}', False),
        (b'{"operation": ["download"]}', False), (b'[["operation", "download"]]', False), (b"{}", False), (b"", False),
        ('{"operation": "download"}'.encode("utf-16"), False), (b'{"operation": "download"', False),
        (b"[" * 100_000, False),
    ],
)  # fmt: skip
def test_a_batch_downloads_only_where_nobody_could_read_it_otherwise(body: bytes, downloads: bool) -> None:
    assert lfs_downloads("", body) is lfs_downloads("identity", body) is lfs_downloads("gzip", gzip.compress(body))
    assert lfs_downloads("", body) is downloads


def test_a_batch_is_compressed_in_one_way_or_refused() -> None:
    body = b'{"operation": "download"}'
    packed = gzip.compress(body)
    assert lfs_downloads("gzip", packed)
    two = gzip.compress(b'{"operation": "download"') + gzip.compress(b', "operation": "upload"}')
    bomb = gzip.compress(body + b" " * (9 << 20))
    for coding, raw in (
        ("gzip", body), ("gzip", packed[:-1]), ("gzip", packed + b"x"), ("gzip", two), ("gzip", bomb), ("br", body),
        ("deflate", zlib.compress(body)), ("gzip, identity", packed), ("", packed), ("gzip", b""),
    ):  # fmt: skip
        assert not lfs_downloads(coding, raw)
