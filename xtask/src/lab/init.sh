#!/bin/bash
# The guest's first process: sets the guest up, runs /lab/script with its output on the channel that the host reads,
# leaves its exit code in /lab/code and powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
grep -q ' /dev devtmpfs' /proc/mounts || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir -p /run/lock /run/lvm /run/sshd

argument() { local word; for word in $(</proc/cmdline); do case $word in "$1"=*) echo "${word#*=}" ;; esac; done; }
stop() { sync; echo o >/proc/sysrq-trigger; sleep 60; }

export LAB_KERNEL
LAB_KERNEL=$(argument lab.kernel)
if [ "$LAB_KERNEL" = uml ]; then
	export DISK0=/dev/ubdb DISK1=/dev/ubdc
	channel=/dev/ttyS0
	stty -F $channel raw -echo
	mount -t hostfs none /lab -o "$(argument lab.folder)"
else
	modprobe -qa virtio_console 9p 9pnet_virtio
	export DISK0=/dev/vdb DISK1=/dev/vdc
	mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 lab /lab
	udevadm trigger --action=add 2>/dev/null
	for _ in {1..100}; do [ -c /dev/vport0p1 ] || [ -c /dev/vport1p1 ] || [ -c /dev/vport2p1 ] && break; sleep 0.1; done
	channel=$(echo /dev/vport?p1)
fi
# A guest that crashed or was told to reboot starts itself again: once is enough.
[ ! -e /lab/started ] || stop
touch /lab/started
sync /lab/started

busybox ifconfig lo up
echo lab >/proc/sys/kernel/hostname
/lib/systemd/systemd-udevd --daemon >/dev/null 2>&1
udevadm trigger --action=add --subsystem-match=block >/dev/null 2>&1
udevadm settle -t 20
modprobe -a dm_mod dm_snapshot dm_thin_pool loop

cd /root || stop
set -a
. /lab/environment
set +a
# What the kernel says from here on is about the script.
dmesg -C
setsid bash /lab/script </dev/null >$channel 2>&1
echo $? >/lab/code
sync /lab/code
dmesg >/dev/console
stop
