#!/bin/busybox sh
# The first process of all: loads what the root file system needs, mounts it, and hands over to the guest's own.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
mount -t ext4 -o rw,noatime /dev/vda /mnt || { echo o >/proc/sysrq-trigger; sleep 60; }
mount --move /dev /mnt/dev
umount /proc /sys
exec switch_root /mnt /labinit
