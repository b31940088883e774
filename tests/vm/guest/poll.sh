#!/bin/sh
# IOPOLL on a namespace that has poll queues.
. ./guest/lib.sh
start() {
	daemon --nvme_devices="$data" --nvme_admit_hits=0 --nvme_poll=yes
}
format
is "polling in the kernel" 1 "$(cat "/sys/block/${data##*/}/queue/io_poll")"
start
until_state serving
is "ring" "io_uring iopoll" "$(device ring)"
survives 80 start
is "ring" "io_uring iopoll" "$(device ring)"
alive
daemon_stop
check "verify offline" "$bin/kvtierctl" verify "$data"
finish
