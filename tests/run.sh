#!/bin/bash
# Runs every test of the given build variants and adds up what their closing lines say.
# tests/run.sh LOG VARIANT:BUILD_DIR...
# Prints a line a test, the whole output of those that fail, the reason of each skip, and at last 'N passed, N failed, N skipped'.
set -u
cd "$(dirname "$0")/.."
log=$1
shift
: > "$log"
passed=0 failed=0 skipped=0

# count FILE STATUS: adds up cmocka's "[  PASSED  ] N test(s)." lines, or a plain closing line
count() {
	local p f s plain
	p=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test(s).*/\1/p' "$1" | awk '{n += $1} END {print n + 0}')
	f=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test(s), listed below.*/\1/p' "$1" | awk '{n += $1} END {print n + 0}')
	s=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test(s), listed below.*/\1/p' "$1" | awk '{n += $1} END {print n + 0}')
	plain=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$1" | tail -n 1)
	if [ -n "$plain" ]; then
		p=$((p + $(echo "$plain" | cut -d' ' -f1)))
		f=$((f + $(echo "$plain" | cut -d' ' -f3)))
		s=$((s + $(echo "$plain" | sed -n 's/.*failed, \([0-9]*\) skipped.*/\1/p' | grep . || echo 0)))
	fi
	if [ "$2" -ne 0 ] && [ "$f" -eq 0 ]; then # it crashed, hung, or a sanitizer spoke
		f=1
	fi
	if [ "$p" -eq 0 ] && [ "$f" -eq 0 ] && [ "$s" -eq 0 ]; then
		echo "      printed no closing line"
		f=1
	fi
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	counted="$p passed, $f failed, $s skipped"
	bad=$f
}

# one VARIANT BUILD_DIR COMMAND...
one() {
	local variant=$1 build=$2 out status start
	shift 2
	out=$(mktemp)
	start=$(date +%s.%N)
	BUILD=$build KVTIERD=$PWD/$build/kvtierd timeout -k 5 300 "$@" > "$out" 2>&1 < /dev/null
	status=$?
	count "$out" "$status"
	printf '%-8s %-32s %-34s %5.1f s\n' "$variant" "$(basename "$1")" "$counted" "$(awk "BEGIN {print $(date +%s.%N) - $start}")"
	grep -iE '^(skip|\[ +SKIP)|skipped:' "$out" | sed 's/^/      /' | sort -u
	if [ "$bad" -ne 0 ]; then
		echo "      exit status $status:"
		tail -n 120 "$out" | sed 's/^/      /'
	fi
	{
		echo "=== $variant $*: status $status"
		cat "$out"
	} >> "$log"
	rm -f "$out"
}

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
for v in "$@"; do
	variant=${v%%:*} build=${v#*:}
	export STORM_SEC=3
	[ "$variant" = gcc ] || STORM_SEC=5
	for t in "$build"/tests/unit/test_* "$build"/tests/scen/test_* "$build"/tests/fault/test_* "$build"/tests/crash/test_*; do
		case $t in *.o | *.d | *.so) continue ;; esac
		# pure functions in one thread: nothing for TSan to see, and slow
		case $variant:$t in thread:*/unit/test_codec* | thread:*/unit/test_plane | thread:*/unit/test_numbers) continue ;; esac
		[ -x "$t" ] && one "$variant" "$build" "$t"
	done
	if [ "$variant" != thread ]; then
		for t in tests/scen/*.sh; do
			one "$variant" "$build" "$t" "$build"
		done
	fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
