#!/bin/bash
# kvtierctl against a real daemon with an NVMe file: what devices, ls, why, status and verify show of it before and after a kill, with a damaged record,
# and while it is detached. $BUILD as for ctl.sh. The last line counts.
set -u
export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1
. tests/lib/ctl.sh

start()
{
        "$B/kvtierd" --config="$dir/conf" --socket="$sock" --host_bytes=64M --slab_bytes=2M --prealloc_bytes=0 --huge_pages=no \
                --nvme_devices="$dir/nvme.kvt" --nvme_bytes=64M --nvme_segment_bytes=1M --nvme_admit_hits=0 --nvme_scrub_bytes_sec=0 \
                >> "$dir/log" 2>&1 &
        daemon=$!
        wait_for is_serving || bad "the device does not come into service: $(cat "$dir/log")"
}
is_serving()
{
        "$B/kvtierctl" --socket "$sock" devices --json | grep -q '"state":"serving"'
}
is_detached()
{
        "$B/kvtierctl" --socket "$sock" devices --json | grep -q '"state":"detached".*"capacity_bytes":0'
}
same()
{
        if cmp -s "$1" "$2"; then ok; else bad "$what: other bytes than those that were put"; fi
}

cat > "$dir/client.py" << 'PYTHON'
# Opens the space 'tiny': parts of 256 bytes.
import socket, struct, sys

s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
planes = b"".join(b"\x2a\x0a" + bytes([8, layer, 16, role, 24, 1, 32, 2, 40, 4]) for layer in (0, 1) for role in (0, 1)) # f16, 2 heads of 4 elements
for number, (kind, body) in enumerate(((1, b"\x08\2\x10\2\x1a\4test\x22\4ctl2"), (2, b"\x0a\4tiny\x18\4\x20\1" + planes)), 1):
    s.send(b"kv\2\0" + struct.pack("<HHII", kind, 0, number, len(body)) + body)
    reply = s.recv(1 << 17)
    if struct.unpack("<H", reply[4:6])[0] != kind | 0x8000:
        sys.exit(f"request {kind} failed: {reply[16:]!r}")
print("ready", flush=True)
sys.stdin.read()
PYTHON
touch "$dir/conf"
k1=00112233445566778899aabbccddeeff k2=10112233445566778899aabbccddeeff k3=20112233445566778899aabbccddeeff
for i in 1 2 3; do head -c 256 /dev/urandom > "$dir/b$i"; done

start
mkfifo "$dir/hold"
python3 "$dir/client.py" "$sock" < "$dir/hold" > "$dir/client.out" 2>&1 &
client=$!
exec 8> "$dir/hold"
wait_for grep -q ready "$dir/client.out" || bad "no space: $(cat "$dir/client.out")"

ctl 0 put tiny $k1 "$dir/b1" --durable
ctl 0 put tiny $k2 "$dir/b2" --parent $k1
ctl 0 put tiny $k3 "$dir/b3" --parent $k2 --durable # and the one before it
ctl 0 devices
has "^$dir/nvme\.kvt +serving +(io_uring|pread).* +63\.0 MiB +24\.0 KiB +[0-9.]+ % +63 +62 +3 " ' segments of 1\.0 MiB; found 0 records'
ctl 0 devices --json
json 'len(v["devices"]) == 1' 'v["devices"][0]["n_records"] == 3' 'v["devices"][0]["used_bytes"] == 3 * 8192' \
        'v["devices"][0]["segment_bytes"] == 1 << 20' 'v["devices"][0]["detail"] == ""' 'int(v["devices"][0]["uuid"], 16) > 0' \
        'sum(v["devices"][0]["write_usec"]) > 0'
ctl 0 ls tiny
has "^$k1 .* host\+nvme$" "^$k3 +$k2 .* host\+nvme$"
ctl 0 why tiny $k2
has '^The block is stored whole in the host and NVMe tiers'
ctl 0 tiers --json
json 'v["tiers"][1]["n_blocks"] == 3' 'v["tiers"][1]["used_bytes"] == 3 * 8192'
ctl 0 verify
has "^$dir/nvme\.kvt +serving +3 +0 +24\.0 KiB$"

# killed, and back with nobody having opened the space
kill -9 "$daemon"
exec 8>&-
wait "$daemon" "$client" 2> /dev/null
client=
start
ctl 0 devices --json
json 'v["devices"][0]["n_recovered"] == 3 and v["devices"][0]["n_torn"] == 0 and v["devices"][0]["recover_usec"] > 0'
ctl 0 ls tiny
has "^$k1 .* nvme$" "^$k3 +$k2 .* nvme$"
lacks 'host'
ctl 0 ls tiny --tree
has "^$k1 +3 +${k3:0:8} +768 B "
ctl 0 why tiny $k1 $k2 --json
json 'v["n_leading"] == 2' 'all(b["why"] == "resident" and b["block"]["tiers"] == ["nvme"] for b in v["blocks"])'
ctl 0 status
has '^nvme +\[' '24\.0 KiB used of 63\.0 MiB$' '3 parts, by '
ctl 0 get tiny $k2 --output "$dir/got"
same "$dir/got" "$dir/b2"
ctl 0 why tiny $k2
has 'in host\+nvme$'
ctl 0 verify --json
json 'v["n_bad"] == 0' 'v["devices"][0]["verified"] and v["devices"][0]["n_records"] == 3'

ctl 1 verify "$dir/nvme.kvt"
says 'in use by a daemon'
ctl 1 attach "$dir/nvme.kvt"
says 'it is attached \(KVT_E_EXISTS\)'
ctl 1 detach "$dir/other.kvt"
says 'KVT_E_NO_DEVICE'

# a damaged record, found while the daemon runs
offset=$(python3 -c "
import sys
p = open(sys.argv[1], 'rb').read().find(open(sys.argv[2], 'rb').read())
print(p - 4096)" "$dir/nvme.kvt" "$dir/b3") # its header is the page before
printf '\1\2\3' | dd of="$dir/nvme.kvt" bs=1 seek=$((offset + 4096 + 100)) conv=notrunc status=none
ctl 1 verify
has "^$dir/nvme\.kvt +serving +2 +1 "
says '1 record did not verify'
what="the log after a damaged record"
if grep -q "the record at byte $offset is damaged" "$dir/log"; then ok; else bad "$what: $(cat "$dir/log")"; fi
ctl 0 devices --json
json 'v["devices"][0]["n_quarantined"] == 1' 'v["devices"][0]["n_records"] == 2' 'v["devices"][0]["state"] == "serving"'
ctl 0 why tiny $k3
lacks 'stored whole'
ctl 1 get tiny $k3 --output "$dir/got"
ctl 0 get tiny $k1 --output "$dir/got"
same "$dir/got" "$dir/b1"
ctl 0 verify
ctl 0 flush

# detached: nobody's, so that it can be looked at from here
ctl 0 detach "$dir/nvme.kvt"
wait_for is_detached
ctl 0 devices
has "^$dir/nvme\.kvt +detached "
ctl 1 verify "$dir/nvme.kvt"
has "^byte $offset: .*payload"
says ': 1 problem$'
ctl 0 attach "$dir/nvme.kvt"
wait_for is_serving
ctl 0 devices --json
json 'v["devices"][0]["n_recovered"] == 2'
ctl 0 get tiny $k2 --output "$dir/got"
same "$dir/got" "$dir/b2"

kill "$daemon"
what="the end of the daemon"
if wait "$daemon"; then ok; else bad "$what: $(cat "$dir/log")"; fi
daemon=
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
