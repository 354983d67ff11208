"""Mirrors of one small package each for pip, npm, apt and git, as files of the stand-in internet's hosts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = {"npm": "npm", "git": "git", "apt-get": "apt", "dpkg-deb": "dpkg"}  # program: package
RULES = [f"{name}.mirror.example:443" for name in ("apt", "git", "npm", "pip")]


def missing() -> list[str]:
    return [package for program, package in NEEDED.items() if shutil.which(program) is None]


def make(files: Path) -> None:
    """`files`: what $AMNET_FILES names."""
    _pip(files / "pip.mirror.example")
    _npm(files / "npm.mirror.example")
    _apt(files / "apt.mirror.example")
    _git(files / "git.mirror.example")


def steps(ca: Path, work: Path) -> dict[str, str]:
    """Step → its script: each installs its package into `work` and prints what it got."""
    apt = work / "apt.conf"
    apt.write_text(
        f'Dir::Etc::SourceList "{work}/sources.list"; Dir::Etc::SourceParts "/dev/null"; Dir::State "{work}/state";\n'
        f'Dir::Cache "{work}/cache"; Acquire::https::CaInfo "{ca}"; APT::Sandbox::User "root"; Acquire::Retries "0";\n'
    )
    (work / "sources.list").write_text("deb [trusted=yes] https://apt.mirror.example/ ./\n")
    for name in ("state/lists/partial", "cache/archives/partial", "npm"):
        (work / name).mkdir(parents=True)
    pip = f"SSL_CERT_FILE={ca} {sys.executable} -m pip --isolated --disable-pip-version-check --retries 0 -q"
    return {
        "pip": f"{pip} install --no-cache-dir --cert {ca} --index-url https://pip.mirror.example/simple/ "
        f"--target {work}/pip ampkg && cat {work}/pip/ampkg/word",
        "npm": f"cd {work}/npm && npm install --silent --no-audit --no-fund --no-update-notifier --cafile {ca} "
        f"--cache {work}/npm-cache --registry https://npm.mirror.example/ ampkg && cat node_modules/ampkg/word",
        "apt": f"export APT_CONFIG={apt}; cd {work} && apt-get -qq update && apt-get -qq download ampkg && "
        f"dpkg-deb -x ampkg_1.0_all.deb {work}/apt && cat {work}/apt/usr/share/ampkg/word",
        "git": f"GIT_SSL_CAINFO={ca} git clone -q https://git.mirror.example/ampkg.git {work}/git && "
        f"cat {work}/git/word",
    }


def _pip(place: Path) -> None:
    page = place / "simple/ampkg"
    page.mkdir(parents=True)
    wheel = "ampkg-1.0-py3-none-any.whl"
    entries = {
        "ampkg/__init__.py": "",
        "ampkg/word": "from-pip\n",
        "ampkg-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ampkg\nVersion: 1.0\n",
        "ampkg-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*entries, "ampkg-1.0.dist-info/RECORD"))
    with zipfile.ZipFile(page / wheel, "w") as out:
        for name, text in (*entries.items(), ("ampkg-1.0.dist-info/RECORD", record)):
            out.writestr(name, text)
    (page / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{wheel}">{wheel}</a></body></html>')


def _npm(place: Path) -> None:
    place.mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as out:
        files = {"package.json": '{"name": "ampkg", "version": "1.0.0"}', "word": "from-npm\n"}
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            out.addfile(entry, io.BytesIO(text.encode()))
    data = packed.getvalue()
    (place / "ampkg-1.0.0.tgz").write_bytes(data)
    dist = {
        "tarball": "https://npm.mirror.example/ampkg-1.0.0.tgz",
        "integrity": "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode(),
    }
    one = {"name": "ampkg", "version": "1.0.0", "dist": dist}
    about = {"name": "ampkg", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": one}}
    (place / "ampkg").write_text(json.dumps(about))


def _apt(place: Path) -> None:
    tree = place / "tree"
    for name, text in (
        (
            "DEBIAN/control",
            "Package: ampkg\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b.example>\nDescription: x\n",
        ),
        ("usr/share/ampkg/word", "from-apt\n"),
    ):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(text)
    (tree / "DEBIAN").chmod(0o755)
    deb = place / "ampkg_1.0_all.deb"
    _run("dpkg-deb", "--build", "--root-owner-group", str(tree), str(deb))
    data = deb.read_bytes()
    packages = (tree / "DEBIAN/control").read_text()
    packages += f"Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    (place / "Packages").write_text(packages)
    of = hashlib.sha256(packages.encode()).hexdigest()
    (place / "Release").write_text(f"Suite: x\nSHA256:\n {of} {len(packages)} Packages\n")


def _git(place: Path) -> None:
    place.mkdir(parents=True)
    work = place / "work"
    who = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    _run("git", "init", "-q", "-b", "main", str(work), **who)
    (work / "word").write_text("from-git\n")
    _run("git", "-C", str(work), "add", "word", **who)
    _run("git", "-C", str(work), "-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "-qm", "x", **who)
    _run("git", "clone", "-q", "--bare", str(work), str(place / "ampkg.git"), **who)
    _run("git", "-C", str(place / "ampkg.git"), "update-server-info", **who)


def _run(*argv: str, **env: str) -> None:
    subprocess.run(argv, env=os.environ | env, check=True, capture_output=True, timeout=30)
