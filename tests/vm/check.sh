#!/bin/bash
# The guest suite: the built daemon in an emulated machine with NVMe namespaces of its own.
# tests/vm/check.sh [full | short | CASE...] [BUILD_DIR]
#
# short: one boot, the raw namespace. Each case boots its own machine (10 to 40 seconds) and is a script in guest/. Output stays in build/vm/.
# The last line counts: 'N passed, N failed'.
set -u
cd "$(dirname "$0")/../.." || exit 1
all="host raw poll seccomp locked removed errors-write errors-flush errors-read errors-sectors"
build=build/gcc work=build/vm names=
passed=0 failed=0
[ $# -gt 0 ] || set -- full
for word in "$@"; do
	case " $all " in
	*" $word "*) names="$names $word" ;;
	*)
		case $word in
		full) names=$all ;;
		short) names=raw ;;
		*/*) build=$word ;;
		*)
			echo "usage: tests/vm/check.sh [full | short | CASE...] [BUILD_DIR]; cases: $all" >&2
			exit 2
			;;
		esac
		;;
	esac
done

image=$(tests/vm/mkroot.sh) || {
	echo "there is no image"
	echo "0 passed, 1 failed"
	exit 1
}
rm -rf "$work"
mkdir -p "$work/payload/bin"
cp "$build/kvtierd" "$build/kvtierctl" "$build/tests/vm/client" "$work/payload/bin/" && cp -r tests/vm/guest "$work/payload/" || exit 1

# case_run NAME SCRIPT [ARGUMENT]: boots, counts
case_run() {
	local name=$1 start p=0 f=0 status line
	shift
	start=$(date +%s.%N)
	echo "exec sh ./guest/$*" > "$work/payload/run.sh"
	tests/vm/run.sh "$image" "$work/payload" "$work/$name"
	status=$?
	line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$work/$name/result.log" 2> /dev/null | tail -n 1)
	[ -z "$line" ] || read -r p _ f _ <<< "$line"
	if [ "$f" = 0 ] && { [ "$status" != 0 ] || [ "$p" = 0 ]; }; then
		f=1
	fi
	passed=$((passed + p)) failed=$((failed + f))
	printf '%-8s %-32s %-34s %5.1f s\n' vm "$name" "$p passed, $f failed" "$(awk "BEGIN {print $(date +%s.%N) - $start}")"
	if [ "$f" != 0 ]; then
		echo "      exit status $status:"
		tail -n 120 "$work/$name/result.log" 2> /dev/null | sed 's/^/      /'
		[ "$status" != 124 ] || tail -n 20 "$work/$name/qemu.log" "$work/$name/console.log" | sed 's/^/      /'
	fi
}
# errors KIND: on a device that was written without them, by prepare.sh
errors() {
	local always="errno=5,once=off" rules="" segment
	case $1 in
	write) rules=event=write_aio,iotype=write,$always ;;
	read) rules=event=read_aio,iotype=read,$always ;;
	flush) rules=event=flush_to_disk,iotype=flush,$always ;;
	sectors) # in units of 512 bytes: 8 MiB into each segment of 16 MiB, the first of which starts at 1 MiB
		for segment in $(seq 0 14); do
			rules="$rules event=read_aio,iotype=read,$always,sector=$(((1 + 16 * segment + 8) * 2048))"
		done
		;;
	esac
	[ -e "$work/prepared.raw" ] || {
		case_run prepare prepare.sh
		mv "$work/prepare/data.raw" "$work/prepared.raw"
	}
	mkdir -p "$work/errors-$1"
	cp --sparse=always "$work/prepared.raw" "$work/errors-$1/data.raw"
	VM_BLKDEBUG=$rules case_run "errors-$1" errors.sh "$1"
}

for name in $names; do
	case $name in
	errors-*) errors "${name#errors-}" ;;
	seccomp) VM_SYSTEMD=1 case_run seccomp seccomp.sh ;;
	removed) VM_DATA_BYTES=512M case_run removed removed.sh ;;
	*) case_run "$name" "$name.sh" ;;
	esac
done
rm -f "$work"/*.raw "$work"/*/data.raw "$work"/*/payload.ext4
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
