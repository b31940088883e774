#!/bin/sh
# Two daemons, one device: the second serves from memory, says why, and gets the device when the first has gone.
. ./guest/lib.sh
format
daemon --nvme_devices="$data" --nvme_admit_hits=0
first=$pid first_socket=$KVTIER_SOCKET
until_state serving
client put 1 16
all_of OK 16

KVTIER_SOCKET=/run/kvtier/second.sock
first_log=$log
log=/tmp/second.log
: > $log
daemon --nvme_devices="$data" --nvme_admit_hits=0
until_state failed
check "its log" grep -qi locked $log
device detail > /tmp/detail
check "its device's detail" grep -qi locked /tmp/detail
client put 2 16
all_of KVT_E_NO_DEVICE 16
client get 2 16
all_of OK 16
client get 1 16
all_of KVT_E_MISS 16

KVTIER_SOCKET=$first_socket
is "the first's device" serving "$(device state)"
client put 3 16
all_of OK 16
second=$pid
pid=$first
daemon_stop

KVTIER_SOCKET=/run/kvtier/second.sock
pid=$second
check "attach" "$bin/kvtierctl" attach "$data"
until_state serving
client get 1 16
all_of OK 16
client get 3 16
all_of OK 16
client put 4 16
all_of OK 16
daemon_stop
[ $failed = 0 ] || tail -n 30 $first_log | sed 's/^/    first: /'
finish
