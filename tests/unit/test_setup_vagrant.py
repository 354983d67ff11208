"""The virtual machine does what the README says, no more: its two commands on a checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "vagrant/Vagrantfile"


def test_its_provisioning_is_the_readmes_two_commands() -> None:
    text = FILE.read_text()
    (script,) = re.findall(r"inline: <<~SHELL\n(.*?)^\s*SHELL$", text, flags=re.MULTILINE | re.DOTALL)
    section = (ROOT / "README.md").read_text().partition("## Two commands")[2].partition("\n## ")[0]
    promised = re.findall(r"^    (sudo make \w+)", section, flags=re.MULTILINE)
    assert promised == ["sudo make demo", "sudo make test"]
    *before, demo, test = [line.strip() for line in script.splitlines() if line.strip()]
    assert [demo, test] == promised
    assert before == [
        "set -eu",
        "apt-get -q update && apt-get -q -y install git make",  # what the README starts from
        "cd /home/vagrant/agentmon",
    ]
    assert text.count(".vm.provision ") == 1


def test_vagrant_or_ruby_accepts_it() -> None:
    if vagrant := shutil.which("vagrant"):
        argv = [vagrant, "validate", "--ignore-provider"]
    elif ruby := shutil.which("ruby"):
        argv = [ruby, "-c", FILE.name]
    else:
        pytest.skip("neither vagrant nor ruby is here to read the Vagrantfile")
    done = subprocess.run(argv, cwd=FILE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
