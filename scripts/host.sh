# Sourced by the other scripts: how they speak, and what of this host belongs to agentmon.

PACKAGES="python3 python3-venv python3-bpfcc python3-nftables nftables iptables bubblewrap iproute2 libseccomp2 conntrack
    util-linux procps curl ca-certificates gcc libc6-dev linux-libc-dev python3-dev"
GROUPS_WANTED="agentmon agentmon-svc agentmon-job"
SERVICES="resolver relay proxy ledger" # users agentmon-NAME, primary group agentmon-svc

say() { echo "setup: $*" >&2; }

# fail MESSAGE HINT: for a person, then exit 4 (the host lacks something).
fail() {
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit 4
}

# cgroup2_mount: where the unified hierarchy is; on hybrid hosts not /sys/fs/cgroup itself.
cgroup2_mount() { awk '{ for (i = 7; i <= NF; i++) if ($i == "-" && $(i + 1) == "cgroup2") { print $5; exit } }' /proc/self/mountinfo; }

# setup.sh tests: the tests of `agentmon attach` hold a real container (runc, since crun refuses a hybrid cgroup layout),
# those of a shared ledger start a server, those of completion ask real shells.
case "${0##*/} ${1:-}" in
"setup.sh tests")
    PACKAGES="$PACKAGES podman runc postgresql zsh fish tmux git"
    command -v npm >/dev/null || PACKAGES="$PACKAGES npm" # it comes with node where that is not Debian's
    command -v podman >/dev/null || say "podman and runc are for tests only: they attach to a real container"
    command -v psql >/dev/null || say "postgresql is for tests only: they start a server of their own, on no port"
    ;;
esac
