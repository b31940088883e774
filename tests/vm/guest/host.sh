#!/bin/sh
# Without an NVMe tier: the guest itself, its libraries, the client.
. ./guest/lib.sh
daemon
client store 1 32
all_of OK 32
client get 1 32
all_of OK 32
client match 1 40
is "match" "matched 32" "$said"
client store 1 32
all_of KVT_E_EXISTS 32
client get 2 4
all_of KVT_E_MISS 4
check "status" "$bin/kvtierctl" status --audit
daemon_stop
finish
