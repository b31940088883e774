#!/bin/bash
# kvtierctl and NVMe devices: format, and verify without a daemon; what is asked of a daemon, against one made here, which has whatever devices a
# test wants. $BUILD as for ctl.sh. The last line counts.
set -u
export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1
. tests/lib/ctl.sh

# format, and verify of what no daemon uses

ctl 0 format "$dir/device" --size=40M --segment 4M
has ': 9 segments of 4\.0 MiB, uuid [0-9a-f]{32}$'
if [ "$(stat -c '%a %s' "$dir/device")" = "600 41943040" ] && [ "$(stat -c %b "$dir/device")" -lt 100 ]; then ok; else
        bad "format: not a sparse file of mode 0600: $(stat "$dir/device")"
fi
ctl 0 verify "$dir/device"
has '^0 of 9 segments used, 0 records of 0 B verified, 0 torn'
ctl 0 verify "$dir/device" --json
json 'v["n_segments"] == 9 and v["n_used_segments"] == 0 and v["n_records"] == 0 and v["n_torn"] == 0' 'v["problems"] == []'
ctl 1 format "$dir/device" --segment=4M
says 'has a kvtier device in it; --force would overwrite'
cp "$dir/device" "$dir/before"
ctl 1 format "$dir/device" --size=40M --segment=4M
if cmp -s "$dir/device" "$dir/before"; then ok; else bad "a format that was refused changed something"; fi
ctl 0 format "$dir/device" --force --segment=8M --json
json 'v["n_segments"] == 4 and v["segment_bytes"] == 8 << 20 and v["device_bytes"] == 40 << 20' 'len(v["uuid"]) == 32'
if cmp -s "$dir/device" "$dir/before"; then bad "format --force changed nothing"; else ok; fi
ctl 0 verify "$dir/device"
has '^0 of 4 segments used'
printf x | dd of="$dir/device" bs=1 seek=524300 conv=notrunc status=none
ctl 1 verify "$dir/device"
has '^byte 524288: the superblock: it does not match its checksum$'
says ': 1 problem$'
printf x | dd of="$dir/device" bs=1 seek=$((1048576 + 8388608)) conv=notrunc status=none
truncate -s 30M "$dir/device"
ctl 1 verify "$dir/device" --json
json '[p["offset"] for p in v["problems"]] == [524288, 30 << 20, (1 << 20) + (8 << 20)]' 'v["n_problems"] == 3' \
        'all(p["text"] for p in v["problems"])'
ctl 0 format "$dir/device" -f --size 40M --segment 8M
ctl 0 verify "$dir/device"

# other data is not written over
head -c 3000000 /dev/zero > "$dir/foreign"
printf '\123\357' | dd of="$dir/foreign" bs=1 seek=1080 conv=notrunc status=none
cp "$dir/foreign" "$dir/before"
ctl 1 format "$dir/foreign" --segment 1M
says 'has an ext file system in it'
printf '\0\0' | dd of="$dir/foreign" bs=1 seek=1080 conv=notrunc status=none
printf x | dd of="$dir/foreign" bs=1 seek=1048575 conv=notrunc status=none
cp "$dir/foreign" "$dir/before"
ctl 1 format "$dir/foreign" --segment 1M
says 'has data in it'
if cmp -s "$dir/foreign" "$dir/before"; then ok; else bad "format wrote over other data"; fi
ctl 1 verify "$dir/foreign"
has '^byte 0: no superblock: nothing is there' '^byte 524288: no superblock'
printf '\0' | dd of="$dir/foreign" bs=1 seek=1048575 conv=notrunc status=none
ctl 1 format "$dir/foreign" --segment 1M
says 'is too small: .*; there have to be 3 segments of 1\.0 MiB, and'
truncate -s 5000000 "$dir/foreign"
ctl 0 format "$dir/foreign" --segment 1M # all of it is zero
has ': 3 segments of 1\.0 MiB'
if [ "$(stat -c %s "$dir/foreign")" = 5000000 ]; then ok; else bad "format changed the size of a file without being told"; fi

# in use
exec 9< "$dir/device"
flock 9
ctl 1 format "$dir/device" --force
says 'in use by a daemon'
ctl 1 verify "$dir/device"
says 'in use by a daemon'
flock --shared 9
ctl 0 verify "$dir/device"
ctl 1 format "$dir/device" --force
exec 9<&-

ctl 1 format "$dir/nowhere/device"
says 'cannot create'
ctl 1 format "$dir"
says 'neither a file nor a block device'
ctl 1 format /dev/zero --force
ctl 1 verify "$dir/nowhere"
says 'No such file'
ctl 2 format "$dir/new" --segment 3000000
says 'is whole MiB'
ctl 2 format "$dir/new" --size 64M
says 'no room for 3 segments'
ctl 2 format "$dir/new" --size 64X
says "takes a number of bytes, such as 64M or 4G, not '64X'"
if [ -e "$dir/new" ]; then bad "a format that failed made a file"; else ok; fi
ctl 3 verify
for c in devices flush "attach $dir/device" "detach $dir/device"; do
        # shellcheck disable=SC2086
        ctl 3 $c
done

# a daemon

cat > "$dir/fake.py" << 'PYTHON'
# A daemon that knows hello, devices, and what to do with them: fake.py SOCKET FOLDER. Each list of devices is the next line of FOLDER/devices (a
# Python list of dicts of field numbers of DeviceEntry; the last line stays). Requests for devices are appended to FOLDER/asked, and are refused
# with the code in FOLDER/refuse.
import os, socket, struct, sys

def varint(n):
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])

def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, list):
        return field(number, b"".join(varint(v) for v in value))
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value

def parse(body):
    out, at = {}, 0
    def number():
        nonlocal at
        n = shift = 0
        while True:
            n |= (body[at] & 127) << shift
            shift += 7
            at += 1
            if body[at - 1] < 128:
                return n
    while at < len(body):
        key = number()
        n = number()
        if key & 7 == 2:
            out[key >> 3] = body[at:at + n]
            at += n
        else:
            out[key >> 3] = n
    return out

path, folder = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(path)
listener.listen()
while True:
    s, _ = listener.accept()
    while True:
        p = s.recv(1 << 17)
        if not p:
            break
        kind, _, number, n = struct.unpack("<HHII", p[4:16])
        q, reply = parse(p[16:]), b""
        if kind == 1:
            reply = field(1, 2) + field(2, b"0123456789abcdef") + field(5, 10000000)
        elif kind == 16:
            tier = lambda *values: field(11, b"".join(field(i + 1, v) for i, v in enumerate(values)))
            reply = tier("host", 64 << 20, 32 << 20, 16 << 20, 15 << 20, 2, 0, "thp", 77)
            reply += tier("nvme", 1 << 40, 0, 1 << 38, 1 << 37, 0, 0, "io_uring", 123456)
        elif kind == 17:
            assert q == {1: 4}, q
            lines = open(folder + "/devices").read().splitlines()
            for d in eval(lines[0]):
                reply += field(6, b"".join(field(k, v) for k, v in d.items()))
            if len(lines) > 1:
                open(folder + "/devices", "w").write("\n".join(lines[1:]))
        elif kind == 22:
            open(folder + "/asked", "a").write(f"{q.get(1, 0)} {q.get(2, b'').decode()}\n")
            if os.path.exists(folder + "/refuse"):
                kind = 0x7fff
                reply = field(1, int(open(folder + "/refuse").read())) + field(2, "not\x1b so")
        else:
            sys.exit(f"unknown request {kind}")
        s.send(b"kv\2\0" + struct.pack("<HHII", kind | 0x8000, 0, number, len(reply)) + reply)
    s.close()
PYTHON
echo '[]' > "$dir/devices"
python3 "$dir/fake.py" "$sock" "$dir" > "$dir/log" 2>&1 &
daemon=$!
wait_for "$B/kvtierctl" --socket "$sock" devices
asked()
{
        if [ "$(cat "$dir/asked" 2> /dev/null)" = "$1" ]; then ok; else bad "$what: asked $(cat "$dir/asked"), not $1"; fi
        rm -f "$dir/asked"
}

ctl 0 devices
has '^PATH +STATE +RING '
ctl 0 devices --json
json 'v["devices"] == []'
cat > "$dir/devices" << 'PYTHON'
[{1: "/dev/nvme0n1", 2: "serving", 4: "io_uring", 5: bytes(range(16)), 6: 1 << 40, 7: 64 << 20, 8: 16383, 9: 8000, 10: 1 << 39, 11: 4711, 12: 3, 14: 4700, 15: 1, 16: 12300, 17: 5 << 30, 18: 2, 20: [0, 0, 10, 88, 2, 0], 21: [0, 0, 0, 0, 7, 0]}, {1: "/srv/x\x1b[2J", 2: "failed", 3: "Input/output\nerror", 5: b"", 6: 0, 13: 9}]
PYTHON
ctl 0 devices
has '^/dev/nvme0n1 +serving +io_uring +1\.0 TiB +512\.0 GiB +50\.0 % +16383 +8000 +4711 +3 +0 +0 +64 us +128 us +128 us +128 us$' \
        '^/dev/nvme0n1  uuid 000102030405060708090a0b0c0d0e0f$' 'found 4700 records in 12\.3 ms, 1 torn' '2 passes, 5\.0 GiB of the next' \
        '^  < +64 us +88 \[#{18}\] +0 ' '^  < +128 us +2 \[#\.{17}\] +7 \[#\.{17}\]$' '^/srv/x\?\[2J +failed .* - +0 +0 +0 +0 +9 +0 +- +- +- +-$' \
        '^  failed: Input/output\?error$'
ctl 0 devices --json
json 'v["devices"][0]["read_usec"] == [0, 0, 10, 88, 2, 0]' 'v["devices"][0]["used_ratio"] == 0.5' 'v["devices"][0]["read_p50_usec"] == 64' \
        'v["devices"][1]["used_ratio"] is None and v["devices"][1]["read_p99_usec"] is None' 'v["devices"][1]["n_errors"] == 9'
ctl 0 devices -q
if [ "$(head -1 "$dir/out")" = /dev/nvme0n1 ] && [ "$(wc -l < "$dir/out")" = 2 ]; then ok; else bad "devices -q"; fi

# the second tier
ctl 0 status
has '^host +\[#{8}\.{22}\]  25\.0 % ' '^ +15\.0 MiB payload, 32\.0 MiB in 2 slabs, pages thp$' \
        '^nvme +\[#{8}\.{22}\]  25\.0 %  256\.0 GiB used of 1\.0 TiB$' '^ +128\.0 GiB payload, 123456 parts, by io_uring$'
ctl 0 status --json
json '[t["n_blocks"] for t in v["tiers"]] == [77, 123456]' 'v["tiers"][1]["pages"] == "io_uring"'
ctl 0 tiers
has '^TIER .* PARTS$' '^nvme +1\.0 TiB +256\.0 GiB +25\.0 % .* io_uring +123456$'
ctl 0 tiers --json
json 'v["tiers"][1]["used_ratio"] == 0.25'

# the path is the one from here, not from where the daemon runs; links stay
ctl 0 attach /dev/disk/by-id/../x
asked '0 /dev/disk/by-id/../x'
ctl 0 attach ./x
asked "0 $PWD/x"
ctl 0 detach some/x --json
json "v['detached'] == '$PWD/some/x'"
asked "1 $PWD/some/x"
ctl 0 attach x --json
json "v['attached'] == '$PWD/x'"
asked "0 $PWD/x"
# how it ended is waited for
cp "$dir/devices" "$dir/before"
cat > "$dir/devices" << 'PYTHON'
[{1: "/x", 2: "opening"}, {1: "/y", 2: "failed", 3: "other"}]
[{1: "/x", 2: "failed", 3: "it is blank"}]
PYTHON
ctl 1 attach /x
says '/x: it is blank$'
cat > "$dir/devices" << 'PYTHON'
[{1: "/x", 2: "opening"}]
[{1: "/x", 2: "recovering"}]
PYTHON
ctl 0 attach /x
cat > "$dir/devices" << 'PYTHON'
[{1: "/x", 2: "draining", 3: "being detached"}]
[{1: "/x", 2: "draining", 3: "being detached"}]
[{1: "/x", 2: "detached"}]
PYTHON
ctl 0 detach /x
echo '[{1: "/x", 2: "draining", 3: "being detached"}]' > "$dir/devices"
ctl 1 detach /x --timeout 0.2
says '/x is still being detached'
cp "$dir/before" "$dir/devices"
rm -f "$dir/asked"
ctl 2 attach ''
says 'the path is empty'
ctl 0 flush
if [ -s "$dir/out" ]; then bad "flush: says something"; else ok; fi
asked '3 '
ctl 0 flush --json
json 'v["flushed"] is True'
asked '3 '
echo 33 > "$dir/refuse"
ctl 1 attach /x
says 'not\? so \(KVT_E_LOCKED\)'
ctl 1 flush
ctl 1 verify
says 'KVT_E_LOCKED'
rm "$dir/refuse" "$dir/asked"

# verify: waits for the pass of each device that is in service
cat > "$dir/devices" << 'PYTHON'
[{1: "/a", 2: "serving", 11: 10, 17: 5, 18: 4, 19: 1}, {1: "/b", 2: "serving", 11: 20}, {1: "/c", 2: "detached"}]
[{1: "/a", 2: "serving", 11: 10, 17: 9, 18: 4, 19: 1}, {1: "/b", 2: "serving", 11: 20, 18: 1}, {1: "/c", 2: "detached"}]
[{1: "/a", 2: "serving", 11: 10, 18: 5, 19: 1}, {1: "/b", 2: "serving", 11: 21, 18: 1}, {1: "/c", 2: "detached"}]
PYTHON
cp "$dir/devices" "$dir/good"
ctl 0 verify
has '^PATH +STATE +RECORDS +BAD' '^/a +serving +10 +0 ' '^/b +serving +21 +0 ' '^/c +detached '
asked '2 '
cp "$dir/good" "$dir/devices"
ctl 0 verify --json
json 'v["n_bad"] == 0' '[d["verified"] for d in v["devices"]] == [True, True, False]' '[d["n_records"] for d in v["devices"]] == [10, 21, 0]'
sed 's/18: 5, 19: 1/18: 5, 19: 3/' "$dir/good" > "$dir/devices"
ctl 1 verify
has '^/a +serving +10 +2 '
says '2 records did not verify'
cat > "$dir/devices" << 'PYTHON'
[{1: "/a", 2: "serving", 18: 4}, {1: "/b", 2: "serving"}]
[{1: "/a", 2: "serving", 18: 5}, {1: "/b", 2: "failed"}]
PYTHON
ctl 1 verify
has '^/b +failed '
says '1 device could not be read to the end'
echo '[]' > "$dir/devices"
ctl 1 verify
says 'the daemon has no devices'
kill -0 "$daemon" || bad "the daemon of this test: $(cat "$dir/log")"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
