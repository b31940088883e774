#!/bin/bash
# kvtierctl against a real daemon: each subcommand as text and as JSON, errors and exit codes, completion, top on a terminal.
#
# Spaces are opened by a small client here that speaks the protocol by itself, since kvtierctl opens none. The binaries are those in
# $BUILD (default build/gcc). The last line counts.
set -u
export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1
. tests/lib/ctl.sh

cat > "$dir/client.py" << 'PYTHON'
# A client of the protocol in proto/frame.h and kvtier.proto, as far as this test needs it.
import socket, struct, sys, time

def varint(n):
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])

def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value

class Client:
    def __init__(self, path, name):
        self.s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.s.connect(path)
        self.id = 0
        self.call(1, field(1, 2) + field(2, 2) + field(3, b"test") + field(4, name))
    def call(self, kind, body):
        self.id += 1
        self.s.send(b"kv\2\0" + struct.pack("<HHII", kind, 0, self.id, len(body)) + body)
        reply = self.s.recv(1 << 17)
        if struct.unpack("<H", reply[4:6])[0] != kind | 0x8000:
            sys.exit(f"request {kind} failed: {reply[16:]!r}")
        return reply[16:]
    def open(self, name, salt=b"", block_tokens=4, n_shards=1, planes=((0, 0), (0, 1), (1, 0), (1, 1))):
        body = field(1, name) + (field(2, salt) if salt else b"") + field(3, block_tokens) + field(4, n_shards)
        for layer, role in planes: # f16, 2 heads of 4 elements: 64 bytes in a block of 4 tokens
            body += field(5, field(1, layer) + field(2, role) + field(3, 1) + field(4, 2) + field(5, 4))
        self.call(2, body)

c = Client(sys.argv[1], b"ctl \x1b[31mtest")
c.open(b"tiny")
c.open(b"twin", b"one")
c.open(b"twin", b"two")
c.open(b"halves", n_shards=2)
c.open(b"odd $(id) name")
print("ready", flush=True)
time.sleep(600)
PYTHON

# without a daemon

ctl 3 status
says '^kvtierctl: status: cannot connect to kvtierd at .*sock: .*KVT_E_DISCONNECTED'
what="an unreachable socket in the environment"
KVTIER_SOCKET=$dir/none "$B/kvtierctl" ping > "$dir/out" 2> "$dir/err"
if [ $? = 3 ]; then ok; else bad "$what"; fi
ctl 2
says '^usage: kvtierctl'
ctl 2 frobnicate
says 'no command is called frobnicate' "Try 'kvtierctl help'"
ctl 2 status extra
says 'too many operands'
ctl 2 ls
says 'too few operands' '^usage: kvtierctl ls SPACE'
ctl 2 status --frob
says "unrecognized option '--frob'" "Try 'kvtierctl help status'"
ctl 2 ping --count x
says "takes a number, not 'x'"
ctl 2 ping --count
ctl 2 --timeout 0 ping
says 'time in seconds'
ctl 2 --timeout nan ping
ctl 0 version
has '^kvtierctl [0-9.]+, libkvtier [0-9.]+, protocol'
ctl 0 --version
has '^kvtierctl [0-9.]+'
ctl 0 version --json
json 'v["kvtierctl"] == v["libkvtier"]' 'v["protocol_min"] >= 1'
ctl 0 help
for c in $(sed -n 's/^COMMAND(\([a-z]*\),.*/\1/p' libclient/ctl/commands.def); do
        what="kvtierctl help"
        "$B/kvtierctl" help > "$dir/out"
        has "^  $c( |\$)"
        ctl 0 help "$c"
        has "^usage: kvtierctl $c"
        if awk 'length > 79 { exit 1 }' "$dir/out"; then ok; else bad "$what: lines of more than 79 columns"; fi
        ctl 0 "$c" --help
        has "^usage: kvtierctl $c"
        ctl 0 --json help "$c"
        json "v['name'] == '$c'"
done
ctl 0 --help
has '^usage: kvtierctl' '^global options'
ctl 0 help --json
json 'len(v["commands"]) > 10' 'len(v["global_options"]) == 5'
ctl 2 help frobnicate
if "$B/kvtierctl" version > /dev/full 2> "$dir/err"; then bad "kvtierctl version > /dev/full: succeeded"; else ok; fi

# with one

"$B/kvtierd" --socket="$sock" --host_bytes=64M --log_level=warning > "$dir/log" 2>&1 &
daemon=$!
if ! wait_for "$B/kvtierctl" --socket "$sock" ping -c 1; then
        cat "$dir/log"
        echo "the daemon did not start"
        echo "$passed passed, $((failed + 1)) failed"
        exit 1
fi
python3 "$dir/client.py" "$sock" > "$dir/ready" 2>&1 &
client=$!
if ! wait_for grep -q ready "$dir/ready"; then
        cat "$dir/ready"
        echo "the client did not connect"
        echo "$passed passed, $((failed + 1)) failed"
        exit 1
fi

ctl 0 ping -c 50
has '^50 pings of 16 bytes: min [0-9.]+  mean'
ctl 0 ping --count=3 --size=100000 --json
json 'v["n"] == 3 and v["bytes"] == 100000' '0 < v["min_usec"] <= v["p50_usec"] <= v["p99_usec"] <= v["max_usec"]'
ctl 0 ping --size 0
ctl 2 ping -c 0
ctl 2 ping --size 200000

ctl 0 status
has '^kvtierd [0-9.]+  pid '"$daemon"'  up ' '^host +\[\.*\] +0\.0 %  0 B used of 64\.0 MiB' 'spaces +5 ' 'hit ratio -'
ctl 0 status --json
json "v['pid'] == $daemon" 'v["n_spaces"] == 5' 'v["hit_ratio"] is None' 'v["tiers"][0]["capacity_bytes"] == 64 << 20' \
        'len(v["boot_token"]) == 32' '"puts" in v["counters"]'
ctl 0 status --audit
has '^audit ok: 0 blocks'
ctl 0 status --audit --json
json 'v["audited"] is True and v["audit_error"] == ""'
ctl 0 tiers
has '^TIER ' '^host '
ctl 0 tiers -q
if [ "$(cat "$dir/out")" = host ]; then ok; else bad "tiers -q"; fi
ctl 0 tiers --json
json 'v["tiers"][0]["name"] == "host"' 'v["tiers"][0]["used_ratio"] == 0'
ctl 0 tenants
tenant=$("$B/kvtierctl" --socket "$sock" tenants -q | head -1)
has '^TENANT ' "^$tenant "
ctl 0 tenants --json
json "v['tenants'][0]['name'] == '$tenant'" 'v["tenants"][0]["n_sessions"] >= 1'
ctl 0 sessions
has '^ *ID ' 'kvtierctl' 'ctl .\[31mtest'
ctl 0 sessions --json
json 'any(s["name"] == "kvtierctl" for s in v["sessions"])' 'all(s["pid"] > 0 for s in v["sessions"])'
ctl 0 sessions -q
has '^[0-9]+$'

ctl 0 spaces
has '^NAME +ID ' '^tiny +[0-9]+ ' '^odd \$\(id\) n'
ctl 0 spaces --json
json 'sorted(s["name"] for s in v["spaces"])[:2] == ["halves", "odd $(id) name"]' \
        'len(set(s["space"] for s in v["spaces"])) == 5' 'all("planes" not in s for s in v["spaces"])'
ctl 0 spaces tiny
has '^planes   4' 'layers 0-1 +k f16 2x4, v f16 2x4$' '^block    4 tokens, 1 part of 256 B' '^salt     none'
ctl 0 spaces tiny --json
json 'v["part_bytes"] == 256' '[p["role"] for p in v["planes"]] == ["k", "v", "k", "v"]' 'v["planes"][3]["offset"] == 192'
handle=$("$B/kvtierctl" --socket "$sock" spaces tiny --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["space"])')
ctl 0 spaces "$handle"
has '^space    tiny'
ctl 0 spaces set tiny hot=zbf cold=raw --json
json 'v == {"n_spaces": 1}'
ctl 0 spaces tiny --json
json 'v["hot"] == "zbf" and v["cold"] == "raw" and v["nvme"] == "raw" and v["max_rel_l2"] == 0'
ctl 0 spaces tiny
has '^fidelity lossless' '^codecs +hot zbf, cold raw, nvme raw'
ctl 0 spaces set tiny hot=raw
has '^1 space changed'
ctl 0 spaces set twin nvme=zbf --tenant '*' --json
json 'v == {"n_spaces": 2}'
ctl 0 spaces set twin nvme=raw
ctl 1 spaces set tiny hot=zbf nvme=kivi:bits=2
says KVT_E_FIDELITY
ctl 0 spaces tiny --json
json 'v["hot"] == "raw"'
ctl 1 spaces set nothing hot=raw
says KVT_E_UNKNOWN_SPACE
ctl 1 spaces set tiny hot=raw --tenant nobody-at-all
says KVT_E_DENIED
ctl 2 spaces set tiny
ctl 2 spaces set tiny warm=raw
says 'warm=raw'
ctl 2 spaces set tiny hot=lz77
says 'no codec of that name'
ctl 2 spaces set tiny hot=kivi:bits=5
says 'does not take that number'
ctl 2 spaces set tiny hot=xdelta
says 'no rung of a ladder'
ctl 2 spaces tiny twin
ctl 1 spaces nothing
says 'no space is called nothing'
ctl 1 spaces twin
says '2 spaces are called twin; give a handle:' ' tenant .*, salt [0-9a-f]{16}'

# put, get

a=00112233445566778899aabbccddeeff
b=0011ffffffffffffffffffffffffffff
c=abcdef00000000000000000000000001
d=abcdef00000000000000000000000002
head -c 256 /dev/urandom > "$dir/part"
head -c 256 /dev/urandom > "$dir/other"
ctl 1 get tiny $a -o "$dir/back"
says "block $a: .*KVT_E_MISS"
if [ -e "$dir/back" ]; then bad "a get that failed made a file"; else ok; fi
ctl 0 put tiny $a "$dir/part"
ctl 0 get tiny $a -o "$dir/back"
if cmp -s "$dir/part" "$dir/back"; then ok; else bad "get: not the bytes of put"; fi
if "$B/kvtierctl" -S "$sock" get tiny $a < /dev/null | cmp -s - "$dir/part"; then ok; else bad "get to a pipe"; fi
ctl 0 get tiny 00112 --output "$dir/back2" --json
json "v['key'] == '$a' and v['bytes'] == 256 and v['shard'] == 0"
ctl 0 get tiny $a --planes 1:2 -o "$dir/back2"
if tail -c +65 "$dir/part" | head -c 128 | cmp -s - "$dir/back2"; then ok; else bad "get --planes 1:2"; fi
ctl 0 get tiny $a -p 3:1 --output "$dir/back2" --json
json 'v["first_plane"] == 3 and v["n_planes"] == 1 and v["bytes"] == 64'
if tail -c 64 "$dir/part" | cmp -s - "$dir/back2"; then ok; else bad "get --planes 3:1"; fi
ctl 2 get tiny $a --planes 3:2 -o "$dir/back2"
says 'the space has 4 planes'
ctl 2 get tiny $a --planes 1 -o "$dir/back2"
ctl 2 get tiny $a --json
says 'needs --output'
ctl 1 put tiny $a "$dir/other"
says 'KVT_E_EXISTS'
ctl 0 get tiny $a -o "$dir/back"
if cmp -s "$dir/part" "$dir/back"; then ok; else bad "put of a stored key changed it"; fi
ctl 0 put tiny $a "$dir/other" --replace
ctl 0 get tiny $a -o "$dir/back"
if cmp -s "$dir/other" "$dir/back"; then ok; else bad "put --replace changed nothing"; fi
ctl 1 put tiny $b -
says '^kvtierctl: put: - has 0 bytes; a part of this space has 256'
ctl 1 put tiny $b "$B/kvtierctl"
says 'has more than the 256 bytes'
ctl 1 put tiny $b "$dir/nowhere"
says 'No such file'
ctl 2 put tiny 0011 "$dir/part"
says 'is no key'
ctl 2 put tiny $b "$dir/part" --shard 1
says '1 part a block'
ctl 1 put tiny $c "$dir/part" --parent $d
says 'KVT_E_NO_PARENT'
if "$B/kvtierctl" -S "$sock" put tiny $b - --parent 0011 --json < "$dir/part" > "$dir/out"; then ok; else bad "put from a pipe"; fi
json "v['key'] == '$b'"
ctl 1 get tiny 0011 -o "$dir/back"
says 'more than one key begins with 0011'
ctl 1 get tiny 7777 -o "$dir/back"
says 'no stored key begins with 7777'
ctl 2 get tiny 77 -o "$dir/back"
ctl 2 get tiny 00zz -o "$dir/back"
ctl 1 get tiny $a -o /nowhere/at/all
says 'No such file'
ctl 0 put halves $a "$dir/part" --shard 1
ctl 1 get halves $a -o "$dir/back"
ctl 0 put halves $a "$dir/other"
ctl 0 get halves $a -o "$dir/back" --shard 1
if cmp -s "$dir/part" "$dir/back"; then ok; else bad "get --shard 1"; fi
ctl 2 get halves $a -o "$dir/back" --shard 2

# ls: a chain of 40 that branches in two at its end
ctl 0 put tiny $c "$dir/part" -p $b
ctl 0 put tiny $d "$dir/part" -p $b
for i in $(seq 10 49); do
        p=$([ "$i" = 10 ] && echo $d || echo "dd0000000000000000000000000000$((i - 1))")
        "$B/kvtierctl" -S "$sock" put tiny "dd0000000000000000000000000000$i" "$dir/part" -p "$p" || bad "put $i"
done
ctl 0 ls tiny
has '^KEY +PARENT +BYTES' "^$a  -? +" "^$b  $a "
if [ "$(wc -l < "$dir/out")" = 45 ]; then ok; else bad "ls does not print 44 blocks"; fi
ctl 0 ls tiny -q
if [ "$(sort -u "$dir/out" | grep -Ec '^[0-9a-f]{32}$')" = 44 ]; then ok; else bad "ls -q does not print 44 keys"; fi
ctl 0 ls tiny --limit 7 -q
if [ "$(wc -l < "$dir/out")" = 7 ]; then ok; else bad "ls --limit 7 -q"; fi
ctl 0 ls tiny --json
json 'len(v["blocks"]) == 44' "[x['parent'] for x in v['blocks'] if x['key'] == '$a'] == ['']" 'all(x["bytes"] >= 256 for x in v["blocks"])'
ctl 0 ls tiny --tree
has '^FIRST KEY +BLOCKS' "^$a +2  ${b:0:8}" "^  $c +1 " "^  $d +41  dd000000"
if [ "$(wc -l < "$dir/out")" = 4 ]; then ok; else bad "ls --tree does not print 3 runs"; fi
ctl 0 ls tiny --tree --json
json 'len(v["runs"]) == 3' 'v["runs"][0]["n_blocks"] == 2 and v["runs"][0]["n_branches"] == 2' \
        'sorted(r["n_blocks"] for r in v["runs"]) == [1, 2, 41]' 'v["runs"][1]["depth"] == 1'
ctl 0 ls halves --json
json 'len(v["blocks"]) == 1' 'v["blocks"][0]["n_parts"] == 2'
ctl 1 ls nothing
ctl 1 ls twin

# why
ctl 0 why tiny $a
has "^$a  resident" '^[0-9.]+ K?i?B, 1 part, '
ctl 0 why tiny $a 7777777777777777777777777777777a --json
json '[x["why"] for x in v["blocks"]] == ["resident", "never"]' 'v["n_leading"] == 1' 'v["blocks"][0]["block"]["n_parts"] == 1' \
        '"block" not in v["blocks"][1]' 'all(x["text"] for x in v["blocks"])'
ctl 0 why tiny --tokens 1,2,3,4,5,6,7,8,9
has '^    0  tokens 0-3' '^    1  tokens 4-7' '^the first 0 of 2 blocks are resident'
key=$("$B/kvtierctl" -S "$sock" why tiny --tokens 1,2,3,4 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["blocks"][0]["key"])')
ctl 0 put tiny "$key" "$dir/part"
printf '1 2 3 4\n5 6 7 8\n' > "$dir/ids"
ctl 0 why tiny --tokens "@$dir/ids"
has '^the first 1 of 2 blocks are resident: a match covers 4 tokens'
ctl 0 why tiny -t 1,2,3,4 --json
json 'v["blocks"][0]["why"] == "resident"'
ctl 1 why tiny --tokens 1,2
says 'less than one block of 4'
ctl 2 why tiny --tokens 1,2,x,4
says 'no token id at character 5'
ctl 1 why tiny --tokens "@$dir/nowhere"
ctl 2 why tiny
ctl 2 why tiny $a --tokens 1,2,3,4
ctl 2 why tiny $a --salt 00
ctl 1 why tiny --tokens 1,2,3,4 --salt 6f6e65
says 'has another salt'
one=$("$B/kvtierctl" -S "$sock" spaces --json | python3 -c 'import hashlib, json, sys
d = hashlib.blake2b(b"one", digest_size=16).hexdigest()[:16]
print(next(s["space"] for s in json.load(sys.stdin)["spaces"] if s["salt_digest"] == d))')
ctl 1 why "$one" --tokens 1,2,3,4
says 'has a salt'
ctl 1 why "$one" --tokens 1,2,3,4 --salt 74776f
says 'has another salt'
ctl 0 why "$one" --tokens 1,2,3,4 --salt 6f6e65 --json
json "v['blocks'][0]['key'] != '$key'" 'v["blocks"][0]["why"] == "never"'
ctl 2 why "$one" --tokens 1,2,3,4 --salt 6f6
ctl 0 status --audit
has '^audit ok: 46 blocks'

# top
ctl 0 top -n 2 -d 0.1
has '^kvtierd [0-9.]+  pid' '^host +\[#' '^TENANT ' "^$tenant "
if [ "$(grep -c '^kvtierd ' "$dir/out")" = 2 ]; then ok; else bad "top -n 2: not two frames"; fi
if awk 'length > 80 { exit 1 }' "$dir/out"; then ok; else bad "top: lines of more than 80 columns"; fi
ctl 0 top -n 1 --json
json 'v["n_blocks"] == 46' 'v["tiers"][0]["n_blocks"] >= 46' 'v["per_sec"]["puts"] > 0' "v['tenants'][0]['per_sec']['evicted'] == 0" 'v["tiers"][0]["name"] == "host"'
cat > "$dir/terminal.py" << 'PYTHON'
# Runs a command on a terminal of its own; once it has printed two tables and a file exists, sends keys; prints what came; exits as the
# command does. terminal.py FILE KEYS COMMAND...
import os, pty, select, signal, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[3], sys.argv[3:])
out, sent, end = b"", False, time.time() + 20
while time.time() < end:
    if select.select([fd], [], [], 0.1)[0]:
        try:
            data = os.read(fd, 65536)
        except OSError:
            break
        if not data:
            break
        out += data
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    if not sent and out.count(b"TENANT") >= 2 and os.path.exists(sys.argv[1]):
        os.write(fd, eval("b'" + sys.argv[2] + "'"))
        sent = True
else:
    os.kill(pid, signal.SIGKILL)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
PYTHON
for keys in q '\x03'; do
        what="top on a terminal, key $keys"
        python3 "$dir/terminal.py" / "$keys" "$B/kvtierctl" --socket "$sock" top -d 0.2 > "$dir/out" 2> "$dir/err"
        if [ $? = 0 ]; then ok; else bad "$what: not exit 0"; fi
        has $'\033\\[\\?1049h' $'\033\\[\\?1049l' $'\033\\[\\?25h'
done
what="get on a terminal"
python3 "$dir/terminal.py" / '' "$B/kvtierctl" --socket "$sock" get tiny $a > "$dir/out" 2>&1
if [ $? = 2 ] && grep -q 'raw bytes' "$dir/out"; then ok; else bad "$what is not refused"; fi

# another user sees nothing of this one
if [ "$(id -u)" = 0 ] && command -v setpriv > /dev/null; then
        chmod 755 "$dir"
        other="setpriv --reuid=4242 --regid=4242 --clear-groups $B/kvtierctl --socket $sock"
        what="another user"
        $other spaces > "$dir/out" 2> "$dir/err" || bad "$what: spaces"
        lacks tiny
        $other get "$handle" $a > "$dir/out" 2> "$dir/err"
        if [ $? = 1 ] && ! [ -s "$dir/out" ]; then ok; else bad "$what got a part"; fi
        $other purge --tenant "$tenant" --yes > "$dir/out" 2> "$dir/err"
        if [ $? = 1 ]; then ok; else bad "$what could purge"; fi
        $other tenants > "$dir/out" 2> "$dir/err"
        has 'uid:4242'
        lacks "^$tenant "
else
        echo "skipped: another user (needs root and setpriv)"
        skipped=1
fi

# drop, purge
ctl 0 drop tiny $c
ctl 1 get tiny $c -o "$dir/back"
ctl 0 why tiny $c
has "^$c  dropped" ' ago|dropped, just now'
ctl 1 drop tiny $c
says "block $c: .*KVT_E_MISS"
ctl 0 drop tiny $d "$key" --json
json '[x["status"] for x in v["dropped"]] == ["OK", "OK"]'
ctl 0 ls tiny -q
if [ "$(wc -l < "$dir/out")" = 2 ]; then ok; else bad "drop did not take what continues a block"; fi
ctl 2 purge
ctl 2 purge tiny --tenant x
ctl 2 purge tiny
says 'this would take 2 blocks \(.*\) of space tiny .* --yes'
ctl 0 ls tiny -q
if [ "$(wc -l < "$dir/out")" = 2 ]; then ok; else bad "purge without --yes did something"; fi
ctl 0 purge tiny --yes
has '^purged 2 blocks'
ctl 0 why tiny $a
has "^$a  purged"
ctl 2 purge --tenant "$tenant"
says 'this would take 1 block \('
ctl 1 purge --tenant nobody-known --yes
says 'no tenant is called nobody-known'
ctl 0 purge --tenant "$tenant" -y --json
json 'v["n_blocks"] == 1' 'v["bytes"] > 0'
ctl 0 status --audit --json
json 'v["n_blocks"] == 0 and v["n_leases"] == 0' 'v["tiers"][0]["used_bytes"] == 0' 'v["tiers"][0]["n_blocks"] == 0'

# completion
ctl 0 completion bash
if bash -n "$dir/out"; then ok; else bad "the bash completion is no bash"; fi
cp "$dir/out" "$dir/completion.bash"
ctl 0 completion bash --json
json 'v["shell"] == "bash"' '"complete -F" in v["script"]'
ctl 0 completion zsh
has '^#compdef kvtierctl'
if command -v zsh > /dev/null; then
        if zsh -n "$dir/out"; then ok; else bad "the zsh completion is no zsh"; fi
fi
ctl 2 completion fish
ctl 0 put tiny $a "$dir/part"
complete_words()
{
        bash -c 'PATH=$1:$PATH; . "$2"; compopt() { :; }; shift 2
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _kvtierctl; printf "<%s>" "${COMPREPLY[@]}"' - "$B" "$dir/completion.bash" kvtierctl "$@"
}
expect_completion()
{
        local want=$1 got
        shift
        got=$(complete_words "$@")
        if [ "$got" = "$want" ]; then ok; else bad "completion of '$*' is $got, not $want"; fi
}
expect_completion '<status>' st
expect_completion '<--audit>' status --a
expect_completion '<tiny>' --socket "$sock" ls ti
expect_completion '<odd\ \$\(id\)\ name>' -S = "$sock" ls odd
expect_completion "<$a>" -S "$sock" get tiny 0011
expect_completion '<zsh>' completion z
expect_completion "<$dir/part>" format "$dir/par"
expect_completion '<--durable>' put --d
expect_completion '<>' ping --count ''

# a daemon that goes away, and one that comes back
"$B/kvtierctl" --socket "$sock" top -d 0.1 > "$dir/out" 2> "$dir/err" &
holder=$!
python3 "$dir/terminal.py" "$dir/quit" q "$B/kvtierctl" --socket "$sock" top -d 0.1 > "$dir/screen" 2> "$dir/err" &
terminal=$!
wait_for grep -q TENANT "$dir/out"
wait_for grep -q TENANT "$dir/screen"
kill "$client"
kill "$daemon"
wait "$daemon"
code=$?
daemon=
if [ $code = 0 ]; then ok; else bad "the daemon exits $code on SIGTERM"; fi
what="top without a daemon"
wait $holder
if [ $? = 3 ]; then ok; else bad "$what: not exit 3"; fi
holder=
ctl 3 ping
wait_for grep -q KVT_E_DISCONNECTED "$dir/screen"
"$B/kvtierd" --socket="$sock" --host_bytes=32M --log_level=warning >> "$dir/log" 2>&1 &
daemon=$!
wait_for "$B/kvtierctl" --socket "$sock" ping -c 1
wait_for grep -q "of 32.0 MiB" "$dir/screen"
touch "$dir/quit"
what="top when the daemon comes back"
wait $terminal
code=$?
cp "$dir/screen" "$dir/out"
if [ $code = 0 ]; then ok; else bad "$what: exit $code"; fi
has 'KVT_E_DISCONNECTED' 'of 32\.0 MiB'

if [ $skipped = 0 ]; then
        echo "$passed passed, $failed failed"
else
        echo "$passed passed, $failed failed, $skipped skipped"
fi
[ $failed = 0 ]
