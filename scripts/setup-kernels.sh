#!/bin/sh
# What `make test-kernels` needs beside set-up: QEMU, and depmod. Says what it installs; does nothing twice.
set -eu
cd "$(dirname "$0")/.."
. scripts/host.sh

missing=
command -v qemu-system-x86_64 >/dev/null || missing="qemu-system-x86"
command -v depmod >/dev/null || command -v /sbin/depmod >/dev/null || missing="$missing kmod"
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || fail "the kernel matrix needs $missing, and only root can add it" "sudo make test-kernels"
say "installing with apt-get, for the kernel matrix: $missing"
export DEBIAN_FRONTEND=noninteractive
apt-get -q update </dev/null >&2 || fail "apt-get update failed" "check the network and /etc/apt/sources.list, then run this again"
# shellcheck disable=SC2086  # one word a package
apt-get -q -y install --no-install-recommends $missing </dev/null >&2 ||
    fail "apt-get could not install: $missing" "see its message above, then run this again"
