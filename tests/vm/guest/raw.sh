#!/bin/sh
# A raw namespace: format, foreign data, kill -9, restart, verify, damage.
. ./guest/lib.sh
start() {
	daemon --nvme_devices="$data" --nvme_admit_hits=0
}

# foreign data stay as they are: a file system whose superblock is in the first page, one whose is not, a RAID member
foreign() {
	head -c 2M "$data" | sha256sum > /tmp/before
	refuses "format over $1" "$bin/kvtierctl" format "$data" --segment=16M
	head -c 2M "$data" | sha256sum > /tmp/after
	check "$1 after the refusal" cmp /tmp/before /tmp/after
	dd if=/dev/zero of="$data" bs=1M count=2 conv=fsync 2> /dev/null
}
mke2fs -q -F -t ext4 "$data"
foreign ext4
printf '_BHRfS_M' | dd of="$data" bs=1 seek=65600 conv=fsync 2> /dev/null
foreign btrfs
printf '\374\116\053\251\001\000\000\000' | dd of="$data" bs=1 seek=4096 conv=fsync 2> /dev/null
foreign "a RAID member"
mkswap "$data" > /dev/null 2>&1
foreign swap

# the daemon does not touch it either
mke2fs -q -F -t ext4 "$data"
head -c 2M "$data" | sha256sum > /tmp/before
start
until_state failed
client put 1 4
all_of KVT_E_NO_DEVICE 4
client get 1 4
all_of OK 4
daemon_stop
head -c 2M "$data" | sha256sum > /tmp/after
check "ext4 after the daemon" cmp /tmp/before /tmp/after

format
start
until_state serving
is "ring" io_uring "$(device ring)"
is "bytes of a segment" 16777216 "$(device segment_bytes)"
refuses "format of a device in use" "$bin/kvtierctl" format "$data" --segment=16M --force
survives 80 start

# what is not durable by itself is, after a flush
client store 2 8
all_of OK 8
check "flush" "$bin/kvtierctl" flush
daemon_kill
start
until_state serving
client get 2 8
all_of OK 8
client get 1 80
all_of OK 80
check "verify by the daemon" "$bin/kvtierctl" verify
alive
daemon_stop
check "verify offline" "$bin/kvtierctl" verify "$data"

# a page in the middle of the first full segment turns to zeros: found, never served
head -c 4096 /dev/zero > /tmp/zeros
at=
for segment in $(seq 0 14); do
	mib=$((1 + 16 * segment + 8))
	if ! dd if="$data" bs=1M skip=$mib count=1 2> /dev/null | head -c 4096 | cmp -s - /tmp/zeros; then
		at=$mib
		break
	fi
done
check "there is a full segment" test -n "$at"
[ -n "$at" ] || finish
dd if=/tmp/zeros of="$data" bs=4096 seek=$((at * 256)) conv=fsync 2> /dev/null
refuses "verify of a damaged device" "$bin/kvtierctl" verify "$data"
start
until_state serving
client get 1 80
# what continues the damaged block is out of reach with it
at_least "blocks damaged" 1 "$((80 - $(count OK)))"
at_least "blocks before it" 20 "$(count OK)"
at_least "quarantined" 1 "$(counter nvme_quarantined)"
client get 2 8
all_of OK 8
alive
daemon_stop
finish
