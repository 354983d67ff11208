#!/bin/sh
# Undo set-up and remove what agentmon wrote on this host. System packages stay: other software may use them.
set -eu
cd "$(dirname "$0")/.."
. scripts/host.sh
say() { echo "uninstall: $*" >&2; }

[ "$(id -u)" = 0 ] || fail "only root can remove users, rules and state" "sudo make uninstall"
if [ -e /run/agentmon/daemon.lock ] && ! flock --nonblock /run/agentmon/daemon.lock true; then
    fail "the agentmon daemon is running" "agentmon kill --all, stop the daemon (systemctl stop agentmon), then run this again"
fi

if grep -qs '"attached":{' /run/agentmon/state/*.json; then
    fail "agentmon is still attached to something" "agentmon daemon; agentmon ps; agentmon detach BOTTLE; then run this again"
fi

systemctl disable --now agentmon.service >/dev/null 2>&1 || true
rm -f /etc/systemd/system/agentmon.service

say "ending what still runs in agentmon's cgroups and as its users"
cgroup=$(cgroup2_mount)/agentmon
if [ -d "$cgroup" ]; then
    echo 1 >"$cgroup/cgroup.kill"
    tries=50
    while [ -d "$cgroup" ] && [ $tries -gt 0 ]; do
        find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
        tries=$((tries - 1))
    done
    [ ! -d "$cgroup" ] || say "could not remove $cgroup"
fi
users="agentmon-resolver agentmon-relay agentmon-proxy agentmon-ledger agentmon-job"
for user in $users; do
    getent passwd "$user" >/dev/null || continue
    pkill -KILL -u "$user" || true
done

say "removing namespaces, rules, tables and pins"
ip -o netns list 2>/dev/null | awk '{ print $1 }' | grep '^am-' | while read -r netns; do ip netns delete "$netns"; done
ip -o link 2>/dev/null | sed 's/^[0-9]*: \([^:@]*\).*/\1/' | grep -E '^am([0-9]+|-svc)$' | while read -r link; do
    ip link delete "$link" 2>/dev/null || true
done
for family in -4 -6; do # the backstop: the rule with agentmon's mark says which pool the others are for
    ip "$family" rule | sed -n 's/^.*from \([^ ]*\) fwmark 0x1000000\/0x1000000 lookup main.*/\1/p' | sort -u | while read -r pool; do
        ip "$family" rule | sed -n "s|^\([0-9]*\):.*from $pool .*|\1|p" | while read -r priority; do
            ip "$family" rule delete from "$pool" priority "$priority" # never by priority alone: 0 is the kernel's
        done
    done
done
nft list tables 2>/dev/null | sed -n 's/^table \([a-z0-9]* agentmon[a-z0-9_-]*\)$/\1/p' | while read -r table; do
    # shellcheck disable=SC2086  # family and name
    nft delete table $table
done
rm -rf /sys/fs/bpf/agentmon

say "removing /run/agentmon, /var/lib/agentmon, /etc/agentmon, users and groups, .venv"
rm -rf /run/agentmon /var/lib/agentmon /etc/agentmon
for user in $users; do getent passwd "$user" >/dev/null && userdel "$user"; done
for group in $GROUPS_WANTED; do getent group "$group" >/dev/null && groupdel "$group"; done
rm -rf .venv .cache
