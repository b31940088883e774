#!/bin/sh
# The device is pulled out under load: nothing hangs, nothing is lost from memory, the daemon stays up.
. ./guest/lib.sh
n=800
format
daemon --nvme_devices="$data" --nvme_admit_hits=0 --host_bytes=384M
until_state serving
"$bin/client" put 1 $n > /tmp/load 2>&1 &
load=$!
for _ in $(seq 600); do
	[ "$(counter durable)" -lt 40 ] || break
	sleep 0.05
done
at_least "durable before" 40 "$(counter durable)"
echo 1 > "$pci/remove"
wait $load
is "the load's exit status" 0 $?
said=$(cat /tmp/load)
echo "$said"
durable=$(count OK)
at_least "durable puts before" 40 "$durable"
at_least "puts after" 1 "$(($(count KVT_E_IO) + $(count KVT_E_NO_DEVICE)))"
is "puts in all" $n "$(($(count OK) + $(count KVT_E_IO) + $(count KVT_E_NO_DEVICE)))"
check "the device is gone" test ! -e "$data"
alive
until_state failed draining # which one depends on whether it was read, too
at_least "errors counted" 1 "$(counter nvme_errors)"
client get 1 $n
all_of OK $n
client put 2 16
is "durable puts refused" 16 "$(($(count KVT_E_IO) + $(count KVT_E_NO_DEVICE)))"
check "status" "$bin/kvtierctl" status --audit

# plugged in again, maybe under another name, it comes back with what was durable
echo 1 > /sys/bus/pci/rescan
for _ in $(seq 100); do
	find_data && break
	sleep 0.1
done
check "the device is back" test -b "$data"
check "attach" "$bin/kvtierctl" attach "$data"
until_state serving
at_least "records recovered" "$durable" "$(device n_recovered)"
client put 3 16
all_of OK 16
daemon_stop
finish
