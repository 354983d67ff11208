#!/bin/busybox sh
# First process of the guest: from the initial ram disk to the host's file system, read-only below, changes in memory.
set -e
/bin/busybox mkdir -p /dev /low /high /root
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000,ro root /low
/bin/busybox mount -t tmpfs high /high
/bin/busybox mkdir /high/upper /high/work
/bin/busybox mount -t overlay -o lowerdir=/low,upperdir=/high/upper,workdir=/high/work root /root
exec /bin/busybox switch_root -c /dev/console /root /bin/sh "$(/bin/busybox cat /guest)"
