#!/bin/sh
# shellcheck disable=SC2034
# For the cases, which run in the guest as root under dash: . ./guest/lib.sh, checks, finish.
#
# A check counts as passed or failed and says what it was when it fails. The daemon's log is printed when a case fails. Nothing is waited for longer than a
# minute, so that a daemon that hangs fails the case and leaves its log.
set -u
bin=/payload/bin
log=/tmp/kvtierd.log
out=/tmp/out
passed=0
failed=0
pid=
data=
export KVTIER_SOCKET=/run/kvtier/kvtier.sock
mkdir -p /run/kvtier
: > $log

# the device under test, found by the serial number of its controller: its block device, and the controller's PCI device. False: it is not there.
find_data() {
	for namespace in /sys/block/nvme*n*; do
		if [ "$(tr -d ' ' < "$namespace/device/serial")" = KVTIERDATA ]; then
			data=/dev/${namespace##*/}
			pci=$(readlink -f "$namespace/device/device")
			[ -b "$data" ]
			return
		fi
	done
	false
}

ok() {
	passed=$((passed + 1))
}
bad() {
	failed=$((failed + 1))
	echo "FAIL: $*"
	[ ! -s $out ] || head -n 20 $out | sed 's/^/    /'
}
# check WHAT COMMAND...: it succeeds; refuses: it fails, as a program does (a signal is no refusal), and says why. What it prints is in $out.
check() {
	what=$1
	shift
	timeout 60 "$@" > $out 2>&1 < /dev/null
	status=$?
	if [ $status = 0 ]; then ok; else bad "$what: exit status $status of $*"; fi
}
refuses() {
	what=$1
	shift
	timeout 60 "$@" > $out 2>&1 < /dev/null
	status=$?
	if [ $status != 0 ] && [ $status -lt 124 ] && [ -s $out ]; then ok; else bad "$what: exit status $status of $*"; fi
}
# is WHAT WANTED GOT; at_least WHAT WANTED GOT
is() {
	: > $out
	if [ "$2" = "$3" ]; then ok; else bad "$1: '$3', not '$2'"; fi
}
at_least() {
	: > $out
	if [ "$3" -ge "$2" ] 2> /dev/null; then ok; else bad "$1: '$3', not at least $2"; fi
}

# daemon ARGUMENT...: starts one, waits until it answers; daemon_kill: kill -9; daemon_stop: SIGTERM, must end well
daemon() {
	"$bin/kvtierd" --socket="$KVTIER_SOCKET" --host_bytes=128M --prealloc_bytes=0 "$@" >> $log 2>&1 < /dev/null &
	pid=$!
	answers
}
answers() {
	until=$(($(date +%s) + 60))
	while [ "$(date +%s)" -lt $until ]; do
		if "$bin/kvtierctl" ping -c 1 > $out 2>&1; then
			ok
			return
		fi
		kill -0 "$pid" 2> /dev/null || break
		sleep 0.1
	done
	bad "the daemon does not answer"
	finish # all that follows would fail, too
}
daemon_kill() {
	kill -9 "$pid"
	wait "$pid" 2> /dev/null
}
daemon_stop() {
	: > $out
	kill "$pid"
	(sleep 60 && kill -9 "$pid") 2> /dev/null &
	watch=$!
	wait "$pid"
	status=$?
	kill $watch 2> /dev/null
	if [ $status = 0 ]; then ok; else bad "the daemon ends with status $status"; fi
}
alive() {
	: > $out
	if kill -0 "$pid" 2> /dev/null; then ok; else bad "the daemon died"; fi
}

# device FIELD: of the device under test; counter NAME
device() {
	"$bin/kvtierctl" --json devices 2>&1 | jq -r --arg path "$data" ".devices[] | select(.path == \$path) | .$1" 2>&1
}
counter() {
	"$bin/kvtierctl" --json status 2>&1 | jq -r ".counters.$1" 2>&1
}
# until_state STATE...: the device gets into one of these
until_state() {
	state=
	until=$(($(date +%s) + 60))
	while [ "$(date +%s)" -lt $until ]; do
		state=$(device state)
		for want in "$@"; do
			if [ "$state" = "$want" ]; then
				ok
				return
			fi
		done
		sleep 0.1
	done
	device detail > $out
	bad "the device's state is '$state', not $*"
	finish
}

# client WHAT SEED N: as in client.c; its output is in $said
client() {
	said=$(timeout 60 "$bin/client" "$@" 2>&1)
	status=$?
	echo "$said" > $out
	if [ $status = 0 ]; then ok; else bad "client $*: exit status $status"; fi
}
# count STATUS: how many blocks had it; all_of STATUS N: all had, and none another
count() {
	echo "$said" | awk -v s="$1" '$1 == s {n = $2} END {print n + 0}'
}
all_of() {
	is "statuses" "$1 $2" "$said"
}

# formats the device under test
format() {
	check "format" "$bin/kvtierctl" format "$data" --segment=16M --force
}
# The device's tier keeps what it was given over a kill -9: $1 blocks, then arguments of the daemon; how: a function that starts it.
survives() {
	n=$1
	shift
	client put 1 "$n"
	all_of OK "$n"
	at_least "parts made durable" "$n" "$(counter durable)"
	daemon_kill
	"$@"
	until_state serving
	at_least "records recovered" "$n" "$(device n_recovered)"
	client match 1 "$n"
	is "match" "matched $n" "$said"
	is "hits that were on NVMe only" "$n" "$(counter nvme_hits)"
	client get 1 "$n"
	all_of OK "$n"
	at_least "parts read from NVMe" "$n" "$(($(counter promoted) + $(counter nvme_gets)))"
	is "I/O errors" 0 "$(device n_errors)"
}

# finish: the closing line and the case's status
finish() {
	if [ $failed != 0 ]; then
		echo "the daemon's log:"
		tail -n 60 $log | sed 's/^/    /'
		dmesg 2> /dev/null | tail -n 15 | sed 's/^/    kernel: /'
	fi
	[ -z "$pid" ] || kill -9 "$pid" 2> /dev/null
	echo "$passed passed, $failed failed"
	[ $failed = 0 ]
	exit
}
find_data || {
	bad "there is no device under test"
	finish
}
