"""Files of a host: $AMNET_FILES/HOST/PATH, as a mirror of packages has them; for tests that install something."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from tests.internet.http1 import Request, Response


async def files(request: Request, response: Response) -> None:
    """A directory is its index.html; what is not there, or above the host's directory, is a 404."""
    place = Path(os.environ.get("AMNET_FILES", "/nonexistent")) / request.host
    path = Path(os.path.normpath(f"{place}/{unquote(request.path)}"))
    if path.is_dir():
        path /= "index.html"
    if not (path.is_relative_to(place) and path.is_file()):
        await response.send(404, b"not here\n", {"content-type": "text/plain"})
        return
    kind = {".html": "text/html", ".json": "application/json"}.get(path.suffix, "application/octet-stream")
    await response.send(200, b"" if request.method == "HEAD" else path.read_bytes(), {"content-type": kind})
