# Second stage of the guest, on the host's files: the mounts of a plain machine with cgroup v2 only, then the job.
# /mnt/out is the one directory that the host sees; its files say what to do: checkout, modules, tree, job.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /lib/modules
mount -t devpts devpts /dev/pts
ln -s /proc/self/fd /dev/fd
mount -t tmpfs tmpfs /mnt
mkdir /mnt/out /mnt/tree /mnt/venv
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out /mnt/out
mount --bind "$(cat /mnt/out/modules)" /lib/modules
checkout=$(cat /mnt/out/checkout)
mount --bind "$(cat /mnt/out/tree)" /mnt/tree
mount --bind "$checkout/.venv" /mnt/venv
for directory in /dev/shm /run /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$directory"; done
mkdir -p "$checkout" /run/lock /run/netns # it may lie below /tmp
mount --bind /mnt/tree "$checkout"
mount --bind /mnt/venv "$checkout/.venv"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
hostname kernel-test
ip link set lo up
cd "$checkout"
echo "guest: up: $(uname -r), $(cut -d' ' -f1 /proc/uptime) s after its start"
sh /mnt/out/job
status=$?
echo $status >/mnt/out/status
echo "guest: done: $status"
echo o >/proc/sysrq-trigger
sleep 60
