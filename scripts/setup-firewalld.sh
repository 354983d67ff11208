#!/bin/sh
# The firewalld that the tests run beside agentmon, in a namespace: Debian's package unpacked into .cache/firewalld, since
# an installed one would be started and hold this machine. Does nothing twice.
set -eu
cd "$(dirname "$0")/.."
. scripts/host.sh

WHERE=.cache/firewalld
NEEDS="dbus-daemon python3-dbus python3-gi gir1.2-glib-2.0"

[ "$(id -u)" = 0 ] || exit 0 # the tests that use it need root as well
missing=
for package in $NEEDS; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
export DEBIAN_FRONTEND=noninteractive
if [ -n "$missing" ] || [ ! -x "$WHERE/root/usr/sbin/firewalld" ]; then
    apt-get -q update </dev/null >&2 || fail "apt-get update failed" "check the network and /etc/apt/sources.list, then run this again"
fi
if [ -n "$missing" ]; then
    say "installing with apt-get, for the test beside firewalld:$missing"
    # shellcheck disable=SC2086  # one word a package
    apt-get -q -y install --no-install-recommends $missing </dev/null >&2 ||
        fail "apt-get could not install:$missing" "see its message above, then run this again"
fi
[ ! -x "$WHERE/root/usr/sbin/firewalld" ] || exit 0
say "unpacking firewalld into $WHERE; it is not installed"
rm -rf "$WHERE"
mkdir -p "$WHERE/packages" "$WHERE/root"
(cd "$WHERE/packages" && apt-get -q download firewalld python3-firewall </dev/null >&2) ||
    fail "apt-get could not download firewalld" "see its message above, then run this again"
for package in "$WHERE"/packages/*.deb; do dpkg -x "$package" "$WHERE/root"; done
rm -r "$WHERE/packages"
