#!/bin/sh
# Media errors, injected by the emulated device. The kind comes as $1; 80 durable blocks of seed 1 are there.
. ./guest/lib.sh
start() {
	daemon --nvme_devices="$data" --nvme_admit_hits=0
}
# The device is of no use for writing: a durable put is stored, but says that it is not durable.
not_durable() {
	client put 2 16
	is "durable puts refused" 16 "$(($(count KVT_E_IO) + $(count KVT_E_NO_DEVICE)))"
	client get 2 16
	all_of OK 16
	client match 2 16
	is "match" "matched 16" "$said"
}

start
case $1 in
write | flush)
	until_state serving draining failed # it may write as it starts
	not_durable
	at_least "errors counted" 1 "$(counter nvme_errors)"
	is "still serving for writes" 0 "$([ "$(device state)" = serving ] && [ "$(device n_errors)" = 0 ] && echo 1 || echo 0)"
	# once more: nothing waits for the device for ever
	client put 3 8
	is "durable puts refused" 8 "$(($(count KVT_E_IO) + $(count KVT_E_NO_DEVICE)))"
	client get 3 8
	all_of OK 8
	# what is there: right, or an error (client.c says 3 for wrong bytes)
	client get 1 80
	;;
sectors)
	# a bad sector in the middle of each segment: the block there is an error, what continues it is out of reach with it, those before are served
	until_state serving
	client get 1 80
	at_least "blocks before it" 20 "$(count OK)"
	at_least "blocks that cannot be read" 1 "$((80 - $(count OK)))"
	at_least "errors counted" 1 "$(($(counter nvme_errors) + $(counter nvme_quarantined)))"
	client store 2 16
	all_of OK 16
	client get 2 16
	all_of OK 16
	;;
read)
	until_state failed
	not_durable
	client get 1 80
	all_of KVT_E_MISS 80
	;;
esac
check "status" "$bin/kvtierctl" status --audit
alive
daemon_stop
finish
