#!/bin/sh
# io_uring is forbidden by a system call filter of systemd, and by sysctl where the kernel knows that (6.6): threads with pread and pwrite serve.
. ./guest/lib.sh
start() {
	systemctl reset-failed kvtierd.service 2> /dev/null
	# shellcheck disable=SC2086
	systemd-run --quiet --unit=kvtierd --service-type=exec $filter -p StandardOutput=append:$log -p StandardError=append:$log \
		"$bin/kvtierd" --socket="$KVTIER_SOCKET" --host_bytes=128M --prealloc_bytes=0 --nvme_devices="$data" --nvme_admit_hits=0
	pid=$(systemctl show --value -p MainPID kvtierd.service)
	answers
}
# it is not a child of this shell
daemon_kill() {
	systemctl kill -s KILL kvtierd.service
	while [ "$(systemctl show --value -p ActiveState kvtierd.service)" = active ]; do
		sleep 0.1
	done
}
round() {
	format
	start
	until_state serving
	is "ring with $1" pread "$(device ring)"
	survives 80 start
	is "ring with $1" pread "$(device ring)"
	alive
	systemctl stop kvtierd.service
	check "verify offline" "$bin/kvtierctl" verify "$data"
}

filter="-p SystemCallFilter=~io_uring_setup -p SystemCallErrorNumber=EPERM"
round "a filter that says EPERM"
filter="-p SystemCallFilter=~io_uring_setup -p SystemCallErrorNumber=ENOSYS"
round "a filter that says ENOSYS"
if [ -e /proc/sys/kernel/io_uring_disabled ]; then
	filter=
	echo 2 > /proc/sys/kernel/io_uring_disabled
	round "kernel.io_uring_disabled"
	echo 0 > /proc/sys/kernel/io_uring_disabled
fi
finish
