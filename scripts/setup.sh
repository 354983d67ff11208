#!/bin/sh
# Make this checkout runnable: system packages, users and groups, .venv. Says what it does; does nothing twice.
# Root is needed only for what is missing on the host. AGENTMON_PYTHON names the interpreter for .venv.
set -eu
cd "$(dirname "$0")/.."
. scripts/host.sh

VENV=.venv
STAMP=$VENV/agentmon-setup

root_or_fail() { # WHAT
    [ "$(id -u)" = 0 ] || fail "$1, and only root can add it" "sudo make setup"
}

check_host() {
    [ "$(uname -s)" = Linux ] || fail "agentmon runs on Linux; this is $(uname -s)" "use a Debian 12 virtual machine: vagrant/"
    ID=unknown VERSION_ID='' PRETTY_NAME=''
    [ ! -r /etc/os-release ] || . /etc/os-release
    case "$ID:$VERSION_ID" in
    debian:1[2-9]* | debian: | ubuntu:2[4-9].*) ;;
    *) fail "set-up knows Debian 12 and 13 and Ubuntu 24.04; this is ${PRETTY_NAME:-$ID $VERSION_ID}" "use one of these, or a virtual machine: vagrant/" ;;
    esac
    [ -n "$(cgroup2_mount)" ] || fail "no cgroup v2 hierarchy is mounted" "boot with systemd.unified_cgroup_hierarchy=1, or: mount -t cgroup2 none /mnt/cgroup2"
}

missing_packages() {
    for package in $PACKAGES; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

install_packages() {
    missing=$(missing_packages | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    root_or_fail "these packages are missing: $missing"
    say "installing with apt-get: $missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update </dev/null >&2 || fail "apt-get update failed" "check the network and /etc/apt/sources.list, then run this again"
    # shellcheck disable=SC2086  # one word a package
    apt-get -q -y install --no-install-recommends $missing </dev/null >&2 ||
        fail "apt-get could not install: $missing" "see its message above, then run this again"
}

add_users() {
    for group in $GROUPS_WANTED; do
        getent group "$group" >/dev/null && continue
        root_or_fail "group $group is missing"
        say "adding system group $group"
        groupadd --system "$group"
    done
    for name in $SERVICES; do add_user "agentmon-$name" agentmon-svc; done
    add_user agentmon-job agentmon-job
}

add_user() { # USER GROUP
    getent passwd "$1" >/dev/null && return 0
    root_or_fail "user $1 is missing"
    say "adding system user $1"
    useradd --system --gid "$2" --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$1"
}

link_distribution_modules() {
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    link_module python3-bpfcc bcc
    link_module python3-nftables nftables
    pwd -P >"$site/agentmon.pth"
    "$VENV/bin/python" -c 'import bcc, nftables' ||
        fail "bcc and nftables do not load in $("$VENV/bin/python" -V)" "AGENTMON_PYTHON=/usr/bin/python3 make setup"
}

link_module() { # PACKAGE MODULE
    found=$(dpkg -L "$1" | grep -m 1 "/dist-packages/$2/__init__\.py\$") || fail "package $1 holds no module $2" "apt-get install --reinstall $1"
    ln -sfn "${found%/__init__.py}" "$site/$2"
}

write_command() {
    cat >"$VENV/bin/agentmon" <<END
#!$PWD/$VENV/bin/python -I
import sys

from agentmon.cli.main import main

sys.exit(main())
END
    chmod 755 "$VENV/bin/agentmon"
}

make_venv() {
    if [ -n "${AGENTMON_PYTHON:-}" ]; then
        newest="$("$AGENTMON_PYTHON" -c 'import platform; print(platform.python_version())') $AGENTMON_PYTHON"
    else
        newest=$(scripts/find-python.sh)
    fi
    [ -n "$newest" ] || fail "no usable Python 3.11 or newer" "apt-get install python3 python3-venv"
    wanted="$newest $(pwd -P) $(cat scripts/setup.sh requirements/dev.txt | sha256sum | cut -c1-16)"
    if [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && "$VENV/bin/python" -c 'import bcc, nftables' 2>/dev/null; then
        return 0
    fi
    if [ -e "$VENV" ] && [ ! -w "$VENV" ]; then
        fail "$VENV is out of date and belongs to $(stat -c %U "$VENV")" "sudo make setup"
    fi
    python=${newest#* }
    say "making $VENV with Python ${newest%% *} ($python)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
    say "installing the pinned packages of requirements/dev.txt"
    PIP_CACHE_DIR=$PWD/.cache/pip "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --require-hashes --prefer-binary -r requirements/dev.txt </dev/null >&2 ||
        fail "pip could not install requirements/dev.txt" "see its message above, then run this again"
    link_distribution_modules
    write_command
    echo "$wanted" >"$STAMP"
}

umask 022
check_host
install_packages
add_users
make_venv
